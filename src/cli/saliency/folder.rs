//! The folder that a run leaves: what of it was there before must not be taken for part of it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::cli::exit::Usage;
use crate::cli::output;

/// Finds out whether `out` holds other runs than these: of one they lie in it, of several each in a folder of its own.
pub fn check(out: &Path, names: &[&str]) -> Result<(), Usage> {
    let folders = std::fs::read_dir(out).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| names.len() > 1 && names.iter().any(|name| path.ends_with(name));
    let mut others = folders.filter(|path| path.join("run.json").is_file() && !named(path));
    let itself = (names.len() > 1 && out.join("run.json").is_file()).then(|| out.to_owned());
    match itself.or_else(|| others.next()) {
        Some(other) => Err(Usage(format!("{} is another run; name another folder with -o", other.display()))),
        None => Ok(()),
    }
}

/// Makes the folder of a run, and finds out whether files can be written there.
pub fn make(out: &Path) -> anyhow::Result<()> {
    make_for(out, "cells.csv")
}

/// Makes a folder for a file.
pub fn make_for(out: &Path, file: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    output::check_writable(&out.join(file))
}

/// Removes it, if it is empty: nothing was measured.
pub fn leave(out: &Path) {
    let _ = std::fs::remove_dir(out);
}

/// Removes the files of an earlier run that this one may not write again.
pub fn clear(out: &Path) -> anyhow::Result<()> {
    let layers = std::fs::read_dir(out.join("layers")).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in layers
        .filter(|path| is_layer(path))
        .chain(["cells.parquet", "heads.csv", "heads.parquet"].map(|name| out.join(name)))
    {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                bail!("cannot remove {} of an earlier run: {error}", path.display())
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a file is named as those of layers are, `07.svg`.
fn is_layer(path: &Path) -> bool {
    let is =
        |part: Option<&std::ffi::OsStr>, right: &dyn Fn(&str) -> bool| part.and_then(|x| x.to_str()).is_some_and(right);
    is(path.file_stem(), &|stem| stem.bytes().all(|byte| byte.is_ascii_digit()))
        && is(path.extension(), &|extension| ["svg", "png", "csv"].contains(&extension))
}
