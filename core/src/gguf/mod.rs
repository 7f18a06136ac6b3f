//! Reading, checking and writing GGUF files, in safe Rust.
//!
//! [`Gguf`] reads the header of a file: the metadata and where each tensor lies. [`Gguf::check_loadable`] then guards
//! llama.cpp, whose loader ends the whole process on some malformed files. [`GgufWriter`] writes a file.

mod check;
mod read;
mod tensor;
mod value;
mod write;

pub use read::Gguf;
pub use tensor::{GgmlType, TensorInfo};
pub use value::{Array, Value};
pub use write::GgufWriter;

use std::io;

/// Tensor data starts, and each tensor starts, on a multiple of this many bytes unless `general.alignment` says
/// otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Longest tensor name in bytes; ggml keeps names in 64 bytes with a closing zero.
const MAX_TENSOR_NAME: u64 = 63;

/// Longest metadata key in bytes, from the GGUF specification.
const MAX_KEY: u64 = 65535;

/// Why a GGUF file cannot be read, written or handed to llama.cpp. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error("cannot read or write it: {0}")]
    Io(#[from] io::Error),
    /// The file has no bytes.
    #[error("expected a GGUF model, found an empty file; download it again")]
    Empty,
    /// The file does not begin with `GGUF`.
    #[error("expected a GGUF model beginning with \"GGUF\", found \"{}\"; give the path of a .gguf file", found.escape_ascii())]
    NotGguf {
        /// The bytes the file begins with, at most four.
        found: Vec<u8>,
    },
    /// The numbers of the file are big-endian.
    #[error("expected a little-endian GGUF file, found a big-endian one; convert it or download a little-endian file")]
    BigEndian,
    /// A version of the format that llama.cpp does not read.
    #[error("expected GGUF version 2 or 3, found version {found}; download a newer conversion of this model")]
    Version {
        /// The version the file claims.
        found: u32,
    },
    /// The file ends too early.
    #[error("the GGUF file is truncated: it needs {needs} bytes and has {has}; download it again")]
    Truncated {
        /// The least size in bytes the file must have, by what was read of it.
        needs: u64,
        /// The size of the file in bytes.
        has: u64,
    },
    /// The header itself is damaged.
    #[error("the GGUF header is damaged: {problem}; download the file again")]
    Header {
        /// What was expected and what was found.
        problem: String,
    },
    /// A metadata value is missing, malformed or contradicts another.
    #[error("metadata \"{key}\": {problem}; download another conversion of this model")]
    Metadata {
        /// The metadata key.
        key: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A tensor is malformed or contradicts the metadata.
    #[error("tensor \"{name}\": {problem}; download another conversion of this model")]
    Tensor {
        /// The name of the tensor.
        name: String,
        /// What was expected and what was found.
        problem: String,
    },
}

/// Shows text from a file in a message: at most 80 characters, control characters escaped, so it stays one short line.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

fn header_error(problem: impl Into<String>) -> GgufError {
    GgufError::Header { problem: problem.into() }
}

fn metadata_error(key: &str, problem: impl Into<String>) -> GgufError {
    GgufError::Metadata { key: shown(key), problem: problem.into() }
}

fn tensor_error(name: &str, problem: impl Into<String>) -> GgufError {
    GgufError::Tensor { name: shown(name), problem: problem.into() }
}

/// The alignment a file declares, or the default. llama.cpp maps files at multiples of 32 bytes and aborts on less.
fn alignment(declared: Option<&Value>) -> Result<u64, GgufError> {
    match declared {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && u64::from(*n) >= DEFAULT_ALIGNMENT => Ok(u64::from(*n)),
        Some(other) => {
            let problem = format!("expected a u32 power of two of at least {DEFAULT_ALIGNMENT}, found {other}");
            Err(metadata_error("general.alignment", problem))
        }
    }
}
