//! The bodies of requests, field by field: what each API has beside [`super::request::Generate`].

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::llama::chat::ReasoningFormat;

/// The fields of a chat beside those of all endpoints.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChatFields {
    pub messages: Option<Vec<Map<String, Value>>>,
    pub tools: Option<Value>,
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub response_format: Option<Value>,
    pub json_schema: Option<Value>,
    pub grammar: Option<String>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<Value>,
    pub reasoning_format: Option<ReasoningFormat>,
    pub reasoning_effort: Option<String>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
    pub reasoning_budget_tokens: Option<i64>,
    pub thinking_budget_tokens: Option<i64>,
    pub reasoning_budget_message: Option<String>,
    pub echo: Option<bool>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<usize>,
}

/// The fields of completions beside those of all endpoints.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CompletionFields {
    pub prompt: Value,
    pub grammar: Option<String>,
    pub json_schema: Option<Value>,
    pub logprobs: Option<usize>,
}

/// The fields of OpenAI's completions beside these.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct OpenAiFields {
    pub echo: Option<bool>,
    pub best_of: Option<usize>,
    pub response_format: Option<Value>,
}
