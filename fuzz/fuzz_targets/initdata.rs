#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cloister_fuzz::trust::initdata(data));
