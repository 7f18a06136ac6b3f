//! `/v1/responses`, OpenAI's newer API, text alone: its requests become chats, and its answers are items.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::llama::chat::{Delta, Message};

use super::app::App;
use super::conversation::Conversation;
use super::error::ApiError;
use super::fields::{self, Api, Table};
use super::generation::{Answer, Chunk, Reply, Update, now};
use super::guard::Body;
use super::history::BETWEEN_BLOCKS;
use super::names::random_id;
use super::reading::Readers;
use super::request::{Generate, read};
use super::tools;

/// `POST /v1/responses`.
pub async fn create(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    app.check_fields(Api::Responses, &body)?;
    let chat = chat_of(&body)?;
    let generate: Generate = read(&chat)?;
    let generation = tokio::task::block_in_place(|| {
        let ready = app.ready_for_more()?;
        Conversation::read(&app, ready, &chat)?.start(&app, ready, &generate, |conversation, plan, _| {
            Ok(Box::new(Responses {
                id: random_id("resp_"),
                created: now(),
                name: app.model_name(),
                readers: conversation.readers(ready, plan.n_choices)?,
                tells_progress: generate.return_progress.unwrap_or(false),
                tells_timings: generate.timings_per_token.unwrap_or(false),
                begun: false,
                items: Vec::new(),
                n_events: 0,
            }))
        })
    })?;
    generation.respond(generate.streams()).await
}

/// The chat that a request in this API's form asks for.
fn chat_of(body: &Value) -> Result<Value, ApiError> {
    let mut includes = body.get("include").and_then(Value::as_array).into_iter().flatten();
    if includes.any(|what| what == "message.output_text.logprobs") {
        return Err(ApiError::invalid("include: no probabilities are told here; /v1/chat/completions has `logprobs`"));
    }
    let mut chat = body.as_object().cloned().unwrap_or_default();
    let mut messages = Vec::new();
    if let Some(instructions) = chat.shift_remove("instructions").and_then(|text| Some(text.as_str()?.to_owned())) {
        messages.push(json!({ "role": "system", "content": instructions }));
    }
    match chat.shift_remove("input") {
        Some(Value::String(text)) => messages.push(json!({ "role": "user", "content": text })),
        Some(Value::Array(items)) => {
            items.iter().enumerate().try_for_each(|(i, item)| convert(i, item, &mut messages))?
        }
        None => return Err(ApiError::invalid("'input' is required")),
        Some(_) => return Err(ApiError::invalid("'input' must be a string or array of objects")),
    }
    chat.insert("messages".into(), messages.into());
    if let Some(tools) = body.get("tools").and_then(Value::as_array) {
        let tools: Vec<_> = tools.iter().map(tool_of).collect::<Result<_, _>>()?;
        chat.insert("tools".into(), tools.into());
    }
    if let Some(n) = chat.shift_remove("max_output_tokens") {
        chat.insert("max_tokens".into(), n);
    }
    if let Some(reasoning) = object(&mut chat, "reasoning", &["effort", "summary", "generate_summary"])?
        && let Some(effort) = reasoning.get("effort")
    {
        chat.insert("reasoning_effort".into(), effort.clone());
    }
    if let Some(text) = object(&mut chat, "text", &["format", "verbosity"])? {
        if let Some(verbosity) = text.get("verbosity").filter(|text| !text.is_null() && *text != "medium") {
            return Err(ApiError::invalid(format!("text.verbosity: not served; ask for {verbosity} in the prompt")));
        }
        if let Some(format) = text.get("format") {
            chat.insert("response_format".into(), format.clone());
        }
    }
    Ok(chat.into())
}

/// Takes an object out of a request, of whose fields none may be unknown.
fn object(
    chat: &mut Map<String, Value>,
    name: &str,
    known: &[&'static str],
) -> Result<Option<Map<String, Value>>, ApiError> {
    match chat.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => {
            fields::check_object(name, &object, &Table::of(known))?;
            Ok(Some(object))
        }
        Some(other) => Err(ApiError::invalid(format!("{name}: expected an object, found {other}"))),
    }
}

fn tool_of(tool: &Value) -> Result<Value, ApiError> {
    let mut function = tool.as_object().cloned().unwrap_or_default();
    match function.shift_remove("type") {
        Some(kind) if kind == "function" => Ok(json!({ "type": "function", "function": function })),
        kind => Err(ApiError::invalid(format!(
            "tools: expected tools of type \"function\", found {}; this server has no tools of its own",
            kind.map_or_else(|| "none".to_owned(), |kind| kind.to_string()),
        ))),
    }
}

/// One item of the input.
fn convert(i: usize, item: &Value, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let of = |field: &str| item.get(field).and_then(Value::as_str);
    match (of("type"), of("role")) {
        (None | Some("message"), Some(role)) => {
            let content = text_of(item.get("content").unwrap_or(&Value::Null))?;
            merge(messages, role, Map::from_iter([("content".to_owned(), content.into())]));
        }
        (Some("function_call"), _) => {
            let arguments = tools::arguments(&format!("input[{i}].arguments"), item.get("arguments"))?;
            let function = json!({ "name": of("name"), "arguments": arguments });
            let call = json!({ "id": of("call_id"), "type": "function", "function": function });
            merge(messages, "assistant", Map::from_iter([("tool_calls".to_owned(), json!([call]))]));
        }
        (Some("function_call_output"), _) => {
            let content = text_of(item.get("output").unwrap_or(&Value::Null))?;
            messages.push(json!({ "role": "tool", "tool_call_id": of("call_id"), "content": content }));
        }
        (Some("reasoning"), _) => {
            let text = text_of(item.get("content").unwrap_or(&Value::Null))?;
            merge(messages, "assistant", Map::from_iter([("reasoning_content".to_owned(), text.into())]));
        }
        _ => return Err(ApiError::invalid("Cannot determine type of 'item'")),
    }
    Ok(())
}

/// Adds to the last message what belongs to the same turn of the assistant's, or begins a message.
fn merge(messages: &mut Vec<Value>, role: &str, fields: Map<String, Value>) {
    if role == "assistant"
        && let Some(last) = messages.last_mut().and_then(Value::as_object_mut)
        && last.get("role").and_then(Value::as_str) == Some(role)
        && (fields.contains_key("tool_calls") || !fields.keys().any(|key| last.contains_key(key)))
    {
        for (key, value) in fields {
            match (last.get_mut(&key).and_then(Value::as_array_mut), value) {
                (Some(calls), Value::Array(more)) => calls.extend(more),
                (_, value) => _ = last.insert(key, value),
            }
        }
        return;
    }
    let mut message = Map::from_iter([("role".to_owned(), role.into())]);
    message.extend(fields);
    message.entry("content").or_insert(Value::Null);
    messages.push(message.into());
}

/// The text of a string or of parts of content.
fn text_of(content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Null => return Ok(String::new()),
        Value::Array(parts) => parts,
        _ => return Err(ApiError::invalid("expected 'content' to be a string or an array")),
    };
    let mut texts = Vec::new();
    for part in parts {
        let of = |field: &str| part.get(field).and_then(Value::as_str);
        match of("type") {
            Some("input_text" | "output_text" | "text" | "reasoning_text" | "summary_text") => {
                texts.push(of("text").unwrap_or_default());
            }
            Some("refusal") => texts.push(of("refusal").unwrap_or_default()),
            kind => {
                let kind = kind.unwrap_or("nothing");
                return Err(ApiError::invalid(format!(
                    "expected content of type input_text or output_text, found {kind}"
                )));
            }
        }
    }
    Ok(texts.join(BETWEEN_BLOCKS))
}

/// An item of the output.
struct Item {
    id: String,
    kind: Kind,
    text: String,
    call_id: String,
    name: String,
    done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call(usize),
}

impl Item {
    fn new(kind: Kind, call_id: &str, name: &str) -> Self {
        let prefix = match kind {
            Kind::Reasoning => "rs_",
            Kind::Message => "msg_",
            Kind::Call(_) => "fc_",
        };
        let (call_id, name) = (call_id.to_owned(), name.to_owned());
        Self { id: random_id(prefix), kind, text: String::new(), call_id, name, done: false }
    }

    fn part(&self) -> Value {
        json!({ "type": "output_text", "annotations": [], "logprobs": [], "text": self.text })
    }

    fn to_json(&self) -> Value {
        let status = if self.done { "completed" } else { "in_progress" };
        match self.kind {
            Kind::Reasoning => {
                let content = json!([{ "type": "reasoning_text", "text": self.text }]);
                let content = if self.done { content } else { json!([]) };
                json!({ "id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status })
            }
            Kind::Message => {
                let content = if self.done { json!([self.part()]) } else { json!([]) };
                json!({ "id": self.id, "type": "message", "role": "assistant", "content": content, "status": status })
            }
            Kind::Call(_) => json!({
                "id": self.id, "type": "function_call", "status": status,
                "call_id": self.call_id, "name": self.name, "arguments": self.text,
            }),
        }
    }
}

/// This API's format.
struct Responses {
    id: String,
    created: u64,
    name: String,
    readers: Readers,
    /// llama-server's additions to a stream, for who asks for them.
    tells_progress: bool,
    tells_timings: bool,
    begun: bool,
    items: Vec<Item>,
    n_events: u64,
}

impl Responses {
    fn response(&self, status: &str, answer: Option<&Answer>) -> Value {
        let n_cached = answer.map_or(0, |answer| answer.n_cached);
        let usage = answer.map(|answer| {
            json!({
                "input_tokens": answer.n_prompt,
                "output_tokens": answer.n_generated(),
                "total_tokens": answer.n_prompt + answer.n_generated(),
                "input_tokens_details": { "cached_tokens": n_cached },
                "output_tokens_details": { "reasoning_tokens": answer.n_thinking() },
            })
        });
        let reason = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.name,
            "output": self.items.iter().map(Item::to_json).collect::<Vec<_>>(),
            "usage": usage,
            "error": null,
            "incomplete_details": reason,
            "instructions": null,
            "metadata": {},
            "parallel_tool_calls": false,
            "tool_choice": "auto",
            "tools": [],
        })
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Chunk {
        data["sequence_number"] = self.n_events.into();
        self.n_events += 1;
        Chunk::named(name, data)
    }

    fn push(&mut self, delta: &Delta, chunks: &mut Vec<Chunk>) {
        if !delta.reasoning_content.is_empty() {
            self.add(Kind::Reasoning, ("", ""), &delta.reasoning_content, chunks);
        }
        if !delta.content.is_empty() {
            self.add(Kind::Message, ("", ""), &delta.content, chunks);
        }
        if let Some(call) = &delta.tool_call {
            self.add(Kind::Call(call.index), (&call.id, &call.name), &call.arguments, chunks);
        }
    }

    /// Adds text to the open item of this kind; another that is open is done.
    fn add(&mut self, kind: Kind, (call_id, name): (&str, &str), text: &str, chunks: &mut Vec<Chunk>) {
        if self.items.last().is_none_or(|item| item.kind != kind || item.done) {
            self.finish(chunks);
            self.items.push(Item::new(kind, call_id, name));
            let at = self.items.len() - 1;
            let (item, id) = (self.items[at].to_json(), self.items[at].id.clone());
            chunks.push(self.event("response.output_item.added", json!({ "output_index": at, "item": item })));
            if kind == Kind::Message {
                let part = self.items[at].part();
                let place = json!({ "item_id": id, "output_index": at, "content_index": 0, "part": part });
                chunks.push(self.event("response.content_part.added", place));
            }
        }
        let at = self.items.len() - 1;
        self.items[at].text.push_str(text);
        let name = match kind {
            Kind::Reasoning => "response.reasoning_text.delta",
            Kind::Message => "response.output_text.delta",
            Kind::Call(_) => "response.function_call_arguments.delta",
        };
        let mut data = json!({ "item_id": self.items[at].id, "output_index": at, "content_index": 0, "delta": text });
        if kind == Kind::Message {
            data["logprobs"] = json!([]);
        }
        if !text.is_empty() {
            chunks.push(self.event(name, data));
        }
    }

    /// Closes the open item.
    fn finish(&mut self, chunks: &mut Vec<Chunk>) {
        let Some(at) = self.items.len().checked_sub(1).filter(|&at| !self.items[at].done) else { return };
        self.items[at].done = true;
        let (id, text, kind) = (self.items[at].id.clone(), self.items[at].text.clone(), self.items[at].kind);
        let place = json!({ "item_id": id, "output_index": at, "content_index": 0 });
        let with = |key: &str, value: Value| {
            let mut data = place.clone();
            data[key] = value;
            data
        };
        match kind {
            Kind::Reasoning => chunks.push(self.event("response.reasoning_text.done", with("text", text.into()))),
            Kind::Message => {
                let mut data = with("text", text.into());
                data["logprobs"] = json!([]);
                chunks.push(self.event("response.output_text.done", data));
                let part = self.items[at].part();
                chunks.push(self.event("response.content_part.done", with("part", part)));
            }
            Kind::Call(_) => {
                let mut data = with("arguments", text.into());
                data["name"] = self.items[at].name.as_str().into();
                chunks.push(self.event("response.function_call_arguments.done", data));
            }
        }
        let item = self.items[at].to_json();
        chunks.push(self.event("response.output_item.done", json!({ "output_index": at, "item": item })));
    }
}

fn status(answer: &Answer) -> &'static str {
    if answer.is_complete() { "completed" } else { "incomplete" }
}

impl Reply for Responses {
    fn stream(&mut self, index: usize, answer: &Answer, update: &Update) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !self.begun {
            self.begun = true;
            for name in ["response.created", "response.in_progress"] {
                let response = self.response("in_progress", None);
                chunks.push(self.event(name, json!({ "response": response })));
            }
        }
        if let Some(done) = update.progress.filter(|_| self.tells_progress) {
            let mut progress =
                self.event("response.in_progress", json!({ "response": self.response("in_progress", None) }));
            progress.data["prompt_progress"] = answer.progress(done);
            chunks.push(progress);
        }
        for delta in self.readers.deltas(index, answer, update) {
            self.push(&delta, &mut chunks);
            if let Some(last) = chunks.last_mut().filter(|_| self.tells_timings) {
                last.data["timings"] = answer.timings();
            }
        }
        if update.ended {
            self.finish(&mut chunks);
            let status = status(answer);
            let name = if status == "completed" { "response.completed" } else { "response.incomplete" };
            let response = self.response(status, Some(answer));
            let mut last = self.event(name, json!({ "response": response }));
            last.data["timings"] = answer.timings();
            chunks.push(last);
        }
        chunks
    }

    fn failure(&self, error: &ApiError) -> Chunk {
        Chunk::named("error", error.to_json())
    }

    fn mark(&self) -> Option<&'static str> {
        None
    }

    fn whole(&mut self, answers: &[Answer]) -> Value {
        let Some(answer) = answers.first() else { return Value::Null };
        let message = self.readers.message(0, answer);
        self.items = items_of(&message);
        let mut response = self.response(status(answer), Some(answer));
        response["timings"] = answer.timings();
        response
    }

    fn id(&self) -> &str {
        &self.id
    }
}

fn items_of(message: &Message) -> Vec<Item> {
    let mut items = Vec::new();
    let mut push = |kind, call_id: &str, name: &str, text: &str| {
        items.push(Item { text: text.to_owned(), done: true, ..Item::new(kind, call_id, name) });
    };
    if !message.reasoning_content.is_empty() {
        push(Kind::Reasoning, "", "", &message.reasoning_content);
    }
    if !message.content.is_empty() {
        push(Kind::Message, "", "", &message.content);
    }
    for (index, call) in message.tool_calls.iter().enumerate() {
        push(Kind::Call(index), &call.id, &call.name, &call.arguments);
    }
    items
}
