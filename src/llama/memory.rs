//! What a model and a context take of the memory of each device, before either is there.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

use super::backend::{backend, take_complaint};
use super::context::{fields, raw_params};
use super::devices::devices;
use super::model::read;
use super::{ContextParams, DeviceInfo, LlamaError, ModelParams};

/// Bytes of one device's memory, or of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryUse {
    /// The device's short name, such as `CUDA0`; `None` for the host.
    pub device: Option<String>,
    /// The model's weights.
    pub weights: u64,
    /// The KV cache, and what else a context keeps of its tokens.
    pub cache: u64,
    /// Buffers for computing.
    pub compute: u64,
}

impl MemoryUse {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.compute
    }
}

unsafe extern "C" {
    /// memory.cpp
    fn sf_memory(
        context: *const sys::llama_context,
        out: *mut c_void,
        each: unsafe extern "C" fn(*mut c_void, *const c_char, usize, usize, usize),
    ) -> bool;
}

/// A model that is laid out and not allocated, and so are its contexts.
pub struct Layout {
    raw: NonNull<sys::llama_model>,
    n_ctx_train: u32,
    creating: Mutex<()>,
}

// SAFETY: contexts are made one at a time; llama.cpp reads a model from any thread.
unsafe impl Send for Layout {}
// SAFETY: as above.
unsafe impl Sync for Layout {}

impl Layout {
    /// Of the model in `path`, loaded as `params` say.
    ///
    /// # Errors
    /// When it is not a GGUF that llama.cpp can load.
    pub fn new(path: &Path, params: &ModelParams) -> Result<Self, LlamaError> {
        let metadata = read(path)?;
        let failed = |reason: String| LlamaError::Load { path: path.to_owned(), reason };
        let text = path.to_str().ok_or_else(|| failed("expected a path in UTF-8".to_owned()))?;
        let text = CString::new(text).map_err(|_| failed("expected a path without NUL".to_owned()))?;
        backend();
        take_complaint();
        // SAFETY: the path outlives the call; the other parameters are llama.cpp's defaults with scalars changed. llama.cpp
        // turns its exceptions into null.
        let raw = unsafe {
            let mut raw = sys::llama_model_default_params();
            raw.n_gpu_layers = params.n_gpu_layers.min(i32::MAX as u32) as i32;
            raw.load_mode = sys::LLAMA_LOAD_MODE_NONE;
            raw.no_alloc = true;
            sys::llama_model_load_from_file(text.as_ptr(), raw)
        };
        let reason = || take_complaint().unwrap_or_else(|| "no reason given".to_owned());
        let raw = NonNull::new(raw).ok_or_else(|| failed(reason()))?;
        let n_ctx_train = metadata.arch_u64("context_length").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        Ok(Self { raw, n_ctx_train, creating: Mutex::new(()) })
    }

    /// Context length that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> u32 {
        self.n_ctx_train
    }

    /// What the model and such a context take, devices first.
    ///
    /// # Errors
    /// When llama.cpp cannot make such a context at all.
    pub fn memory(&self, params: &ContextParams) -> Result<Vec<MemoryUse>, LlamaError> {
        let n_ctx = if params.n_ctx == 0 { self.n_ctx_train } else { params.n_ctx };
        let mut context = raw_params(params, n_ctx)?;
        let _one_at_a_time = self.creating.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        take_complaint();
        let mut uses: Vec<MemoryUse> = Vec::new();
        // SAFETY: the model lives, and so does the context until it is freed; `add` is given the vector.
        let told = unsafe {
            let raw = sys::llama_init_from_model(self.raw.as_ptr(), *fields(&mut context));
            let told = !raw.is_null() && sf_memory(raw, (&raw mut uses).cast(), add);
            sys::llama_free(raw);
            told
        };
        if !told {
            let reason = take_complaint().unwrap_or_else(|| "no reason given".to_owned());
            return Err(LlamaError::Context { n_ctx, reason });
        }
        uses.retain(|used| used.total() > 0);
        uses.sort_by_key(|used| (used.device.is_none(), used.device.clone()));
        Ok(uses)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it was loaded by `new`, and contexts of it are gone.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) };
    }
}

/// # Safety
/// `uses` is the vector of [`Layout::memory`], `device` null or a text.
unsafe extern "C" fn add(uses: *mut c_void, device: *const c_char, weights: usize, cache: usize, compute: usize) {
    // SAFETY: by this function's contract.
    let (uses, device) = unsafe {
        let device = (!device.is_null()).then(|| CStr::from_ptr(device).to_string_lossy().into_owned());
        (&mut *uses.cast::<Vec<MemoryUse>>(), device)
    };
    let index = uses.iter().position(|used| used.device == device).unwrap_or_else(|| {
        uses.push(MemoryUse { device, weights: 0, cache: 0, compute: 0 });
        uses.len() - 1
    });
    let used = &mut uses[index];
    used.weights += weights as u64;
    used.cache += cache as u64;
    used.compute += compute as u64;
}

/// Bytes that are free on a device, by its short name, or on the host, swap included; `None` where nobody tells.
pub fn memory_free(device: Option<&str>) -> Option<u64> {
    let of_device = |is: &dyn Fn(&DeviceInfo) -> bool| devices().into_iter().find(|device| is(device));
    let free = match device {
        Some(name) => of_device(&|device| device.name == name)?.memory_free,
        None => match std::fs::read_to_string("/proc/meminfo") {
            Ok(text) => ["MemAvailable:", "SwapFree:"].iter().filter_map(|name| kib(&text, name)).sum::<u64>() << 10,
            Err(_) => of_device(&|device| device.place.backend == "CPU")?.memory_free,
        },
    };
    (free > 0).then_some(free)
}

/// The number of a line such as `MemAvailable:   23456 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
