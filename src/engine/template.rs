//! Chat templates: from messages to the text that a model was trained on, by llama.cpp's engine.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::llama::Model;
use crate::llama::chat::{Applied, ChatError, ChatInput, ChatTemplates};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What was thought before it was said; templates decide whether to repeat it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl Message {
    /// A message without thinking.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into(), reasoning_content: None }
    }
}

/// A chat template that cannot be used, or does not take what it is given.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// Of the template, or of the messages.
    #[error("{}", one_line(.0))]
    Chat(#[from] ChatError),
    /// A variable of the template's has another type than it must have.
    #[error("chat template: expected enable_thinking to be true or false, found {0}")]
    EnableThinking(Value),
}

/// A template with its variables, for conversations of plain messages.
pub struct ChatTemplate {
    templates: ChatTemplates,
    enable_thinking: bool,
    kwargs: Map<String, Value>,
}

/// A rendered prompt, in two parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The conversation so far, up to the end of the last message.
    pub conversation: String,
    /// What opens the answer: the header of an assistant message, and `<think>` where the template opens thinking.
    pub opening: String,
    /// Where in both together, in bytes, tokens end: what a message says is text, and reads as no token of the
    /// template's.
    pub cuts: Vec<usize>,
}

impl From<&Applied> for Prompt {
    fn from(applied: &Applied) -> Self {
        let text = &applied.prompt;
        let conversation = text.strip_suffix(&applied.generation_prompt).unwrap_or(text);
        let opening = text[conversation.len()..].to_owned();
        Self { conversation: conversation.to_owned(), opening, cuts: applied.cuts.clone() }
    }
}

impl ChatTemplate {
    /// The template of `model`, or `source` instead: Jinja, or the name of a template that llama.cpp has built in. A model
    /// without any has ChatML. `kwargs` are variables of the template, such as `enable_thinking`, which is true unless
    /// given.
    ///
    /// # Errors
    /// When the template cannot be compiled, or does not render a single message of a user.
    pub fn new(model: &Model, source: Option<&str>, kwargs: Map<String, Value>) -> Result<Self, TemplateError> {
        let templates = ChatTemplates::open(model, source)?;
        let enable_thinking = enable_thinking(&kwargs)?.unwrap_or(true);
        Ok(Self { templates, enable_thinking, kwargs })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        self.templates.source()
    }

    /// Renders a conversation that ends with a user's message.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<Prompt, TemplateError> {
        let applied = self.templates.apply(&ChatInput {
            messages: serde_json::json!(messages),
            enable_thinking: self.enable_thinking,
            chat_template_kwargs: self.kwargs.clone(),
            ..ChatInput::default()
        })?;
        Ok(Prompt::from(&applied))
    }
}

/// Whether a template's variables have the model think; `None` where they leave it open.
///
/// # Errors
/// When `enable_thinking` is neither true nor false.
pub fn enable_thinking(kwargs: &Map<String, Value>) -> Result<Option<bool>, TemplateError> {
    match kwargs.get("enable_thinking") {
        None => Ok(None),
        Some(Value::Bool(enable)) => Ok(Some(*enable)),
        Some(other) => Err(TemplateError::EnableThinking(other.clone())),
    }
}

/// A template's own words may be several lines; the first says what is wrong, the others where.
fn one_line(error: &ChatError) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
