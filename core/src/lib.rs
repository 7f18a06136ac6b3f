//! StepFlow without a runtime: what every way to llama.cpp shares. Its arithmetic ([`stepflow`]) and [`kernels`], segments and
//! steps ([`trace`]), [`gguf`] files, and [`repair`] in a running [`graph`].
#![warn(missing_docs)]

pub mod gguf;
pub mod graph;
pub mod kernels;
pub mod random;
pub mod repair;
pub mod stepflow;
pub mod trace;
