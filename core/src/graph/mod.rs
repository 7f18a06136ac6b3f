//! The graph that llama.cpp runs, seen from inside: where its attention is, which token each cell holds, and hooks that may
//! change it. It knows ggml by [`ggml_sys`] alone, so it works in any process that has one.

mod cells;
mod flash;
mod fused;
mod hook;
mod mask;
mod row;
mod softmax;
mod tensor;
mod trampoline;
mod values;

pub use cells::{Cell, Cells};
pub use hook::{Attention, DeviceAttention, DeviceHeadOutput, FusedAttention, HeadOutput, Hook, Point};
pub use mask::Mask;
pub use row::{Row, Token};
pub use tensor::Tensor;
pub use trampoline::{State, cache_of, layer_of, on_node};

/// What a failing hook says; it ends the decode.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;
