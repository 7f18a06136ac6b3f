//! The functions, by ggml's own names.

use std::ffi::{CStr, c_char, c_int, c_void};

/// A tensor, whose fields [`Layout`](crate::Layout) knows.
#[repr(C)]
pub struct Tensor {
    _opaque: [u8; 0],
}

/// A table of tensors and graphs in one piece of memory.
#[repr(C)]
pub struct Context {
    _opaque: [u8; 0],
}

/// `ggml_init_params`
#[repr(C)]
pub struct InitParams {
    /// Bytes of the context.
    pub mem_size: usize,
    /// Null: ggml allocates them.
    pub mem_buffer: *mut c_void,
    /// Whether tensors have no data there.
    pub no_alloc: bool,
}

/// `ggml_type_traits`, as far as its function that makes floats of elements.
#[repr(C)]
pub struct TypeTraits {
    /// The type's name.
    pub type_name: *const c_char,
    /// Elements of a block.
    pub blck_size: i64,
    /// The same, where blocks are interleaved.
    pub blck_size_interleave: i64,
    /// Bytes of a block.
    pub type_size: usize,
    /// Whether it is no float or integer.
    pub is_quantized: bool,
    /// Floats of elements.
    pub to_float: Option<unsafe extern "C" fn(*const c_void, *mut f32, i64)>,
}

/// `ggml_custom_op_t`
pub type CustomOperation = unsafe extern "C" fn(*mut Tensor, c_int, c_int, *mut c_void);

/// A name that ends in its only NUL.
fn name_of(name: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(name.as_bytes()).expect("one NUL, at the end")
}

macro_rules! functions {
    (always { $($name:ident($($argument:ty),*) $(-> $result:ty)?;)* } newer { $($newer:ident($($given:ty),*);)* }) => {
        /// Pointers to ggml's functions.
        #[allow(missing_docs, reason = "ggml documents its functions")]
        #[derive(Clone, Copy)]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub $newer: Option<unsafe extern "C" fn($($given),*)>,)*
        }

        impl Functions {
            /// The functions where `find` says they are; those that ggml has not always had may be missing.
            ///
            /// # Errors
            /// The name of the first that is not found.
            ///
            /// # Safety
            /// What is found under a name is ggml's function of that name, with the prototype that is here, and stays.
            pub unsafe fn find(find: impl Fn(&CStr) -> *const c_void) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        let found = find(name_of(concat!(stringify!($name), "\0")));
                        if found.is_null() {
                            return Err(stringify!($name));
                        }
                        // SAFETY: by this function's contract.
                        unsafe { std::mem::transmute::<*const c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(found) }
                    },)*
                    $($newer: {
                        let found = find(name_of(concat!(stringify!($newer), "\0")));
                        // SAFETY: by this function's contract.
                        unsafe { std::mem::transmute::<*const c_void, Option<unsafe extern "C" fn($($given),*)>>(found) }
                    },)*
                })
            }

        }
    };
}

functions! {
    always {
        ggml_init(InitParams) -> *mut Context;
        ggml_free(*mut Context);
        ggml_tensor_overhead() -> usize;
        ggml_new_tensor_4d(*mut Context, c_int, i64, i64, i64, i64) -> *mut Tensor;
        ggml_view_tensor(*mut Context, *mut Tensor) -> *mut Tensor;
        ggml_soft_max_ext(*mut Context, *mut Tensor, *mut Tensor, f32, f32) -> *mut Tensor;
        ggml_mul_mat(*mut Context, *mut Tensor, *mut Tensor) -> *mut Tensor;
        ggml_set_rows(*mut Context, *mut Tensor, *mut Tensor, *mut Tensor) -> *mut Tensor;
        ggml_flash_attn_ext(*mut Context, *mut Tensor, *mut Tensor, *mut Tensor, *mut Tensor, f32, f32, f32) -> *mut Tensor;
        ggml_cpy(*mut Context, *mut Tensor, *mut Tensor) -> *mut Tensor;
        ggml_rope(*mut Context, *mut Tensor, *mut Tensor, c_int, c_int) -> *mut Tensor;
        ggml_custom_4d(*mut Context, c_int, i64, i64, i64, i64, *mut *mut Tensor, c_int, CustomOperation, c_int, *mut c_void) -> *mut Tensor;
        ggml_get_name(*const Tensor) -> *const c_char;
        ggml_get_data(*const Tensor) -> *mut c_void;
        ggml_nbytes(*const Tensor) -> usize;
        ggml_is_contiguous(*const Tensor) -> bool;
        ggml_type_name(c_int) -> *const c_char;
        ggml_get_type_traits(c_int) -> *const TypeTraits;
        ggml_backend_cpu_buffer_type() -> *mut c_void;
        ggml_backend_alloc_ctx_tensors_from_buft(*mut Context, *mut c_void) -> *mut c_void;
        ggml_backend_buffer_free(*mut c_void);
        ggml_backend_buffer_is_host(*mut c_void) -> bool;
        ggml_backend_buffer_get_type(*mut c_void) -> *mut c_void;
        ggml_backend_buft_name(*mut c_void) -> *const c_char;
        ggml_backend_buft_get_device(*mut c_void) -> *mut c_void;
        ggml_backend_dev_backend_reg(*mut c_void) -> *mut c_void;
        ggml_backend_reg_name(*mut c_void) -> *const c_char;
        ggml_backend_reg_dev_count(*mut c_void) -> usize;
        ggml_backend_reg_dev_get(*mut c_void, usize) -> *mut c_void;
        ggml_backend_tensor_get(*const Tensor, *mut c_void, usize, usize);
        ggml_backend_tensor_set(*mut Tensor, *const c_void, usize, usize);
    }
    newer {
        ggml_backend_tensor_get_2d(*const Tensor, *mut c_void, usize, usize, usize, usize, usize);
    }
}
