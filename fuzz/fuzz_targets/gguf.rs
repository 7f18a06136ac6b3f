//! No bytes make the GGUF reader or the check before loading panic, hang or take memory beyond the file's own size.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the module is included by path, and writing is not fuzzed")]

#[path = "../../core/src/gguf/mod.rs"]
mod gguf;

use gguf::{Gguf, GgufError};

/// Room for tensor data that the input need not hold, so that headers alone get as far as the check.
const WEIGHTS: u64 = 1 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let length = bytes.len() as u64;
    let read = match Gguf::parse(bytes, length) {
        Err(GgufError::Truncated { .. }) => Gguf::parse(bytes, length + WEIGHTS),
        read => read,
    };
    let error = match read {
        Ok(gguf) => gguf.check_loadable().err(),
        Err(error) => Some(error),
    };
    let message = error.map_or_else(String::new, |error| error.to_string());
    assert!(!message.contains(char::is_control), "a message is one line: {message:?}");
});
