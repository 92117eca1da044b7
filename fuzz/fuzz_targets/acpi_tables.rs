#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::acpi_tables::run(data));
