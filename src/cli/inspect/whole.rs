//! A model file of which only the beginning is there.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use stepflow::gguf::{Gguf, GgufError};
use tempfile::NamedTempFile;

/// A model file that llama.cpp takes. Of one that is not all there, as when its first megabytes were downloaded, the rest is
/// a hole that takes no room on the disk.
pub(super) struct Whole {
    pub path: PathBuf,
    /// Bytes that the file has, and needs.
    pub missing: Option<(u64, u64)>,
    _filled: Option<NamedTempFile>,
}

impl Whole {
    /// The file at `path`.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let Err(GgufError::Truncated { needs, has }) = Gguf::open(path) else {
            return Ok(Self { path: path.to_owned(), missing: None, _filled: None });
        };
        let mut filled = NamedTempFile::new().context("cannot make a temporary file")?;
        io::copy(&mut File::open(path)?, &mut filled).context("cannot write a temporary file")?;
        filled.as_file().set_len(needs).context("cannot make a temporary file of the model's size")?;
        // Where the header is cut, what it lacks would be read as zeros.
        if Gguf::open(filled.path()).is_err() {
            bail!(
                "{}: the file is cut inside its header, after {has} bytes; expected all of the header, which is some megabytes",
                path.display()
            );
        }
        Ok(Self { path: filled.path().to_owned(), missing: Some((has, needs)), _filled: Some(filled) })
    }
}
