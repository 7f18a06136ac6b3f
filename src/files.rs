//! Files that appear whole or not at all: written beside their place, then renamed.

use std::fs::File;
use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

/// A file in the folder of `path`, which goes away with the value.
///
/// # Errors
/// When the folder is missing or cannot be written.
pub fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".stepflow-").tempfile_in(folder)
}

/// Writes what `write` writes, so that no reader and no crash ever sees half of it.
///
/// # Errors
/// When `write` fails, or the file cannot be written. What stood at `path` before stays then.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = beside(path)?;
    write(file.as_file_mut())?;
    file.as_file_mut().sync_all()?;
    let saved = file.persist(path)?;
    // Temporary files are private; results are as readable as any file.
    #[cfg(unix)]
    let _ = saved.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    Ok(())
}
