//! ggml as it is linked in, for the graph of the core crate.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

use ggml_sys::{Functions, Ggml};
use llama_cpp_sys_2 as sys;

use crate::graph::{self, Tensor};

/// Where a function is: `$name` of those that are named.
macro_rules! find {
    ($wanted:expr; $($name:ident)*) => {
        match $wanted.to_bytes() {
            $(name if name == stringify!($name).as_bytes() => sys::$name as *const c_void,)*
            _ => std::ptr::null(),
        }
    };
}

fn find(name: &CStr) -> *const c_void {
    find!(name;
        ggml_init ggml_free ggml_tensor_overhead ggml_new_tensor_4d ggml_view_tensor ggml_soft_max_ext ggml_mul_mat
        ggml_set_rows ggml_flash_attn_ext ggml_cpy ggml_rope ggml_custom_4d ggml_get_name ggml_get_data ggml_nbytes
        ggml_is_contiguous ggml_type_name ggml_get_type_traits ggml_backend_cpu_buffer_type
        ggml_backend_alloc_ctx_tensors_from_buft ggml_backend_buffer_free ggml_backend_buffer_is_host
        ggml_backend_buffer_get_type ggml_backend_buft_name ggml_backend_buft_get_device ggml_backend_dev_backend_reg
        ggml_backend_reg_name ggml_backend_reg_dev_count ggml_backend_reg_dev_get ggml_backend_tensor_get
        ggml_backend_tensor_set ggml_backend_tensor_get_2d
    )
}

/// The ggml that is linked in.
pub(super) fn ggml() -> &'static Ggml {
    static GGML: OnceLock<Ggml> = OnceLock::new();
    // SAFETY: these are ggml's functions, of the pinned version, whose headers the prototypes are held to by `tests/ggml.rs`.
    GGML.get_or_init(|| unsafe {
        let functions = Functions::find(find).expect("all functions are linked in");
        Ggml::new(functions).expect("the layout of the pinned version's tensors")
    })
}

/// # Safety
/// As [`Tensor::new`].
pub(super) unsafe fn tensor<'g>(raw: *mut sys::ggml_tensor) -> Option<Tensor<'g>> {
    // SAFETY: by this function's contract.
    unsafe { Tensor::new(ggml(), raw.cast()) }
}

/// `ggml_backend_sched_eval_callback`.
///
/// # Safety
/// As [`graph::on_node`].
pub(super) unsafe extern "C" fn on_node(node: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    unsafe { graph::on_node(node.cast(), ask, user) }
}
