//! The devices that ggml's backends offer.

use std::ffi::{CStr, c_char, c_int};

use llama_cpp_sys_2 as sys;

use crate::kernels::Place;

use super::backend::backend;

/// A device that models run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its short name, such as `CUDA0`.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Whether it is a GPU, to which layers can go.
    pub is_gpu: bool,
    /// Its backend and its number there.
    pub place: Place,
    /// Bytes of memory in all; 0 where the backend does not tell.
    pub memory_total: u64,
    /// Bytes of memory that are free.
    pub memory_free: u64,
}

/// Every device, in ggml's order: GPUs come before the CPU.
pub fn devices() -> Vec<DeviceInfo> {
    backend();
    let mut devices = Vec::new();
    // SAFETY: indices are below the counts; backends are never unloaded, so all of it stays.
    unsafe {
        for backend in (0..sys::ggml_backend_reg_count()).map(|i| sys::ggml_backend_reg_get(i)) {
            let backend_name = CStr::from_ptr(sys::ggml_backend_reg_name(backend)).to_str().unwrap_or("?");
            for ordinal in 0..sys::ggml_backend_reg_dev_count(backend) {
                let device = sys::ggml_backend_reg_dev_get(backend, ordinal);
                let (mut free, mut total) = (0, 0);
                sys::ggml_backend_dev_memory(device, &mut free, &mut total);
                let kind = sys::ggml_backend_dev_type(device);
                devices.push(DeviceInfo {
                    is_gpu: kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
                    name: text(sys::ggml_backend_dev_name(device)),
                    description: text(sys::ggml_backend_dev_description(device)),
                    place: Place { backend: backend_name, ordinal: ordinal as u32 },
                    memory_total: total as u64,
                    memory_free: free as u64,
                });
            }
        }
    }
    devices
}

/// Names of the backends that were found, in ggml's order; some may have no device on this machine.
pub fn backends() -> Vec<&'static str> {
    backend();
    // SAFETY: as in `devices`.
    let name = |i| unsafe { CStr::from_ptr(sys::ggml_backend_reg_name(sys::ggml_backend_reg_get(i))) };
    // SAFETY: it counts what is registered.
    let n_backends = unsafe { sys::ggml_backend_reg_count() };
    (0..n_backends).map(|i| name(i).to_str().unwrap_or("?")).collect()
}

/// # Safety
/// `raw` is a NUL-terminated text.
unsafe fn text(raw: *const c_char) -> String {
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}

/// A backend that computes on the CPU with `n_threads` threads; null when there is none. The caller frees it.
pub(super) fn cpu_backend(n_threads: c_int) -> sys::ggml_backend_t {
    backend();
    type SetThreads = unsafe extern "C" fn(sys::ggml_backend_t, c_int);
    // SAFETY: a CPU backend needs no parameters; by ggml-backend.h its registry gives the function of this name this type.
    unsafe {
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        if device.is_null() {
            return std::ptr::null_mut();
        }
        let backend = sys::ggml_backend_dev_init(device, std::ptr::null());
        let registry = sys::ggml_backend_dev_backend_reg(device);
        let set = sys::ggml_backend_reg_get_proc_address(registry, c"ggml_backend_set_n_threads".as_ptr());
        if !backend.is_null() && !set.is_null() {
            std::mem::transmute::<*mut std::ffi::c_void, SetThreads>(set)(backend, n_threads);
        }
        backend
    }
}
