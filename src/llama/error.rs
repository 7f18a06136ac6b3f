//! What can go wrong at the border to llama.cpp.

use std::path::PathBuf;

/// An error of the engine underneath; each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The file is not a GGUF that can be handed to llama.cpp.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The model file.
        path: PathBuf,
        /// What is wrong with it.
        source: crate::gguf::GgufError,
    },
    /// llama.cpp refused the model.
    #[error("{}: llama.cpp cannot load this model: {reason}", path.display())]
    Load {
        /// The model file.
        path: PathBuf,
        /// llama.cpp's last words.
        reason: String,
    },
    /// llama.cpp refused the LoRA adapter.
    #[error("{}: llama.cpp cannot apply this LoRA adapter to the model: {reason}", path.display())]
    Adapter {
        /// The adapter file.
        path: PathBuf,
        /// llama.cpp's last words.
        reason: String,
    },
    /// A model could not be quantized.
    #[error("cannot quantize to {}: {reason}", path.display())]
    Quantize {
        /// The file that was to be written.
        path: PathBuf,
        /// llama.cpp's last words.
        reason: String,
    },
    /// llama.cpp could not create a context.
    #[error("llama.cpp cannot create a context of {n_ctx} tokens: {reason}; try a smaller -c")]
    Context {
        /// Context size asked for, in tokens.
        n_ctx: u32,
        /// llama.cpp's last words.
        reason: String,
    },
    /// The batch does not fit into what is left of the context.
    #[error("the context is full: no room for {n_tokens} more tokens; use a larger -c")]
    ContextFull {
        /// Tokens of the batch.
        n_tokens: usize,
    },
    /// A model's layers cannot be run again, one at a time.
    #[error("this model's layers cannot be differentiated: {reason}")]
    Replay {
        /// What is not known of it.
        reason: String,
    },
    /// No temporary file could be made, written or read.
    #[error("the layers' inputs cannot be kept in a temporary file in {}: {source}", folder.display())]
    Temporary {
        /// The folder for temporary files.
        folder: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Decoding was interrupted on request.
    #[error("interrupted")]
    Interrupted,
    /// llama.cpp failed inside a decode.
    #[error("llama.cpp failed to decode: {reason}")]
    Decode {
        /// llama.cpp's last words.
        reason: String,
    },
    /// A hook failed or panicked while the graph ran.
    #[error("a graph hook failed: {0}")]
    Hook(String),
}
