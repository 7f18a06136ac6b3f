//! All of the foreign-function interface: llama.cpp behind types that cannot be misused.
//!
//! [`Model`] loads a file, [`Context`] decodes batches of it, and a [`Hook`] is shown the attention of each layer while
//! the graph runs and may change it in place. [`chat`] has the chat templates as llama.cpp understands them.

mod backend;
mod batch;
pub mod chat;
mod context;
mod devices;
mod error;
mod ggml;
mod memory;
mod model;
mod quantize;
pub mod replay;
mod sampler;
mod stack;

pub use crate::graph::{
    Attention, Cell, Cells, DeviceAttention, DeviceHeadOutput, FusedAttention, HeadOutput, Hook, HookError, Point, Row,
    Token,
};
pub use backend::{backends_not_loaded, exit_now, exit_on_abort, set_verbose, system_info};
pub use batch::Batch;
pub use context::{CacheType, Context, ContextParams, FlashAttention, MAX_CONTEXT, MAX_THREADS};
pub use devices::{DeviceInfo, backends, devices};
pub use error::LlamaError;
pub use memory::{Layout, MemoryUse, memory_free};
pub use model::{Adapter, Model, ModelParams, read};
pub use quantize::quantize;
pub use sampler::Candidates;
pub(crate) use sampler::RawSampler;
pub(crate) use stack::on_stack;
