//! What StepFlow uses of ggml's C interface, in whatever process and version it is found. See vendor/README.md.
#![warn(missing_docs)]

mod calibrate;
mod functions;

use std::ffi::{c_int, c_void};

pub use functions::{Context, CustomOperation, Functions, InitParams, Tensor, TypeTraits};

/// Element types, by the numbers that model files have for them.
pub mod types {
    #![allow(missing_docs, reason = "ggml's own names")]
    pub const F32: u32 = 0;
    pub const F16: u32 = 1;
    pub const Q4_0: u32 = 2;
    pub const Q8_0: u32 = 8;
    pub const I32: u32 = 26;
    pub const I64: u32 = 27;
    pub const BF16: u32 = 30;
}

/// ggml as it is in this process.
pub struct Ggml {
    /// Its functions.
    pub functions: Functions,
    /// Where a tensor has its fields.
    pub layout: Layout,
    /// The numbers of its operations.
    pub operations: Operations,
    /// Whether a node with [`Custom`] as its parameters runs our function.
    pub runs_custom: bool,
}

/// Where a tensor has its fields, in bytes from its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// `int`: the type of its elements.
    pub type_: usize,
    /// The buffer that holds its data, or null.
    pub buffer: usize,
    /// Four `int64_t`: elements of each dimension, the fastest first.
    pub ne: usize,
    /// Four `size_t`: bytes from one to the next.
    pub nb: usize,
    /// `int`: the operation.
    pub op: usize,
    /// Sixteen `int32_t`: parameters of the operation.
    pub op_params: usize,
    /// Ten tensors that it is made of.
    pub src: usize,
    /// The tensor that it is a view of, or null.
    pub view_src: usize,
    /// Its data, or null.
    pub data: usize,
    /// Sixty-four bytes with a NUL.
    pub name: usize,
}

/// Numbers of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "ggml's own names")]
pub struct Operations {
    pub none: u32,
    pub soft_max: u32,
    pub mul_mat: u32,
    pub set_rows: u32,
    pub flash_attn_ext: u32,
    pub cpy: u32,
    pub rope: u32,
    pub custom: u32,
}

/// Parameters of a node that runs our function, as `ggml_custom_4d` writes them.
#[repr(C)]
pub struct Custom {
    /// The function.
    pub run: CustomOperation,
    /// So many threads at most; -1 for all.
    pub n_tasks: c_int,
    /// What C leaves unsaid, so that all of it can be compared.
    pub padding: c_int,
    /// What the function is given.
    pub user: *mut c_void,
}
