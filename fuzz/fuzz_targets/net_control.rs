#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::net_control::run(data));
