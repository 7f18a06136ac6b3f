//! Results: to stdout, or to a file that appears whole or not at all.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};

/// Writes a file beside its final name and renames it, so that no reader ever sees half of it.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let in_file = || format!("cannot write {}", path.display());
    if is_device(path) {
        // A device or a pipe is written in place.
        let mut file = std::fs::OpenOptions::new().write(true).open(path).with_context(in_file)?;
        return write(&mut file).and_then(|()| file.flush()).with_context(in_file);
    }
    let mut file = temporary(path)?;
    write(file.as_file_mut()).and_then(|()| file.as_file_mut().sync_all()).with_context(in_file)?;
    let saved = file.persist(path).map_err(|error| error.error).with_context(in_file)?;
    let _ = saved.set_permissions(permissions());
    Ok(())
}

/// Finds out whether [`write_file`] could write there, before any work is done for it.
///
/// # Errors
/// When it could not.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("cannot write {}: it is a folder", path.display());
    }
    // A pipe must not be opened before there is something to write: its reader would take closing it for the end.
    if is_device(path) { Ok(()) } else { temporary(path).map(drop) }
}

fn is_device(path: &Path) -> bool {
    path.exists() && !path.is_file()
}

/// A file beside `path` that goes away unless it is renamed.
fn temporary(path: &Path) -> anyhow::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("cannot write {}: there is no folder {}", path.display(), folder.display());
    }
    let file = tempfile::Builder::new().prefix(".stepflow-").tempfile_in(folder);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Writes to the file, or to stdout if there is none.
pub fn write_result(path: Option<&Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    match path {
        Some(path) => write_file(path, write),
        None => {
            let mut stdout = io::BufWriter::new(io::stdout().lock());
            write(&mut stdout).and_then(|()| stdout.flush()).context("cannot write to stdout")
        }
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text for a cell of a table: a spreadsheet would run what begins like a formula, so an apostrophe goes in front.
pub fn cell(text: &str) -> Cow<'_, str> {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => Cow::Owned(format!("'{text}")),
        false => Cow::Borrowed(text),
    }
}

/// Temporary files are private; results are as readable as any file.
#[cfg(unix)]
fn permissions() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

#[cfg(not(unix))]
fn permissions() -> std::fs::Permissions {
    std::fs::metadata(".").map(|m| m.permissions()).expect("the current folder has permissions")
}
