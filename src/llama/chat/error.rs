//! What can go wrong with a chat, and whose fault it is.

/// An error of a chat template, told in llama.cpp's own words where they are its own, which may be several lines.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template cannot be used.
    #[error("chat template: {0}")]
    Template(String),
    /// The request is at fault: the template refuses its messages, its schema cannot be converted, it is too large.
    #[error("{0}")]
    Request(String),
    /// The answer of the model does not have the form that the template has it in.
    #[error("{0}")]
    Answer(String),
    /// Neither template nor request nor answer is at fault.
    #[error("llama.cpp failed on a chat template: {0}")]
    Internal(String),
}
