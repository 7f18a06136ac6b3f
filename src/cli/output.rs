//! Results: to stdout, or to a file that appears whole or not at all.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use stepflow::files;

/// Writes a file beside its final name and renames it, so that no reader ever sees half of it.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let in_file = || format!("cannot write {}", path.display());
    if is_device(path) {
        // A device or a pipe is written in place.
        let mut file = std::fs::OpenOptions::new().write(true).open(path).with_context(in_file)?;
        return write(&mut file).and_then(|()| file.flush()).with_context(in_file);
    }
    check_folder(path)?;
    files::write_whole(path, |file| write(file)).with_context(in_file)
}

/// Finds out whether [`write_file`] could write there, before any work is done for it.
///
/// # Errors
/// When it could not.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    if is_stdout(path) {
        bail!("expected a file, found '-': stdout holds something else; use /dev/stdout if both may go there");
    }
    if path.is_dir() {
        bail!("cannot write {}: it is a folder", path.display());
    }
    // A pipe must not be opened before there is something to write: its reader would take closing it for the end.
    if is_device(path) {
        return Ok(());
    }
    check_folder(path)?;
    files::beside(path).map(drop).with_context(|| format!("cannot write {}", path.display()))
}

fn is_device(path: &Path) -> bool {
    path.exists() && !path.is_file()
}

fn check_folder(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("cannot write {}: there is no folder {}", path.display(), folder.display());
    }
    Ok(())
}

/// Finds out whether [`write_result`] could write there, before any work is done for it.
///
/// # Errors
/// When it could not.
pub fn check_result(path: Option<&Path>) -> anyhow::Result<()> {
    path.filter(|path| !is_stdout(path)).map_or(Ok(()), check_writable)
}

/// `-`, as everywhere on the command line.
fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Writes to the file, or to stdout if there is none or it is `-`.
pub fn write_result(path: Option<&Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    match path.filter(|path| !is_stdout(path)) {
        Some(path) => write_file(path, write),
        None => {
            let mut stdout = io::BufWriter::new(io::stdout().lock());
            write(&mut stdout).and_then(|()| stdout.flush()).context("cannot write to stdout")
        }
    }
}

/// SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).with_context(|| path.display().to_string())? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&chunk[..n]),
        }
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The time in ISO 8601, in UTC.
pub fn utc_now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Text for a cell of a table: a spreadsheet would run what begins like a formula, behind white space too, so an apostrophe
/// goes in front. So it does where there is one already: a reader takes one off, always.
pub fn cell(text: &str) -> Cow<'_, str> {
    const FORMULA: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    let head = text.trim_start_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{FEFF}');
    match head.starts_with(FORMULA) || text.starts_with(['\'', '\t', '\r']) {
        true => Cow::Owned(format!("'{text}")),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_iso_8601() {
        let now = utc_now();
        assert_eq!(now.len(), "2026-01-31T23:59:59Z".len(), "{now}");
        assert!(now.starts_with("20") && now.ends_with('Z') && now.contains('T'), "{now}");
    }

    #[test]
    fn cells_are_no_formulas_and_can_be_read_again() {
        for text in ["=1+1", " =1+1", "\n\t@x", "+1", "-1", "\u{FEFF}=1", "\u{A0}=1", "＝1", "'", "'=1", "\tx", "\0=1"]
        {
            let cell = cell(text);
            assert!(cell.starts_with('\''), "{text:?}");
            assert_eq!(cell.strip_prefix('\''), Some(text));
        }
        for text in ["", " ", "x", "1 + 1", "a = b", " x", "“=”"] {
            assert_eq!(cell(text), text);
        }
    }
}
