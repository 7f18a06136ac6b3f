//! StepFlow without a runtime: what every way to llama.cpp shares. Its arithmetic ([`stepflow`]) and [`kernels`], segments and
//! steps ([`trace`]), and [`gguf`] files.
#![warn(missing_docs)]

pub mod gguf;
pub mod kernels;
pub mod random;
pub mod stepflow;
pub mod trace;
