//! `stepflow` runs quantized reasoning models (GGUF) through llama.cpp and repairs how information flows between
//! reasoning steps while the model thinks (StepFlow, arXiv 2604.06695).
#![warn(missing_docs)]

pub mod backward;
pub mod builtin;
pub mod engine;
pub mod eval;
pub mod files;
pub mod llama;
pub mod saliency;
pub mod server;

pub use stepflow_core::{gguf, kernels, stepflow, trace};
use stepflow_core::{graph, random};
