#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::ioreq_slot::run(data));
