#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::blk_request::run(data));
