//! A file under way: `<blob>.incomplete` and the checksum of what it holds so far.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::cache::{cannot_write, create_parent};

/// The part of a file that has arrived.
pub struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    length: u64,
}

impl Partial {
    /// Continues what an earlier run left beside `blob`, or starts anew.
    pub fn open(blob: &Path) -> Result<Self> {
        let mut path = blob.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        let open = || {
            create_parent(&path)?;
            File::options().read(true).write(true).create(true).truncate(false).open(&path)
        };
        let file = open().with_context(|| cannot_write(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!("another process is fetching {}; run again when it is done", path.display())
            }
            // A file system without locks still holds files.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let mut partial = Self { path, file, hasher: Sha256::new(), length: 0 };
        partial.read_back().with_context(|| format!("cannot read {}", partial.path.display()))?;
        Ok(partial)
    }

    fn read_back(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                n => {
                    self.hasher.update(&buffer[..n]);
                    self.length += n as u64;
                }
            }
        }
    }

    /// Bytes that have arrived.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| cannot_write(&self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what has arrived.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).with_context(|| cannot_write(&self.path))?;
        self.hasher = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Moves the complete file to `blob`; one whose SHA-256 is not as `expected` is deleted.
    pub fn publish(self, blob: &Path, expected: Option<&str>) -> Result<()> {
        let found: String = self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(expected) = expected.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
            fs::remove_file(&self.path).with_context(|| cannot_write(&self.path))?;
            bail!("checksum mismatch: expected SHA-256 {expected}, found {found}; deleted the file, fetch it again");
        }
        let publish = || self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        publish().with_context(|| cannot_write(blob))
    }
}
