//! No bytes make the trace reader panic or hang, and what it accepts is written and read again unchanged.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the module is included by path, and tracking is not fuzzed")]

#[path = "../../core/src/trace/mod.rs"]
mod trace;

use trace::TraceFile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match TraceFile::read(bytes) {
        Ok(file) => {
            let mut written = Vec::new();
            file.write(&mut written).expect("memory takes every write");
            assert_eq!(TraceFile::read(&written).expect("what is written can be read"), file);
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains(char::is_control), "a message is one line: {message:?}");
        }
    }
});
