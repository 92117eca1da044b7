#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::qmp_stream::run(data));
