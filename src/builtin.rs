//! The embedded model: a small reasoner inside the program, laid into the cache so that it loads as any model does; and
//! its problems.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::files;

/// What the model calls itself.
pub const NAME: &str = "StepFlow Reasoner";

const FILE: &str = concat!("stepflow-reasoner-", env!("CARGO_PKG_VERSION"), ".gguf");
const MODEL: &[u8] = include_bytes!("../models/stepflow-reasoner.gguf");

/// Problems that the model was not trained on: name and text, as [`crate::eval::problem::read`] takes them.
pub const TEST: (&str, &str) = ("stepflow-reasoner.test.jsonl", include_str!("../models/stepflow-reasoner.test.jsonl"));

/// Other such problems, to choose settings by.
pub const VALIDATION: (&str, &str) =
    ("stepflow-reasoner.validation.jsonl", include_str!("../models/stepflow-reasoner.validation.jsonl"));

/// The embedded model could be laid nowhere.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the embedded model to {}: {source}; set XDG_CACHE_HOME to a folder that can be written", path.display())]
pub struct BuiltinError {
    path: PathBuf,
    source: io::Error,
}

/// The embedded model as a file: in `stepflow/` of the user's cache (`XDG_CACHE_HOME`, else `~/.cache`), or in the
/// temporary folder where that cannot be written. A file that is not the model, byte for byte, is replaced.
///
/// # Errors
/// When neither folder can be written.
pub fn path() -> Result<PathBuf, BuiltinError> {
    if let Some(folder) = cache() {
        let path = folder.join(FILE);
        if is_model(&path) || write(&folder, &path).is_ok() {
            return Ok(path);
        }
    }
    // Where all users write, a file may be another's and change while it is mapped. So none is trusted there.
    let folder = std::env::temp_dir();
    let path = folder.join(FILE);
    match write(&folder, &path) {
        Ok(()) => Ok(path),
        Err(source) => Err(BuiltinError { path, source }),
    }
}

/// Where scripts/fetch-smollm2 keeps its model too.
fn cache() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let cache = named.or_else(|| Some(std::env::home_dir()?.join(".cache")).filter(|folder| folder.is_absolute()));
    cache.map(|folder| folder.join("stepflow"))
}

fn is_model(path: &Path) -> bool {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(MODEL.len() + 1);
        // One byte more than the model has tells a longer file.
        fs::File::open(path)?.take(MODEL.len() as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().is_ok_and(|bytes| bytes == MODEL)
}

/// Another process may write the same file, or have it mapped.
fn write(folder: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    files::write_whole(path, |file| file.write_all(MODEL))
}
