//! From the text of an answer to a message, while it is generated.

use std::ptr::NonNull;

use serde::{Deserialize, Serialize};

use super::limits::Nesting;
use super::stack::on_large_stack;
use super::{ChatError, ffi, read};

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Of the model or, where it gives none, 32 random letters and digits.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments: JSON, unless the answer was cut off or is not what it should be.
    pub arguments: String,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What was thought before.
    pub reasoning_content: String,
    /// The tools that were called.
    pub tool_calls: Vec<ToolCall>,
}

/// More of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Which of the message's calls.
    pub index: usize,
    /// Its id, at its beginning; then empty.
    pub id: String,
    /// Its name, at its beginning; then empty.
    pub name: String,
    /// What comes next in its arguments.
    pub arguments: String,
}

/// What is new in a message. One of the three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// What comes next in the reasoning, or empty.
    pub reasoning_content: String,
    /// What comes next in the content, or empty.
    pub content: String,
    /// What comes next in a call.
    #[serde(default)]
    pub tool_call: Option<ToolCallDelta>,
}

/// Reads one answer.
pub struct Parser {
    handle: Handle,
    text: String,
    nesting: Nesting,
}

struct Handle(NonNull<ffi::Parser>);

// SAFETY: it owns all that it points to and is bound to no thread.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it came from `sf_parser_open` and is freed once.
        unsafe { ffi::sf_parser_free(self.0.as_ptr()) };
    }
}

impl Parser {
    pub(super) fn open(params: &str, echo: bool, generation_prompt: &str) -> Result<Self, ChatError> {
        let mut nesting = Nesting::default();
        nesting.push(generation_prompt);
        nesting.check()?;
        on_large_stack(|| {
            let mut handle = std::ptr::null_mut();
            // SAFETY: the texts live for the call, and `handle` can be written.
            ffi::call(ChatError::Request, |sink| unsafe {
                ffi::sf_parser_open(params.into(), echo, &mut handle, sink)
            })?;
            NonNull::new(handle).map(Handle).ok_or_else(|| ChatError::Internal("no parser".to_owned()))
        })
        .map(|handle| Self { handle, text: String::new(), nesting })
    }

    /// What is new in the message now that `text` was generated. It costs as much as the whole answer is long.
    ///
    /// # Errors
    /// When the answer does not have the form that its template demands. What it has been read as so far stays.
    pub fn push(&mut self, text: &str) -> Result<Vec<Delta>, ChatError> {
        self.text.push_str(text);
        self.nesting.push(text);
        self.update(true)
    }

    /// The message, and what is new in it now that the answer has ended. A message with nothing in it says that nothing
    /// in the text is meant for the user; llama-server returns the text as its content.
    ///
    /// # Errors
    /// When the answer does not have the form that its template demands.
    pub fn finish(&mut self) -> Result<(Message, Vec<Delta>), ChatError> {
        let deltas = self.update(false)?;
        Ok((self.message()?, deltas))
    }

    /// The message as far as it has been read.
    ///
    /// # Errors
    /// When llama.cpp cannot write it down.
    pub fn message(&self) -> Result<Message, ChatError> {
        // SAFETY: the handle is valid.
        let message =
            ffi::call(ChatError::Answer, |sink| unsafe { ffi::sf_parser_message(self.handle.0.as_ptr(), sink) })?;
        read(&message)
    }

    fn update(&mut self, is_partial: bool) -> Result<Vec<Delta>, ChatError> {
        self.nesting.check()?;
        let (handle, text) = (&mut self.handle, self.text.as_str());
        let work = move || {
            // SAFETY: the handle is valid and nobody else uses it; the text lives for the call.
            ffi::call(ChatError::Answer, |sink| unsafe {
                ffi::sf_parser_update(handle.0.as_ptr(), text.into(), is_partial, sink)
            })
        };
        let deltas = if self.nesting.is_deep() { on_large_stack(work) } else { work() };
        read(&deltas?)
    }
}
