//! Finding the kernels of a kind of device: linked in, or in a library beside the program.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use super::ffi::{SF_VERSION, SfKernels};

/// The kernels of one kind of device, for as long as the program runs.
#[derive(Clone, Copy)]
pub struct Library(&'static SfKernels);

/// Kernels that the process was given for a backend.
static GIVEN: LazyLock<Mutex<HashMap<String, Library>>> = LazyLock::new(Mutex::default);

/// Where libraries of kernels lie, if not beside the program.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Why a library of kernels cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// It cannot be opened, or it is something else.
    #[error("no kernels: {0}")]
    Open(String),
    /// It was built from other sources than this program.
    #[error("expected kernels of version {SF_VERSION} in {path}, found version {found}; take both from one build")]
    Version {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Library {
    /// The kernels in the shared library `path`, which stays loaded.
    ///
    /// # Errors
    /// When it cannot be opened, is no such library, or is of another version.
    pub fn open(path: &Path) -> Result<Self, LibraryError> {
        type Entry = unsafe extern "C" fn() -> *const SfKernels;
        // Loaders name the file, but not all of them.
        let failed = |reason: String| match path.display().to_string() {
            name if reason.contains(&name) => LibraryError::Open(reason),
            name => LibraryError::Open(format!("{name}: {reason}")),
        };
        // SAFETY: running a library's initialisers is safe as far as the user's own libraries are.
        let library = unsafe { libloading::Library::new(path) }.map_err(|error| failed(error.to_string()))?;
        // SAFETY: kernels/device.h gives the function of this name this type.
        let entry = unsafe { library.get::<Entry>(b"stepflow_kernels") }.map_err(|error| failed(error.to_string()))?;
        // SAFETY: by device.h it returns a table that lives as long as the library, which is never unloaded.
        let kernels = unsafe { entry().as_ref() }.ok_or_else(|| failed("it has no table".to_owned()))?;
        std::mem::forget(library);
        match kernels.version {
            SF_VERSION => Ok(Self(kernels)),
            found => Err(LibraryError::Version { path: path.to_owned(), found }),
        }
    }

    /// Has devices of ggml's `backend` use these kernels from here on, in place of those that belong to the program.
    pub fn provide(self, backend: &str) {
        GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(backend.to_owned(), self);
    }

    /// Has libraries of kernels looked for in this folder rather than beside the program: what is loaded into another
    /// program lies elsewhere. The first that asks has its way.
    pub fn look_in(folder: &Path) {
        _ = FOLDER.set(folder.to_owned());
    }

    /// The kernels for devices of ggml's `backend`, such as `CUDA`; `None` for a backend that has none.
    ///
    /// # Errors
    /// As [`Library::open`], for a library that should lie beside the program.
    pub fn find(backend: &str) -> Result<Option<Self>, LibraryError> {
        if let Some(given) = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).get(backend) {
            return Ok(Some(*given));
        }
        match backend {
            "CUDA" => cuda().map(Some),
            #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
            "MTL" => Ok(Some(Self(super::metal::kernels()))),
            _ => Ok(None),
        }
    }

    pub(super) fn table(self) -> &'static SfKernels {
        self.0
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Library, LibraryError> {
    unsafe extern "C" {
        safe fn stepflow_kernels() -> *const SfKernels;
    }
    // SAFETY: kernels/cuda/device.cu returns the address of a constant.
    Ok(Library(unsafe { &*stepflow_kernels() }))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Library, LibraryError> {
    let program = || std::env::current_exe().unwrap_or_default().parent().map(Path::to_owned).unwrap_or_default();
    let folder = FOLDER.get().cloned().unwrap_or_else(program);
    Library::open(&folder.join(libloading::library_filename("stepflow-cuda")))
}
