//! Results: to stdout, or to a file that appears whole or not at all.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;

/// Writes a file beside its final name and renames it, so that no reader ever sees half of it.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let in_file = || format!("cannot write {}", path.display());
    if path.exists() && !path.is_file() {
        // A device or a pipe is written in place.
        let mut file = std::fs::OpenOptions::new().write(true).open(path).with_context(in_file)?;
        return write(&mut file).and_then(|()| file.flush()).with_context(in_file);
    }
    let mut file = tempfile::Builder::new().prefix(".stepflow-").tempfile_in(folder).with_context(in_file)?;
    write(file.as_file_mut()).and_then(|()| file.as_file_mut().sync_all()).with_context(in_file)?;
    let saved = file.persist(path).map_err(|error| error.error).with_context(in_file)?;
    let _ = saved.set_permissions(permissions());
    Ok(())
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
