//! `/v1/messages`, Anthropic's API: its requests become chats, and its answers are blocks of content.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::llama::chat::{Delta, Message};

use super::app::App;
use super::chat::n_tokens;
use super::conversation::Conversation;
use super::error::ApiError;
use super::fields::{self, Api, Table};
use super::generation::{Answer, Chunk, Reply, Update};
use super::guard::Body;
use super::history::BETWEEN_BLOCKS;
use super::names::random_id;
use super::reading::Readers;
use super::request::{Generate, read};

/// `POST /v1/messages/count_tokens`.
pub async fn count_tokens(State(app): State<Arc<App>>, Body(body): Body) -> Result<Json<Value>, ApiError> {
    let n = tokio::task::block_in_place(|| n_tokens(&app, &chat_of(&body)?))?;
    Ok(Json(json!({ "input_tokens": n })))
}

/// `POST /v1/messages`.
pub async fn create(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    app.check_fields(Api::Messages, &body)?;
    let chat = chat_of(&body)?;
    let generate: Generate = read(&chat)?;
    let generation = tokio::task::block_in_place(|| {
        let ready = app.ready_for_more()?;
        Conversation::read(&app, ready, &chat)?.start(&app, ready, &generate, |conversation, plan, _| {
            Ok(Box::new(Anthropic {
                id: random_id("msg_"),
                name: body.get("model").and_then(Value::as_str).map_or_else(|| app.model_name(), str::to_owned),
                readers: conversation.readers(ready, plan.n_choices)?,
                begun: false,
                block: None,
                n_blocks: 0,
                calls_tools: false,
            }))
        })
    })?;
    generation.respond(generate.streams()).await
}

/// The chat that a request in Anthropic's form asks for. What both have under one name stays as it is.
fn chat_of(body: &Value) -> Result<Value, ApiError> {
    let Some(messages) = body.get("messages") else { return Err(ApiError::invalid("'messages' is required")) };
    let Some(messages) = messages.as_array() else { return Err(ApiError::invalid("'messages' must be an array")) };
    let mut chat = body.as_object().cloned().unwrap_or_default();
    let mut converted = Vec::new();
    match chat.shift_remove("system") {
        None | Some(Value::Null) => {}
        Some(system) => converted.push(json!({ "role": "system", "content": text_of(&system)? })),
    }
    for message in messages {
        convert(message, &mut converted)?;
    }
    chat.insert("messages".into(), converted.into());
    if let Some(tools) = body.get("tools").and_then(Value::as_array) {
        let tools: Vec<_> = tools.iter().map(tool_of).collect::<Result<_, _>>()?;
        chat.insert("tools".into(), tools.into());
    }
    if let Some(choice) = body.get("tool_choice") {
        if let Some(Value::Bool(disable)) = choice.get("disable_parallel_tool_use") {
            chat.insert("parallel_tool_calls".into(), (!disable).into());
        }
        let choice = match choice.get("type").and_then(Value::as_str).unwrap_or("auto") {
            "any" => "required".into(),
            "tool" => json!({ "type": "function", "function": { "name": choice.get("name") } }),
            kind => kind.into(),
        };
        chat.insert("tool_choice".into(), choice);
    }
    if let Some(stop) = chat.shift_remove("stop_sequences") {
        chat.insert("stop".into(), stop);
    }
    thinking(&mut chat)?;
    output_config(&mut chat)?;
    Ok(chat.into())
}

/// `output_config: {effort, format}`.
fn output_config(chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let config = match chat.shift_remove("output_config") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(config)) => config,
        Some(other) => return Err(ApiError::invalid(format!("output_config: expected an object, found {other}"))),
    };
    fields::check_object("output_config", &config, &Table::of(&["effort", "format"]))?;
    for (own, name) in [("effort", "reasoning_effort"), ("format", "response_format")] {
        if let Some(value) = config.get(own).filter(|value| !value.is_null()) {
            chat.insert(name.into(), value.clone());
        }
    }
    Ok(())
}

/// `thinking: {type: enabled, budget_tokens}`.
fn thinking(chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let thinking = match chat.shift_remove("thinking") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(thinking)) => thinking,
        Some(other) => return Err(ApiError::invalid(format!("thinking: expected an object, found {other}"))),
    };
    fields::check_object("thinking", &thinking, &Table::of(&["type", "budget_tokens", "display"]))?;
    if thinking.get("display").is_some_and(|display| display == "omitted") {
        return Err(ApiError::invalid(
            "thinking.display: thinking is not left out here; expected `summarized` or nothing",
        ));
    }
    match thinking.get("type").and_then(Value::as_str) {
        Some("enabled" | "adaptive") => {
            if let Some(budget) = thinking.get("budget_tokens") {
                chat.insert("thinking_budget_tokens".into(), budget.clone());
            }
        }
        Some("disabled") => {
            let kwargs = chat.entry("chat_template_kwargs").or_insert_with(|| json!({}));
            let Some(kwargs) = kwargs.as_object_mut() else {
                return Err(ApiError::invalid("chat_template_kwargs: expected an object"));
            };
            kwargs.insert("enable_thinking".into(), false.into());
        }
        _ => {
            let found = thinking.get("type").map_or_else(|| "nothing".to_owned(), Value::to_string);
            return Err(ApiError::invalid(format!(
                "thinking.type: expected enabled, adaptive or disabled, found {found}"
            )));
        }
    }
    Ok(())
}

fn tool_of(tool: &Value) -> Result<Value, ApiError> {
    if tool.get("input_schema").is_none() {
        let kind = tool.get("type").or(tool.get("name")).and_then(Value::as_str).unwrap_or_default();
        return Err(ApiError::invalid(format!(
            "tools: expected tools with an input_schema, found `{kind}`; this server has no tools of its own"
        )));
    }
    let function = json!({
        "name": tool.get("name"),
        "description": tool.get("description").and_then(Value::as_str).unwrap_or_default(),
        "parameters": tool.get("input_schema"),
    });
    Ok(json!({ "type": "function", "function": function }))
}

/// The text of a string, or of a list of text blocks.
fn text_of(value: &Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            Ok(blocks.iter().map(text_of_block).collect::<Result<Vec<_>, _>>()?.join(BETWEEN_BLOCKS))
        }
        Value::Null => Ok(String::new()),
        _ => Err(ApiError::invalid("expected a string or a list of text blocks")),
    }
}

fn text_of_block(block: &Value) -> Result<&str, ApiError> {
    match block.get("type").and_then(Value::as_str) {
        None | Some("text") => Ok(block.get("text").and_then(Value::as_str).unwrap_or_default()),
        Some(_) => Err(not_text(block)),
    }
}

fn not_text(block: &Value) -> ApiError {
    let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
    ApiError::invalid(format!("content blocks of type `{kind}`: this server reads text alone"))
}

/// One message: its blocks become text, thinking, tool calls, and messages of their own for what tools returned.
fn convert(message: &Value, converted: &mut Vec<Value>) -> Result<(), ApiError> {
    let Some(blocks) = message.get("content").and_then(Value::as_array) else {
        converted.push(message.clone());
        return Ok(());
    };
    let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        let of = |field: &str| block.get(field).and_then(Value::as_str).unwrap_or_default();
        match of("type") {
            "text" => texts.push(of("text")),
            "thinking" => thoughts.push(of("thinking")),
            "redacted_thinking" => {}
            "tool_use" => {
                let arguments = match block.get("input") {
                    None | Some(Value::Null) => "{}".to_owned(),
                    Some(input @ Value::Object(_)) => input.to_string(),
                    Some(other) => {
                        return Err(ApiError::invalid(format!("tool_use.input: expected an object, found {other}")));
                    }
                };
                let function = json!({ "name": of("name"), "arguments": arguments });
                calls.push(json!({ "id": of("id"), "type": "function", "function": function }));
            }
            "tool_result" => {
                let content = text_of(block.get("content").unwrap_or(&Value::Null))?;
                converted.push(json!({ "role": "tool", "tool_call_id": of("tool_use_id"), "content": content }));
            }
            _ => return Err(not_text(block)),
        }
    }
    let (text, reasoning) = (texts.join(BETWEEN_BLOCKS), thoughts.join(BETWEEN_BLOCKS));
    if text.is_empty() && reasoning.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let mut object = json!({ "role": message.get("role"), "content": text });
    if !reasoning.is_empty() {
        object["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        object["tool_calls"] = calls.into();
    }
    converted.push(object);
    Ok(())
}

/// A block of content that is open in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    Tool(usize),
}

/// Anthropic's format.
struct Anthropic {
    id: String,
    name: String,
    readers: Readers,
    begun: bool,
    block: Option<Block>,
    n_blocks: usize,
    calls_tools: bool,
}

impl Anthropic {
    fn message(&self, content: Value, answer: &Answer) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.name,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {
                "cache_read_input_tokens": answer.n_cached,
                "input_tokens": answer.n_prompt - answer.n_cached,
                "output_tokens": 0,
            },
        })
    }

    /// Closes the open block and opens `block`, unless it is open.
    fn open(&mut self, block: Block, start: Value, chunks: &mut Vec<Chunk>) {
        if self.block == Some(block) {
            return;
        }
        self.shut(chunks);
        let event = json!({ "index": self.n_blocks, "content_block": start });
        chunks.push(Chunk::named("content_block_start", event));
        self.block = Some(block);
        self.n_blocks += 1;
    }

    fn shut(&mut self, chunks: &mut Vec<Chunk>) {
        match self.block.take() {
            None => return,
            // The API has a signature before the end of thinking; a model here signs nothing.
            Some(Block::Thinking) => self.add(json!({ "type": "signature_delta", "signature": "" }), chunks),
            Some(_) => {}
        }
        chunks.push(Chunk::named("content_block_stop", json!({ "index": self.n_blocks - 1 })));
    }

    fn add(&self, delta: Value, chunks: &mut Vec<Chunk>) {
        chunks.push(Chunk::named("content_block_delta", json!({ "index": self.n_blocks - 1, "delta": delta })));
    }

    fn push(&mut self, delta: &Delta, chunks: &mut Vec<Chunk>) {
        if !delta.reasoning_content.is_empty() {
            self.open(Block::Thinking, json!({ "type": "thinking", "thinking": "", "signature": "" }), chunks);
            self.add(json!({ "type": "thinking_delta", "thinking": delta.reasoning_content }), chunks);
        }
        if !delta.content.is_empty() {
            self.open(Block::Text, json!({ "type": "text", "text": "" }), chunks);
            self.add(json!({ "type": "text_delta", "text": delta.content }), chunks);
        }
        if let Some(call) = &delta.tool_call {
            self.calls_tools = true;
            let start = json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} });
            self.open(Block::Tool(call.index), start, chunks);
            if !call.arguments.is_empty() {
                self.add(json!({ "type": "input_json_delta", "partial_json": call.arguments }), chunks);
            }
        }
    }
}

/// Adds the statistics of an answer that was repaired. Other answers have what Anthropic's have, and no more.
fn tell_repairs(object: &mut Value, answer: &Answer) {
    let timings = answer.timings();
    if timings.get("stepflow").is_some() {
        object["timings"] = timings;
    }
}

fn stop_reason(answer: &Answer, calls_tools: bool) -> &'static str {
    match (answer.is_complete(), calls_tools, answer.stopping_word()) {
        (false, ..) => "max_tokens",
        (true, true, _) => "tool_use",
        (true, false, Some(_)) => "stop_sequence",
        (true, false, None) => "end_turn",
    }
}

impl Reply for Anthropic {
    fn stream(&mut self, index: usize, answer: &Answer, update: &Update) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !self.begun {
            self.begun = true;
            let message = self.message(json!([]), answer);
            chunks.push(Chunk::named("message_start", json!({ "message": message })));
        }
        for delta in self.readers.deltas(index, answer, update) {
            self.push(&delta, &mut chunks);
        }
        if update.ended {
            self.shut(&mut chunks);
            let reason = stop_reason(answer, self.calls_tools);
            let mut last = json!({
                "delta": { "stop_reason": reason, "stop_sequence": answer.stopping_word() },
                "usage": { "output_tokens": answer.n_generated() },
            });
            tell_repairs(&mut last, answer);
            chunks.push(Chunk::named("message_delta", last));
            chunks.push(Chunk::named("message_stop", json!({})));
        }
        chunks
    }

    fn failure(&self, error: &ApiError) -> Chunk {
        Chunk { name: Some("error"), data: error.to_anthropic() }
    }

    fn mark(&self) -> Option<&'static str> {
        None
    }

    fn whole(&mut self, answers: &[Answer]) -> Value {
        let Some(answer) = answers.first() else { return Value::Null };
        let message = self.readers.message(0, answer);
        let reason = stop_reason(answer, !message.tool_calls.is_empty());
        let mut object = self.message(blocks_of(&message), answer);
        object["stop_reason"] = reason.into();
        object["stop_sequence"] = answer.stopping_word().into();
        object["usage"]["output_tokens"] = answer.n_generated().into();
        tell_repairs(&mut object, answer);
        object
    }

    fn id(&self) -> &str {
        &self.id
    }
}

fn blocks_of(message: &Message) -> Value {
    let mut blocks = Vec::new();
    if !message.reasoning_content.is_empty() {
        blocks.push(json!({ "type": "thinking", "thinking": message.reasoning_content, "signature": "" }));
    }
    if !message.content.is_empty() {
        blocks.push(json!({ "type": "text", "text": message.content }));
    }
    blocks.extend(message.tool_calls.iter().map(|call| {
        let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": input })
    }));
    blocks.into()
}
