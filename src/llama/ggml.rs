//! ggml as it is linked in, for the graph of the core crate.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

use ggml_sys::{Functions, Ggml};
use llama_cpp_sys_2 as sys;

use crate::graph;

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
    // SAFETY: these are ggml's functions, of the pinned version, which the tests below hold to its headers.
    GGML.get_or_init(|| unsafe {
        let functions = Functions::find(find).expect("all functions are linked in");
        Ggml::new(functions).expect("the layout of the pinned version's tensors")
    })
}

/// `ggml_backend_sched_eval_callback`.
///
/// # Safety
/// As [`graph::on_node`].
pub(super) unsafe extern "C" fn on_node(node: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    unsafe { graph::on_node(node.cast(), ask, user) }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use ggml_sys::{Layout, Operations};

    use super::*;

    #[test]
    fn the_layout_that_is_found_is_that_of_the_headers() {
        // SAFETY: ggml's own functions.
        let ggml = unsafe { Functions::find(find).map(|functions| Ggml::new(functions)) }.unwrap().unwrap();
        let expected = Layout {
            type_: offset_of!(sys::ggml_tensor, type_),
            buffer: offset_of!(sys::ggml_tensor, buffer),
            ne: offset_of!(sys::ggml_tensor, ne),
            nb: offset_of!(sys::ggml_tensor, nb),
            op: offset_of!(sys::ggml_tensor, op),
            op_params: offset_of!(sys::ggml_tensor, op_params),
            src: offset_of!(sys::ggml_tensor, src),
            view_src: offset_of!(sys::ggml_tensor, view_src),
            data: offset_of!(sys::ggml_tensor, data),
            name: offset_of!(sys::ggml_tensor, name),
        };
        assert_eq!(ggml.layout, expected);
        let expected = Operations {
            none: sys::GGML_OP_NONE,
            soft_max: sys::GGML_OP_SOFT_MAX,
            mul_mat: sys::GGML_OP_MUL_MAT,
            set_rows: sys::GGML_OP_SET_ROWS,
            flash_attn_ext: sys::GGML_OP_FLASH_ATTN_EXT,
            cpy: sys::GGML_OP_CPY,
            rope: sys::GGML_OP_ROPE,
            custom: sys::GGML_OP_CUSTOM,
        };
        assert_eq!(ggml.operations, expected);
        assert!(ggml.runs_custom);
    }

    #[test]
    fn a_function_that_is_missing_is_named() {
        let without = |name: &CStr| if name == c"ggml_set_rows" { std::ptr::null() } else { find(name) };
        // SAFETY: as above.
        assert_eq!(unsafe { Functions::find(without) }.err(), Some("ggml_set_rows"));
    }
}
