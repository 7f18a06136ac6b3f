//! The process-wide parts of llama.cpp: initialisation, its log, and what happens when it aborts.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
static VERBOSE: AtomicBool = AtomicBool::new(false);
/// The last warnings and errors, the newest at the end: an error message quotes them.
static COMPLAINTS: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
const COMPLAINTS_KEPT: usize = 8;
static NOT_LOADED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Initialises llama.cpp once and takes over its log.
pub(super) fn backend() -> &'static LlamaBackend {
    BACKEND.get_or_init(|| {
        // SAFETY: `on_log` is a function for the whole life of the process and uses no user data.
        unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) };
        #[cfg(feature = "dynamic-backends")]
        if !load_backends() {
            // Its initialisation would look for backends elsewhere: where it was built, and in the current folder.
            return LlamaBackend {};
        }
        // Whoever initialised it before us, through llama-cpp-2, has left it ready.
        LlamaBackend::init().unwrap_or(LlamaBackend {})
    })
}

/// Loads the backends that lie beside the program, as far as this machine can run them. Returns whether there is any.
#[cfg(feature = "dynamic-backends")]
fn load_backends() -> bool {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(std::path::Path::new("."));
    if let Ok(folder) = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()) {
        // SAFETY: `folder` is NUL-terminated and lives for the call. Loading runs the initialisers of ggml's libraries.
        unsafe { sys::ggml_backend_load_all_from_path(folder.as_ptr()) };
    }
    *NOT_LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = not_loaded(folder);
    // SAFETY: it counts what is registered.
    unsafe { sys::ggml_backend_reg_count() > 0 }
}

/// Why a GPU's backend in `folder` cannot be loaded, most often for want of its driver's libraries: ggml keeps that to
/// itself.
#[cfg(feature = "dynamic-backends")]
fn not_loaded(folder: &std::path::Path) -> Vec<String> {
    let gpu =
        |name: &str| name.strip_prefix("libggml-").is_some_and(|n| !n.starts_with("cpu") && !n.starts_with("base"));
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let backends = files.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(gpu));
    backends
        .filter_map(|path| {
            // SAFETY: ggml has tried the same, and a library that it did load is only counted once more.
            let error = unsafe { libloading::Library::new(&path) }.err()?;
            Some(format!("{} cannot be loaded: {error}", path.display()))
        })
        .collect()
}

/// Backends beside the program that cannot be loaded, and why; a line each.
pub fn backends_not_loaded() -> Vec<String> {
    backend();
    NOT_LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

/// Lets llama.cpp's own log through to stderr (`-v`).
pub fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// What llama.cpp was built with and runs on, as its own tools print it.
pub fn system_info() -> String {
    backend();
    // SAFETY: llama.cpp returns a pointer to a NUL-terminated string that lives as long as the process.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy().into_owned()
}

/// Makes an abort inside llama.cpp end the process with one line on stderr and status 1 instead of a core dump.
///
/// For programs: a library user may prefer the default.
pub fn exit_on_abort() {
    // SAFETY: `on_abort` is a function for the whole life of the process.
    unsafe { sys::ggml_set_abort_callback(Some(on_abort)) };
}

/// Ends the process from any thread. An ordinary exit destroys llama.cpp's globals first, under threads that still
/// compute with them.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: the C library has this function, and it takes any number.
    unsafe extern "C" {
        safe fn _exit(code: c_int) -> !;
    }
    _exit(c_int::from(code))
}

/// llama.cpp's newest complaint, and forgets them all. `None` if it said nothing.
pub(super) fn take_complaint() -> Option<String> {
    let mut complaints = COMPLAINTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // The first error names the cause; what follows only says that loading failed.
    let first = complaints.pop_front();
    complaints.clear();
    first
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if VERBOSE.load(Ordering::Relaxed) {
        // Nobody may be reading; a panic would unwind into C.
        let _ = write!(std::io::stderr(), "{text}");
    }
    if level == sys::GGML_LOG_LEVEL_ERROR {
        let mut complaints = COMPLAINTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        complaints.push_back(text.trim().replace('\n', " "));
        if complaints.len() > COMPLAINTS_KEPT {
            complaints.pop_front();
        }
    }
}

unsafe extern "C" fn on_abort(message: *const c_char) {
    let message = match message.is_null() {
        true => "no reason given".into(),
        // SAFETY: ggml passes a NUL-terminated string that lives for this call.
        false => unsafe { CStr::from_ptr(message) }.to_string_lossy(),
    };
    let message = message.trim().replace('\n', " ");
    let mut stderr = std::io::stderr();
    let _ =
        writeln!(stderr, "stepflow: llama.cpp stopped on an internal check: {message}; the model file may be damaged");
    exit_now(1);
}
