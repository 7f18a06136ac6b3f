//! `/v1/chat/completions`: a conversation goes on, with thinking, tools and schemas as the model's template has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::engine::TokenChoice;
use crate::llama::chat::{Delta, Message};
use crate::llama::{Model, Token};

use super::app::App;
use super::completion::Native;
use super::conversation::Conversation;
use super::error::ApiError;
use super::fields::Api;
use super::generation::{Answer, Chunk, Reply, Update, now, probabilities, usage_of_all};
use super::guard::Body;
use super::names::random_id;
use super::reading::Readers;
use super::request::{Generate, read};

/// `POST /v1/chat/completions`.
pub async fn completions(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    app.check_fields(Api::Chat, &body)?;
    let generate: Generate = read(&body)?;
    let generation = tokio::task::block_in_place(|| {
        let ready = app.ready_for_more()?;
        let conversation = Conversation::read(&app, ready, &body)?;
        if generate.streams() && conversation.has_tools() && conversation.has_logprobs() {
            return Err(ApiError::invalid("logprobs is not supported with tools + stream"));
        }
        conversation.start(&app, ready, &generate, |conversation, plan, prompts| {
            Ok(Box::new(Chat {
                id: random_id("chatcmpl-"),
                created: now(),
                name: app.model_name(),
                model: ready.model.clone(),
                verbose: generate
                    .verbose
                    .unwrap_or(app.options.verbose)
                    .then(|| Native::new(app.as_ref(), ready, plan, &generate, prompts)),
                generate: generate.clone(),
                after_sampling: plan.alternatives.is_some_and(|alternatives| alternatives.after_sampling),
                readers: conversation.readers(ready, plan.n_choices)?,
                untold: vec![Vec::new(); plan.n_choices],
            }))
        })
    })?;
    generation.respond(generate.streams()).await
}

/// `POST /apply-template`.
pub async fn apply_template(State(app): State<Arc<App>>, Body(body): Body) -> Result<Json<Value>, ApiError> {
    let conversation = tokio::task::block_in_place(|| Conversation::read(&app, app.ready()?, &body))?;
    Ok(Json(json!({ "prompt": conversation.text() })))
}

/// `POST /v1/chat/completions/input_tokens`.
pub async fn count_tokens(State(app): State<Arc<App>>, Body(body): Body) -> Result<Json<Value>, ApiError> {
    let n = tokio::task::block_in_place(|| n_tokens(&app, &body))?;
    Ok(Json(json!({ "object": "response.input_tokens", "input_tokens": n })))
}

/// Tokens of a conversation's prompt.
pub fn n_tokens(app: &App, body: &Value) -> Result<usize, ApiError> {
    let ready = app.ready()?;
    Ok(Conversation::read(app, ready, body)?.prompt(&ready.model).tokens.len())
}

/// OpenAI's format of a chat.
struct Chat {
    id: String,
    created: u64,
    name: String,
    model: Arc<Model>,
    generate: Generate,
    after_sampling: bool,
    readers: Readers,
    /// Of every answer that is streamed, the probabilities of tokens whose text is held back.
    untold: Vec<Vec<(Token, TokenChoice)>>,
    /// What llama-server's own API would say, for who asks for `verbose`.
    verbose: Option<Native>,
}

impl Chat {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        self.object("chat.completion.chunk", choices)
    }

    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": super::fingerprint(),
            "choices": choices,
        })
    }

    fn delta(&self, index: usize, delta: Value) -> Value {
        self.chunk(vec![json!({ "index": index, "delta": delta, "finish_reason": null })])
    }

    fn logprobs(&self, choices: &[(Token, TokenChoice)]) -> Value {
        json!({ "content": probabilities(choices, self.after_sampling, &self.model) })
    }
}

impl Reply for Chat {
    fn stream(&mut self, index: usize, answer: &Answer, update: &Update) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let progress = update.progress.filter(|_| self.generate.return_progress.unwrap_or(false));
        if update.first || progress.is_some() {
            chunks.push(self.delta(index, json!({ "role": "assistant", "content": null })));
        }
        let deltas = self.readers.deltas(index, answer, update);
        chunks.extend(deltas.iter().map(|delta| self.delta(index, delta_json(delta))));
        self.untold[index].extend_from_slice(&update.choices);
        let step = update.step.filter(|_| self.generate.return_steps.unwrap_or(false));
        if chunks.is_empty() && (step.is_some() || (update.ended && !self.untold[index].is_empty())) {
            chunks.push(self.delta(index, json!({})));
        }
        if let Some(step) = step {
            chunks[0]["thinking_step"] = step.into();
        }
        if let Some(last) = chunks.last_mut() {
            let told = std::mem::take(&mut self.untold[index]);
            if !told.is_empty() {
                last["choices"][0]["logprobs"] = self.logprobs(&told);
            }
            if self.generate.timings_per_token.unwrap_or(false) && !deltas.is_empty() {
                last["timings"] = answer.timings();
            }
            if let Some(done) = progress {
                last["prompt_progress"] = answer.progress(done);
            }
        }
        if update.ended {
            let reason = finish_reason(answer, self.readers.calls_tools(index));
            let mut last = self.chunk(vec![json!({ "index": index, "delta": {}, "finish_reason": reason })]);
            last["timings"] = answer.timings();
            chunks.push(last);
            if let Some(native) = &self.verbose {
                chunks[0]["__verbose"] = native.last(index, answer, &answer.text);
            }
        }
        chunks.into_iter().map(Chunk::new).collect()
    }

    fn close(&mut self, answers: &[Answer]) -> Vec<Chunk> {
        if !self.generate.includes_usage() {
            return Vec::new();
        }
        let mut last = self.chunk(Vec::new());
        last["usage"] = usage_of_all(answers, answers.len());
        last["timings"] = answers.first().map(Answer::timings).into();
        vec![Chunk::new(last)]
    }

    fn whole(&mut self, answers: &[Answer]) -> Value {
        let mut choices = Vec::new();
        for (index, answer) in answers.iter().enumerate() {
            let message = self.readers.message(index, answer);
            let reason = finish_reason(answer, !message.tool_calls.is_empty());
            let mut choice = json!({ "index": index, "message": message_json(&message), "finish_reason": reason });
            if !answer.choices.is_empty() {
                choice["logprobs"] = self.logprobs(&answer.choices);
            }
            choices.push(choice);
        }
        let mut object = self.object("chat.completion", choices);
        object["usage"] = usage_of_all(answers, answers.len());
        object["timings"] = answers.first().map(Answer::timings).into();
        if let (Some(native), Some(answer)) = (&self.verbose, answers.first()) {
            object["__verbose"] = native.last(0, answer, &answer.text);
        }
        object
    }

    fn id(&self) -> &str {
        &self.id
    }
}

fn finish_reason(answer: &Answer, calls_tools: bool) -> &'static str {
    match (answer.is_complete(), calls_tools) {
        (true, true) => "tool_calls",
        (true, false) => "stop",
        (false, _) => "length",
    }
}

fn delta_json(delta: &Delta) -> Value {
    let mut object = Map::new();
    if !delta.reasoning_content.is_empty() {
        object.insert("reasoning_content".into(), delta.reasoning_content.as_str().into());
    }
    if !delta.content.is_empty() {
        object.insert("content".into(), delta.content.as_str().into());
    }
    if let Some(call) = &delta.tool_call {
        let mut function = Map::new();
        if !call.name.is_empty() {
            function.insert("name".into(), call.name.as_str().into());
        }
        function.insert("arguments".into(), call.arguments.as_str().into());
        let mut entry = json!({ "index": call.index, "function": function });
        if !call.id.is_empty() {
            entry["id"] = call.id.as_str().into();
            entry["type"] = "function".into();
        }
        object.insert("tool_calls".into(), json!([entry]));
    }
    object.into()
}

fn message_json(message: &Message) -> Value {
    let mut object = json!({ "role": "assistant", "content": message.content });
    if !message.reasoning_content.is_empty() {
        object["reasoning_content"] = message.reasoning_content.as_str().into();
    }
    if !message.tool_calls.is_empty() {
        if message.content.is_empty() {
            object["content"] = Value::Null;
        }
        let calls = message.tool_calls.iter().map(|call| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "type": "function", "function": function, "id": call.id })
        });
        object["tool_calls"] = calls.collect();
    }
    object
}
