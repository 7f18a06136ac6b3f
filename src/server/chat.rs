//! `/v1/chat/completions`: a conversation goes on, with thinking, tools and schemas as the model's template has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::engine::{Prompt as Rendered, TokenChoice, Triggers, prompt_tokens};
use crate::llama::chat::{
    Applied, ChatInput, Delta, GrammarTrigger, Message, ReasoningFormat, ToolChoice, TriggerKind,
};
use crate::llama::{Model, Token};
use crate::trace::Family;

use super::app::{App, Ready};
use super::completion::Native;
use super::error::ApiError;
use super::generation::{Answer, Chunk, Generation, Reply, Update, now, probabilities, random_id, usage_of_all};
use super::guard::Body;
use super::plan::{GrammarPlan, Plan, Prompt};
use super::reading::Readers;
use super::request::{Generate, read};
use super::tools;

/// Likeliest tokens that `logprobs` reports where `top_logprobs` says nothing; llama-server's number.
const TOP_LOGPROBS: usize = 20;

/// The fields of a chat beside those of all endpoints.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    messages: Option<Vec<Map<String, Value>>>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<ResponseFormat>,
    json_schema: Option<Value>,
    grammar: Option<String>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<Value>,
    reasoning_format: Option<ReasoningFormat>,
    reasoning_effort: Option<String>,
    chat_template_kwargs: Option<Map<String, Value>>,
    reasoning_budget_tokens: Option<i64>,
    thinking_budget_tokens: Option<i64>,
    reasoning_budget_message: Option<String>,
    echo: Option<bool>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseFormat {
    r#type: Option<String>,
    schema: Option<Value>,
    json_schema: Option<SchemaOf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SchemaOf {
    schema: Option<Value>,
}

/// Leaves a request's other answers out, for APIs that have a place for one alone.
pub fn one_answer(chat: &mut Map<String, Value>) {
    chat.shift_remove("n");
    chat.shift_remove("n_cmpl");
}

/// A conversation, rendered, and how its answers are to be read.
pub struct Conversation {
    applied: Applied,
    fields: Fields,
    reasoning_format: ReasoningFormat,
}

/// `POST /v1/chat/completions`.
pub async fn completions(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    let generate: Generate = read(&body)?;
    let generation = tokio::task::block_in_place(|| {
        let ready = app.ready_for_more()?;
        let conversation = Conversation::read(&app, ready, &body)?;
        if generate.streams() && conversation.has_tools() && conversation.fields.logprobs == Some(true) {
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
            }))
        })
    })?;
    generation.respond(generate.streams()).await
}

/// `POST /apply-template`.
pub async fn apply_template(State(app): State<Arc<App>>, Body(body): Body) -> Result<Json<Value>, ApiError> {
    let conversation = tokio::task::block_in_place(|| Conversation::read(&app, app.ready()?, &body))?;
    Ok(Json(json!({ "prompt": conversation.applied.prompt })))
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

impl Conversation {
    /// Renders the conversation of a request.
    pub fn read(app: &App, ready: &Ready, body: &Value) -> Result<Self, ApiError> {
        let fields: Fields = read(body)?;
        let input = input(app, ready, &fields)?;
        let reasoning_format = input.reasoning_format;
        Ok(Self { applied: ready.templates.apply(&input)?, fields, reasoning_format })
    }

    fn has_tools(&self) -> bool {
        self.fields.tools.as_ref().and_then(Value::as_array).is_some_and(|tools| !tools.is_empty())
    }

    /// What reads its `n` answers.
    pub fn readers(&self, ready: &Ready, n: usize) -> Result<Readers, ApiError> {
        let apart = self.reasoning_format != ReasoningFormat::None;
        Readers::new(&self.applied, apart.then_some(&ready.markers), n)
    }

    fn prompt(&self, model: &Model) -> Prompt {
        let prompt = &self.applied.prompt;
        let conversation = prompt.strip_suffix(&self.applied.generation_prompt).unwrap_or(prompt);
        let opening = prompt[conversation.len()..].to_owned();
        let (tokens, question) = prompt_tokens(model, &Rendered { conversation: conversation.to_owned(), opening });
        Prompt { tokens, question }
    }

    /// Puts its answers in line.
    pub fn start(
        self,
        app: &Arc<App>,
        ready: &Ready,
        generate: &Generate,
        reply: impl FnOnce(&Self, &Plan, &[Prompt]) -> Result<Box<dyn Reply>, ApiError>,
    ) -> Result<Generation, ApiError> {
        let fields = &self.fields;
        let n_probs = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
            (true, top) => Some(top.unwrap_or(TOP_LOGPROBS).max(1)),
            (false, Some(_)) => return Err(ApiError::invalid("top_logprobs requires logprobs to be set to true")),
            (false, None) => None,
        };
        let mut plan = Plan::new(app, ready, generate, n_probs)?;
        plan.stop.extend(self.applied.additional_stops.iter().cloned());
        plan.preserved = self.applied.preserved_tokens.iter().filter_map(|text| ready.model.token_of(text)).collect();
        plan.grammar = self.grammar(ready)?;
        plan.budget = self.budget(app);
        let prompts = [self.prompt(&ready.model)];
        let reply = reply(&self, &plan, &prompts)?;
        plan.start(app, ready, &prompts, reply)
    }

    fn grammar(&self, ready: &Ready) -> Result<Option<GrammarPlan>, ApiError> {
        let (applied, own) = (&self.applied, self.fields.grammar.as_ref().filter(|grammar| !grammar.is_empty()));
        if let Some(gbnf) = own {
            return GrammarPlan::own(gbnf.clone()).map(Some);
        }
        if applied.grammar.is_empty() {
            return Ok(None);
        }
        // What the template opens the answer with is part of the grammars that llama.cpp makes.
        let opening = match applied.grammar_lazy {
            true => Vec::new(),
            false => ready.model.tokenize(&applied.generation_prompt, false, true),
        };
        let triggers = applied.grammar_lazy.then(|| Triggers {
            // Its channels of tools come before the one that ends thinking.
            in_thinking: ready.family == Family::Harmony,
            ..triggers(applied, &ready.model)
        });
        Ok(Some(GrammarPlan { gbnf: applied.grammar.clone(), triggers, opening }))
    }

    fn budget(&self, app: &App) -> Option<(usize, String)> {
        let own = self.fields.reasoning_budget_tokens.or(self.fields.thinking_budget_tokens);
        let tokens = own.and_then(|tokens| usize::try_from(tokens).ok()).or(app.options.reasoning_budget)?;
        Some((tokens, self.fields.reasoning_budget_message.clone().unwrap_or_default()))
    }
}

/// What the template is given.
fn input(app: &App, ready: &Ready, fields: &Fields) -> Result<ChatInput, ApiError> {
    let options = &app.options;
    let Some(messages) = &fields.messages else { return Err(ApiError::invalid("'messages' is required")) };
    check_messages(messages)?;
    let (tools, tool_choice) = tools::choose(fields.tools.as_ref(), fields.tool_choice.as_ref())?;
    let can_call = ready.templates.caps().get("supports_tools").and_then(Value::as_bool).unwrap_or(true);
    if !tools.is_null() && tool_choice == ToolChoice::Required && !can_call {
        return Err(ApiError::invalid(
            "tool_choice: the model's chat template has no place for tools to be called from",
        ));
    }
    let grammar = fields.grammar.clone().unwrap_or_default();
    if !tools.is_null() && fields.grammar.is_some() && tool_choice != ToolChoice::None {
        return Err(ApiError::invalid("Cannot use custom grammar constraints with tools."));
    }
    let json_schema = json_schema(fields)?;
    if json_schema.is_some() && !grammar.is_empty() {
        return Err(ApiError::invalid("Cannot use both json_schema and grammar"));
    }
    let mut kwargs = options.template_kwargs.clone();
    kwargs.extend(fields.chat_template_kwargs.clone().unwrap_or_default());
    let mut enable_thinking = match kwargs.get("enable_thinking") {
        None => options.enable_thinking.unwrap_or(true),
        Some(Value::Bool(enable)) => *enable,
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "invalid type for \"enable_thinking\" (expected boolean, got {other})"
            )));
        }
    };
    match fields.reasoning_effort.as_deref() {
        None | Some("") => {}
        Some("none") => {
            enable_thinking = false;
            kwargs.shift_remove("reasoning_effort");
        }
        Some(effort) => {
            kwargs.insert("reasoning_effort".into(), effort.into());
        }
    }
    let (continue_final_message, add_generation_prompt) = continuation(app, fields, messages)?;
    Ok(ChatInput {
        messages: messages.iter().cloned().map(Value::Object).collect(),
        tools,
        tool_choice,
        parallel_tool_calls: fields.parallel_tool_calls.unwrap_or_else(|| {
            ready.templates.caps().get("supports_parallel_tool_calls").and_then(Value::as_bool).unwrap_or(false)
        }),
        json_schema,
        grammar,
        jinja: options.jinja,
        add_generation_prompt,
        continue_final_message,
        reasoning_format: fields.reasoning_format.unwrap_or(options.reasoning_format),
        enable_thinking,
        chat_template_kwargs: kwargs,
        echo: fields.echo.unwrap_or(false),
    })
}

fn check_messages(messages: &[Map<String, Value>]) -> Result<(), ApiError> {
    for message in messages {
        let is_assistant = message.get("role").and_then(Value::as_str) == Some("assistant");
        let content = message.get("content");
        if content.is_none() && !(is_assistant && message.contains_key("tool_calls")) {
            return Err(ApiError::invalid(match is_assistant {
                true => "Assistant message must contain either 'content' or 'tool_calls'!",
                false => "All non-assistant messages must contain 'content'",
            }));
        }
        match content {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(Value::Array(parts)) => parts.iter().try_for_each(check_part)?,
            Some(_) => return Err(ApiError::invalid("Expected 'content' to be a string or an array")),
        }
    }
    Ok(())
}

fn check_part(part: &Value) -> Result<(), ApiError> {
    match part.get("type").and_then(Value::as_str) {
        Some("text" | "refusal") => Ok(()),
        Some(kind @ ("image_url" | "input_audio" | "video_url")) => {
            Err(ApiError::invalid(format!("{kind}: this server reads text alone; it has no multimodal projector")))
        }
        Some(kind) => Err(ApiError::invalid(format!("unsupported content[].type: {kind}"))),
        None => Err(ApiError::invalid("expected every part of 'content' to have a 'type'")),
    }
}

fn json_schema(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let given = fields.json_schema.clone().filter(|schema| !schema.is_null());
    let any = || json!({ "type": "object" });
    let format = fields.response_format.as_ref();
    let schema = match format.and_then(|format| format.r#type.as_deref()) {
        None | Some("" | "text") => given,
        Some("json_object") => Some(format.and_then(|format| format.schema.clone()).or(given).unwrap_or_else(any)),
        Some("json_schema") => {
            let wrapped = format.and_then(|format| format.json_schema.as_ref()?.schema.clone());
            Some(wrapped.unwrap_or_else(any))
        }
        Some(other) => {
            let message = "response_format type must be one of \"text\", \"json_object\" or \"json_schema\", but got";
            return Err(ApiError::invalid(format!("{message}: {other}")));
        }
    };
    if let Some(other) = schema.as_ref().filter(|schema| !schema.is_object() && !schema.is_boolean()) {
        return Err(ApiError::invalid(format!("response_format: expected the schema to be an object, found {other}")));
    }
    // An empty schema means any object.
    Ok(schema.map(|schema| if schema.as_object().is_some_and(Map::is_empty) { any() } else { schema }))
}

/// Whether the last message is gone on with, and whether a new one is opened.
fn continuation(app: &App, fields: &Fields, messages: &[Map<String, Value>]) -> Result<(Value, bool), ApiError> {
    let role = |message: &Map<String, Value>| message.get("role").and_then(Value::as_str) == Some("assistant");
    let by_assistant = messages.last().is_some_and(role);
    let asked =
        fields.continue_final_message.clone().filter(|value| !matches!(value, Value::Null | Value::Bool(false)));
    let add_generation_prompt = fields.add_generation_prompt.unwrap_or(true);
    let (continuation, add_generation_prompt) = match asked {
        Some(_) if add_generation_prompt => {
            let message = "Cannot set both add_generation_prompt and continue_final_message to true.";
            return Err(ApiError::invalid(message));
        }
        Some(asked) => (asked, false),
        None if app.options.prefill_assistant && by_assistant => {
            if messages.len() > 1 && role(&messages[messages.len() - 2]) {
                let message = "Cannot have 2 or more assistant messages at the end of the list.";
                return Err(ApiError::invalid(message));
            }
            (Value::Bool(true), false)
        }
        None => return Ok((Value::Bool(false), add_generation_prompt)),
    };
    let calls_tools = messages.last().and_then(|message| message.get("tool_calls")?.as_array());
    if calls_tools.is_some_and(|calls| !calls.is_empty()) {
        return Err(ApiError::invalid("Cannot continue an assistant message that contains tool calls."));
    }
    Ok((continuation, add_generation_prompt))
}

fn triggers(applied: &Applied, model: &Model) -> Triggers {
    let mut triggers = Triggers::default();
    for GrammarTrigger { kind, value, token } in &applied.grammar_triggers {
        // A word that is one token needs no search of the text.
        let as_token = token.or_else(|| model.token_of(value).filter(|_| *kind == TriggerKind::Word));
        match (as_token, kind) {
            (Some(token), _) => triggers.tokens.push(token),
            (None, TriggerKind::Word | TriggerKind::Token) => triggers.patterns.push(escaped(value)),
            (None, TriggerKind::Pattern) => triggers.patterns.push(value.clone()),
            (None, TriggerKind::PatternFull) => {
                triggers.patterns.push(format!("^{}$", value.trim_start_matches('^').trim_end_matches('$')));
            }
        }
    }
    triggers
}

/// A regular expression that finds `text`.
fn escaped(text: &str) -> String {
    let mut expression = String::new();
    for character in text.chars() {
        if r"\.^$|()[]{}*+?".contains(character) {
            expression.push('\\');
        }
        expression.push(character);
    }
    expression
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
        let deltas = self.readers.deltas(index, update);
        chunks.extend(deltas.iter().map(|delta| self.delta(index, delta_json(delta))));
        if let Some(last) = chunks.last_mut() {
            if !update.choices.is_empty() {
                last["choices"][0]["logprobs"] = self.logprobs(&update.choices);
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
