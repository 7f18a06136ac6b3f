//! The sources of the GPU kernels, compiled as C++ against kernels/shim, so that they run on any machine.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use stepflow::kernels::Library;

/// The language that kernels are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Cuda,
    Metal,
}

impl Language {
    fn sources(self) -> &'static [&'static str] {
        match self {
            Language::Cuda => {
                &["cuda/device.cu", "cuda/attend.cu", "cuda/oeb.cu", "cuda/probe.cu", "cuda/smi.cu", "shim/cuda.cpp"]
            }
            Language::Metal => &["shim/metal.cpp"],
        }
    }
}

/// Compiles the kernels into a shared library in `folder`, with further `sources` and `flags`. Panics with the compiler's
/// words if it fails.
pub fn compile(language: Language, folder: &Path, sources: &[PathBuf], flags: &[String]) -> PathBuf {
    let library = folder.join(libloading::library_filename(format!("kernels-{language:?}")));
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    command.args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-attributes", "-shared", "-fPIC"]).args(flags);
    // Its check of longjmp knows no fibers; macOS has them only for those who ask.
    command.args(["-U_FORTIFY_SOURCE", "-D_XOPEN_SOURCE=700", "-D_DARWIN_C_SOURCE", "-Wno-deprecated-declarations"]);
    command.args(["-x", "c++"]).args(language.sources().iter().map(|name| kernels.join(name))).args(sources);
    let done = command.arg("-o").arg(&library).output().expect("a C++ compiler runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stderr.is_empty(), "the compiler warns: {}", String::from_utf8_lossy(&done.stderr));
    library
}

/// The kernels on the CPU.
pub fn library(language: Language, folder: &Path) -> Library {
    Library::open(&compile(language, folder, &[], &[])).expect("the shim is a library of kernels")
}
