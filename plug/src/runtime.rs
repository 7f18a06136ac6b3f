//! A llama.cpp in this process: its functions, and what was found out of its tensors.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{LazyLock, Mutex, PoisonError};

use ggml_sys::{Functions, Ggml, Tensor};

use super::report;

/// `ggml_backend_sched_t`
pub type Sched = *mut c_void;
/// `ggml_cgraph *`
pub type Graph = *mut c_void;
/// `ggml_backend_sched_eval_callback`
pub type Callback = Option<unsafe extern "C" fn(*mut Tensor, bool, *mut c_void) -> bool>;

/// An object that has llama.cpp's calls of ggml in it.
pub struct Runtime {
    /// Its file.
    pub path: PathBuf,
    /// The functions that ours stand in for, and those that look into a graph.
    pub sched: SchedFunctions,
    /// Its tensors; `None` where they could not be found out, so that nothing is done.
    pub ggml: Option<Ggml>,
    /// ggml's version, as it names it.
    pub version: String,
    /// Whether it has run a graph.
    pub entered: AtomicBool,
}

macro_rules! functions {
    ($($field:ident: $name:literal fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// Functions of a scheduler, its graphs and tensors.
        pub struct SchedFunctions {
            $(#[doc = $name] pub $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl SchedFunctions {
            /// `None` where one is missing.
            fn find(find: impl Fn(&CStr) -> *const c_void) -> Option<Self> {
                Some(Self {
                    $($field: {
                        let name = CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()).ok()?;
                        let found = Some(find(name)).filter(|found| !found.is_null())?;
                        // SAFETY: ggml's function of this name; its prototype has not changed since schedulers came to be.
                        unsafe { transmute::<*const c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    compute: "ggml_backend_sched_graph_compute_async" fn(Sched, Graph) -> c_int;
    set_callback: "ggml_backend_sched_set_eval_callback" fn(Sched, Callback, *mut c_void);
    set: "ggml_backend_tensor_set" fn(*mut Tensor, *const c_void, usize, usize);
    copy: "ggml_backend_tensor_copy" fn(*mut Tensor, *mut Tensor);
    n_nodes: "ggml_graph_n_nodes" fn(Graph) -> c_int;
    node: "ggml_graph_node" fn(Graph, c_int) -> *mut Tensor;
    tensor: "ggml_graph_get_tensor" fn(Graph, *const c_char) -> *mut Tensor;
}

/// By where they are in memory. They are never given back: a process has few.
static RUNTIMES: LazyLock<Mutex<HashMap<usize, Option<&'static Runtime>>>> = LazyLock::new(Mutex::default);

/// By where in their code they call from, a few places. To find the object of an address, the loader goes through all of its
/// symbols, which for the calls of one token took more than a hundredth of a small model's time.
static CALLERS: LazyLock<Mutex<HashMap<usize, Option<&'static Runtime>>>> = LazyLock::new(Mutex::default);

impl Runtime {
    /// Its file's name.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The runtime that an address of code is in; `None` where ggml cannot be found from there.
    pub fn of(code: *const c_void) -> Option<&'static Self> {
        let mut callers = CALLERS.lock().unwrap_or_else(PoisonError::into_inner);
        *callers.entry(code as usize).or_insert_with(|| Self::around(code))
    }

    /// The same, by the loader.
    fn around(code: *const c_void) -> Option<&'static Self> {
        let object = object_of(code)?;
        let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
        *runtimes.entry(object.dli_fbase as usize).or_insert_with(|| {
            let path = path_of(&object);
            let handle = loaded(&path);
            let runtime: &'static Self = Box::leak(Box::new(Self::open(path, handle)?));
            Some(runtime)
        })
    }

    fn open(path: CString, handle: *mut c_void) -> Option<Self> {
        let find = |name: &CStr| find_in(handle, name);
        let sched = SchedFunctions::find(find)?;
        // SAFETY: by ggml's own names, of one ggml; their prototypes have not changed since the oldest that has them all.
        let ggml =
            unsafe { Functions::find(find).map_err(|name| format!("it has no {name}")).and_then(|f| Ggml::new(f)) };
        let ggml = ggml.map_err(|why| report::left_alone(&path.to_string_lossy(), &why)).ok();
        let version = find(c"ggml_version");
        let version = if version.is_null() {
            "of unknown version".to_owned()
        } else {
            // SAFETY: it takes nothing, and returns a text that stays.
            unsafe {
                let version = transmute::<*const c_void, unsafe extern "C" fn() -> *const c_char>(version);
                CStr::from_ptr(version()).to_string_lossy().into_owned()
            }
        };
        Some(Self {
            path: PathBuf::from(path.to_string_lossy().into_owned()),
            sched,
            ggml,
            version,
            entered: AtomicBool::new(false),
        })
    }
}

/// The object that has this code.
fn object_of(code: *const c_void) -> Option<libc::Dl_info> {
    let mut info = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked for; where the answer is not 0, the struct is filled in.
    unsafe { (libc::dladdr(code, info.as_mut_ptr()) != 0).then(|| info.assume_init()) }
}

/// The file of an object that is loaded.
fn path_of(object: &libc::Dl_info) -> CString {
    // SAFETY: the loader has its name, which ends in NUL, for as long as it is loaded.
    unsafe { CStr::from_ptr(object.dli_fname) }.to_owned()
}

/// The object that has this code, and its handle; that of what comes after us, where it has none of its own.
pub fn handle_of(code: *const c_void) -> (Option<CString>, *mut c_void) {
    let path = object_of(code).map(|object| path_of(&object));
    let handle = path.as_ref().map_or(libc::RTLD_NEXT, |path| loaded(path));
    (path, handle)
}

/// The handle of an object that is loaded. A program, unlike a library, is not found by its name: the ggml it is linked with
/// comes after us.
fn loaded(path: &CStr) -> *mut c_void {
    // SAFETY: an object that is loaded is not loaded again; it stays as long as the process, for it is not closed.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    if handle.is_null() { libc::RTLD_NEXT } else { handle }
}

/// Where a function is, seen from an object; null where it is not.
pub fn find_in(handle: *mut c_void, name: &CStr) -> *const c_void {
    // SAFETY: a handle, and a name that ends in NUL.
    unsafe { libc::dlsym(handle, name.as_ptr()) }.cast_const()
}
