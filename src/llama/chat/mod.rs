//! Chats as llama.cpp understands them: the template of every model that it knows, what tools, reasoning and schemas
//! mean for the prompt and the grammar, and how an answer is read.
//!
//! [`ChatTemplates::apply`] makes an [`Applied`] of a [`ChatInput`], whose [`Parser`] reads the answer while it is
//! generated. Requests may be applied from many threads at once.

mod applied;
mod error;
mod ffi;
mod input;
mod limits;
mod parser;
mod quoted;
mod stack;

pub use applied::{Applied, GrammarTrigger, TriggerKind};
pub use error::ChatError;
pub use input::{ChatInput, ReasoningFormat, ToolChoice};
pub use parser::{Delta, Message, Parser, ToolCall, ToolCallDelta};

use std::ptr::NonNull;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Model, Token};
use quoted::Markup;
use stack::on_large_stack;

/// The chat templates of a model: one, and with some models another for tools.
pub struct ChatTemplates {
    handle: Handle,
    about: About,
    markup: Markup,
}

struct Handle(NonNull<ffi::Templates>);

// SAFETY: nothing changes templates once they are open: their programs are shared between threads by design ("visit and
// execute must be const", jinja/runtime.h), and what a run needs belongs to the run. The one thing that runs share is
// the buffer of C's localtime, plain numbers, from which a prompt's date is copied.
unsafe impl Send for Handle {}
// SAFETY: the same.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it came from `sf_chat_open` and is freed once.
        unsafe { ffi::sf_chat_free(self.0.as_ptr()) };
    }
}

#[derive(Deserialize)]
struct About {
    source: String,
    tool_use_source: Option<String>,
    caps: Map<String, Value>,
    supports_thinking: bool,
}

impl ChatTemplates {
    /// The templates of a model, or `source` instead: Jinja, or the name of a template that llama.cpp has built in. A
    /// model without any has ChatML.
    ///
    /// # Errors
    /// When a template cannot be compiled or does not render a single message of a user.
    pub fn open(model: &Model, source: Option<&str>) -> Result<Self, ChatError> {
        Self::open_any(Some(model), source.unwrap_or_default(), "", "")
    }

    /// A template without a model. `bos` and `eos` are the texts of the first and last token.
    ///
    /// # Errors
    /// When it cannot be compiled or does not render a single message of a user.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        Self::open_any(None, source, bos, eos)
    }

    fn open_any(model: Option<&Model>, source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        on_large_stack(|| {
            let model = model.map_or(std::ptr::null(), Model::raw);
            let mut handle = std::ptr::null_mut();
            // SAFETY: the model is null or valid; the texts live for the call, and `handle` can be written.
            let about = ffi::call(ChatError::Template, |sink| unsafe {
                ffi::sf_chat_open(model, source.into(), bos.into(), eos.into(), &mut handle, sink)
            })?;
            let handle = NonNull::new(handle).ok_or_else(|| ChatError::Internal("no templates".to_owned()))?;
            Ok(Self { handle: Handle(handle), about: read(&about)?, markup: Markup::default() })
        })
        .map(|templates| Self { markup: templates.markup(model), ..templates })
    }

    /// What stands for tokens in its prompts. Of the texts that a model's author defined, some are words or white space:
    /// only tags that the template writes count.
    fn markup(&self, model: Option<&Model>) -> Markup {
        let is_tag = |text: &str| {
            let brackets = (text.chars().next(), text.chars().next_back());
            matches!(brackets, (Some('<'), Some('>')) | (Some('['), Some(']')))
        };
        let writes =
            |text: &str| [Some(self.source()), self.tool_use_source()].iter().flatten().any(|s| s.contains(text));
        let texts = model.into_iter().flat_map(Model::structural_texts);
        let texts = texts.filter(|(text, defined)| !defined || is_tag(text) && writes(text)).map(|(text, _)| text);
        let hello =
            ChatInput { messages: serde_json::json!([{ "role": "user", "content": "x" }]), ..ChatInput::default() };
        let Ok(applied) = self.apply(&hello) else { return Markup::new(texts, [], "") };
        let pairs = applied.thinking_end_tags.iter().map(|end| (applied.thinking_start_tag.clone(), end.clone()));
        Markup::new(texts, pairs, &applied.generation_prompt)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.about.source
    }

    /// The source of the template that is used with tools, if it is another.
    pub fn tool_use_source(&self) -> Option<&str> {
        self.about.tool_use_source.as_deref()
    }

    /// What llama.cpp found that the template can do (`supports_tools`, ...), as llama-server reports it.
    pub fn caps(&self) -> &Map<String, Value> {
        &self.about.caps
    }

    /// Whether the template has the model think.
    pub fn supports_thinking(&self) -> bool {
        self.about.supports_thinking
    }

    /// The prompt of a request, and all that its answer is to be generated and read with. It takes milliseconds, but
    /// some templates take minutes for thousands of messages.
    ///
    /// # Errors
    /// When the request is at fault; llama.cpp's message or the template's says why.
    pub fn apply(&self, input: &ChatInput) -> Result<Applied, ChatError> {
        let mut input = input.clone();
        let mark = self.markup.quote(&mut input.messages, input.reasoning_format)?;
        let request = limits::request(&input)?;
        let applied = on_large_stack(|| {
            // SAFETY: the templates are valid; the text lives for the call.
            ffi::call(refused, |sink| unsafe {
                ffi::sf_chat_apply(self.handle.0.as_ptr(), request.as_str().into(), sink)
            })
        })?;
        let applied: Applied = read(&applied)?;
        Ok(applied.unquoted(mark, input.echo))
    }
}

/// An error of a request. llama.cpp puts it down to the template's parser, which cannot be made without a prompt.
fn refused(message: String) -> ChatError {
    const BLAME: &str = "Unable to generate parser for this template. Automatic parser generation failed: ";
    ChatError::Request(message.strip_prefix(BLAME).unwrap_or(&message).trim_start().to_owned())
}

/// The grammar (GBNF) of a JSON schema's instances. Only `$ref`s into the schema itself are followed.
///
/// # Errors
/// When the schema is at fault.
pub fn json_schema_to_grammar(schema: &Value) -> Result<String, ChatError> {
    let schema = limits::schema(schema)?;
    on_large_stack(|| {
        // SAFETY: the text lives for the call.
        ffi::call(ChatError::Request, |sink| unsafe { ffi::sf_schema_to_grammar(schema.as_str().into(), sink) })
    })
}

/// What the shim answered.
fn read<T: DeserializeOwned>(answer: &str) -> Result<T, ChatError> {
    serde_json::from_str(answer).map_err(|error| ChatError::Internal(error.to_string()))
}
