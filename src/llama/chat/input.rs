//! What a chat template is applied to.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Whether the model calls tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It must.
    Required,
    /// It must not.
    None,
}

/// Where reasoning goes; llama-server's `--reasoning-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasoningFormat {
    /// It stays in the content.
    None,
    /// Into `reasoning_content`.
    #[default]
    Auto,
    /// Into `reasoning_content`.
    Deepseek,
    /// Into `reasoning_content`; a stream's reader may want it in the content as well.
    DeepseekLegacy,
}

/// A request for an answer; the defaults are llama-server's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatInput {
    /// OpenAI's array of messages.
    pub messages: Value,
    /// OpenAI's array of tools; null for none.
    pub tools: Value,
    /// Whether the tools are called.
    pub tool_choice: ToolChoice,
    /// Whether an answer may call more than one tool.
    pub parallel_tool_calls: bool,
    /// What the answer must be an instance of. llama-server takes `{}` for `{"type": "object"}`; here it demands
    /// nothing.
    pub json_schema: Option<Value>,
    /// A grammar (GBNF) that the answer must obey; empty for none.
    pub grammar: String,
    /// Whether the template is run as Jinja. If not, llama.cpp looks for one it has built in that it resembles, which
    /// has neither tools nor thinking.
    pub jinja: bool,
    /// Whether the prompt ends where the answer begins. Must be off for `continue_final_message`.
    pub add_generation_prompt: bool,
    /// Whether the last message is continued: a boolean, or which part is open (`reasoning_content` or `content`).
    pub continue_final_message: Value,
    /// Whether the message that is read from the answer has in it what it continues.
    #[serde(skip)]
    pub echo: bool,
    /// Where reasoning goes.
    pub reasoning_format: ReasoningFormat,
    /// Whether the model may think, where the template leaves it the choice.
    pub enable_thinking: bool,
    /// Further variables of the template.
    pub chat_template_kwargs: Map<String, Value>,
}

impl Default for ChatInput {
    fn default() -> Self {
        Self {
            messages: Value::Array(Vec::new()),
            tools: Value::Null,
            tool_choice: ToolChoice::default(),
            parallel_tool_calls: false,
            json_schema: None,
            grammar: String::new(),
            jinja: true,
            add_generation_prompt: true,
            continue_final_message: Value::Null,
            echo: false,
            reasoning_format: ReasoningFormat::default(),
            enable_thinking: true,
            chat_template_kwargs: Map::new(),
        }
    }
}
