//! Devices that refuse host access, as one more backend of the ggml in this process.

use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use llama_cpp_sys_2 as sys;
use stepflow::kernels::Library;

use crate::shim::{self, Language};

/// Functions that the double calls, in its order.
#[repr(C)]
struct Ggml([*const c_void; 8]);

unsafe extern "C" {
    fn ggml_backend_buffer_init();
    fn ggml_backend_register(backend: *mut c_void);
}

/// Registers the double as `backend`, before anything of llama.cpp runs, and returns the CUDA kernels on the CPU, for
/// which its memory is open.
pub fn register(backend: &str) -> Library {
    let folder = tempfile::tempdir().unwrap();
    let headers = llama_cpp().join("ggml");
    let include = |path: PathBuf| format!("-I{}", path.display());
    let flags = ["include", "src"].map(|folder| include(headers.join(folder)));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/double/double.cpp");
    let path = shim::compile(Language::Cuda, folder.path(), &[source], &flags);
    let kernels = Library::open(&path).unwrap();
    // SAFETY: it is the library that was just opened.
    let library = unsafe { libloading::Library::new(&path) }.unwrap();
    let ggml = Ggml([
        ggml_backend_buffer_init as *const c_void,
        sys::ggml_backend_dev_by_type as *const c_void,
        sys::ggml_backend_dev_init as *const c_void,
        sys::ggml_backend_dev_supports_op as *const c_void,
        sys::ggml_backend_dev_backend_reg as *const c_void,
        sys::ggml_backend_reg_get_proc_address as *const c_void,
        sys::ggml_backend_graph_compute as *const c_void,
        sys::ggml_backend_free as *const c_void,
    ]);
    let name = CString::new(backend).unwrap();
    // SAFETY: double.cpp and shim/cuda.cpp give these names these types; name and library stay for good.
    unsafe {
        type Backend = unsafe extern "C" fn(*const c_char, *const Ggml) -> *mut c_void;
        type Open = unsafe extern "C" fn(bool);
        let guard = library.get::<*mut Option<Open>>(b"stepflow_shim_guard").unwrap();
        **guard = Some(*library.get::<Open>(b"double_open").unwrap());
        let double = library.get::<Backend>(b"double_backend").unwrap();
        ggml_backend_register(double(name.into_raw(), &ggml));
    }
    std::mem::forget(library);
    kernels
}

/// The sources of the llama.cpp that this package is built with.
fn llama_cpp() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let mut command = Command::new(cargo);
    // Of this platform alone: the others' packages need not have been fetched.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    command
        .args(["metadata", "--format-version", "1", "--filter-platform", &platform, "--manifest-path"])
        .arg(manifest);
    let metadata = command.output().expect("cargo runs").stdout;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).expect("cargo metadata writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == "llama-cpp-sys-2").expect("the engine");
    Path::new(package["manifest_path"].as_str().expect("a path")).with_file_name("llama.cpp")
}
