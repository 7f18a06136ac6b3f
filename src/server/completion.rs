//! `/completion`, llama-server's own, and `/v1/completions`, OpenAI's older API: text goes on from a prompt as it is.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::engine::{Alternatives, Stop, TokenChoice};
use crate::llama::chat::json_schema_to_grammar;
use crate::llama::{Model, Token};

use super::app::{App, Ready};
use super::bodies::{CompletionFields, OpenAiFields};
use super::error::ApiError;
use super::fields::Api;
use super::generation::{Answer, Chunk, Reply, Update, now, probabilities, usage_of_all};
use super::guard::Body;
use super::names::random_id;
use super::plan::{GrammarPlan, Plan, Prompt, prompts};
use super::request::{Generate, read};
use super::schema;

/// `POST /completion`.
pub async fn native(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    let own = OpenAiFields::default();
    respond(&app, Api::Native, &body, &own, |plan, generate, ready, prompts| {
        Box::new(Native::new(app.as_ref(), ready, plan, generate, prompts))
    })
    .await
}

/// `POST /v1/completions`.
pub async fn openai(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    let own: OpenAiFields = read(&body)?;
    respond(&app, Api::Completions, &body, &own, |plan, generate, ready, prompts| {
        let echoed = |prompt: &Prompt| Echo { text: text_of(prompt, &ready.model), tokens: prompt.tokens.clone() };
        Box::new(OpenAi {
            id: random_id("cmpl-"),
            created: now(),
            model: ready.model.clone(),
            name: app.model_name(),
            per_prompt: plan.n_choices,
            generate: generate.clone(),
            alternatives: plan.alternatives,
            echoes: own.echo.unwrap_or(false).then(|| prompts.iter().map(echoed).collect()),
            n_told: vec![0; prompts.len() * plan.n_choices],
        })
    })
    .await
}

async fn respond(
    app: &Arc<App>,
    api: Api,
    body: &Value,
    own: &OpenAiFields,
    reply: impl FnOnce(&Plan, &Generate, &Ready, &[Prompt]) -> Box<dyn Reply>,
) -> Result<Response, ApiError> {
    app.check_fields(api, body)?;
    let generate: Generate = read(body)?;
    let generation = tokio::task::block_in_place(|| {
        let ready = app.ready_for_more()?;
        let fields: CompletionFields = read(body)?;
        let mut plan = Plan::new(app, ready, &generate, fields.logprobs)?;
        if let Some(best_of) = own.best_of.filter(|&best_of| best_of != plan.n_choices) {
            let n = plan.n_choices;
            return Err(ApiError::invalid(format!(
                "best_of: answers are not chosen among here; expected as many as n ({n}), found {best_of}"
            )));
        }
        plan.scores_prompt = own.echo.unwrap_or(false) && plan.alternatives.is_some();
        plan.grammar = grammar(fields.grammar, own.response_format.as_ref(), fields.json_schema.as_ref())?;
        let prompts = prompts(&fields.prompt, &ready.model)?;
        let reply = reply(&plan, &generate, ready, &prompts);
        plan.start(app, ready, &prompts, reply)
    })?;
    generation.respond(generate.streams()).await
}

fn grammar(
    grammar: Option<String>,
    format: Option<&Value>,
    schema: Option<&Value>,
) -> Result<Option<GrammarPlan>, ApiError> {
    let schema = schema::demanded(format, schema)?;
    match (grammar.filter(|grammar| !grammar.is_empty()), schema) {
        (Some(_), Some(_)) if format.is_some() => Err(ApiError::invalid("Cannot use both response_format and grammar")),
        (Some(grammar), _) => GrammarPlan::own(grammar, true).map(Some),
        (None, Some(schema)) => {
            let gbnf = json_schema_to_grammar(&schema)?;
            Ok(Some(GrammarPlan { gbnf, in_thinking: true, ..GrammarPlan::default() }))
        }
        (None, None) => Ok(None),
    }
}

/// The text of a prompt, special tokens included, but for what the model wants in front.
fn text_of(prompt: &Prompt, model: &Model) -> String {
    let bytes: Vec<u8> = prompt.tokens[prompt.added..].iter().flat_map(|&token| model.piece(token)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// llama-server's own format.
pub struct Native {
    id: String,
    model: Arc<Model>,
    name: String,
    settings: Map<String, Value>,
    prompts: Vec<String>,
    per_prompt: usize,
    generate: Generate,
    after_sampling: bool,
}

impl Native {
    /// For the answers to `prompts`.
    pub fn new(app: &App, ready: &Ready, plan: &Plan, generate: &Generate, prompts: &[Prompt]) -> Self {
        Self {
            id: random_id("cmpl-"),
            model: ready.model.clone(),
            name: app.model_name(),
            settings: plan.settings(),
            prompts: prompts.iter().map(|prompt| text_of(prompt, &ready.model)).collect(),
            per_prompt: plan.n_choices,
            generate: generate.clone(),
            after_sampling: plan.alternatives.is_some_and(|alternatives| alternatives.after_sampling),
        }
    }

    /// The object of an answer that is over.
    pub fn last(&self, index: usize, answer: &Answer, content: &str) -> Value {
        let stop = answer.ended.as_ref().map(|ended| &ended.stop);
        let stop_type = match stop {
            Some(Stop::End) => "eos",
            Some(Stop::Word(_)) => "word",
            Some(Stop::Length | Stop::ContextFull) => "limit",
            Some(Stop::Cancelled) | None => "none",
        };
        let tokens: Vec<i32> = match self.generate.return_tokens.unwrap_or(false) && !self.generate.streams() {
            true => answer.tokens.iter().map(|token| token.0).collect(),
            false => Vec::new(),
        };
        let mut object = json!({
            "index": index,
            "content": content,
            "tokens": tokens,
            "id": self.id,
            "id_slot": answer.slot,
            "stop": true,
            "model": self.name,
            "tokens_predicted": answer.n_generated(),
            "tokens_evaluated": answer.n_prompt,
            "generation_settings": self.settings,
            "prompt": self.prompts.get(index / self.per_prompt),
            "has_new_line": answer.text.contains('\n'),
            "truncated": stop == Some(&Stop::ContextFull),
            "stop_type": stop_type,
            "stopping_word": answer.stopping_word().unwrap_or_default(),
            "tokens_cached": answer.ended.as_ref().map_or(0, |ended| ended.tokens.len()),
            "timings": answer.timings(),
        });
        if !answer.choices.is_empty() {
            object["completion_probabilities"] = probabilities(&answer.choices, self.after_sampling, &self.model);
        }
        self.selected(object)
    }

    /// The `response_fields` of an object, if the request names any: `a/b` is the field `b` of `a`.
    fn selected(&self, object: Value) -> Value {
        let Some(fields) = self.generate.response_fields.as_ref().filter(|fields| !fields.is_empty()) else {
            return object;
        };
        let find = |field: &String| {
            let found = field.split('/').try_fold(&object, |value, key| value.get(key))?;
            Some((field.rsplit('/').next().unwrap_or(field).to_owned(), found.clone()))
        };
        fields.iter().filter_map(find).collect::<Map<_, _>>().into()
    }
}

impl Reply for Native {
    fn stream(&mut self, index: usize, answer: &Answer, update: &Update) -> Vec<Chunk> {
        if update.ended {
            return vec![Chunk::new(self.last(index, answer, &update.text))];
        }
        let progress = update.progress.filter(|_| self.generate.return_progress.unwrap_or(false));
        if update.tokens.is_empty() && progress.is_none() {
            return Vec::new();
        }
        let mut object = json!({
            "index": index,
            "content": update.text,
            "tokens": update.tokens.iter().map(|token| token.0).collect::<Vec<_>>(),
            "stop": false,
            "id_slot": answer.slot,
            "tokens_predicted": answer.n_generated(),
            "tokens_evaluated": answer.n_prompt,
        });
        if self.generate.timings_per_token.unwrap_or(false) {
            object["timings"] = answer.timings();
        }
        if let Some(done) = progress {
            object["prompt_progress"] = answer.progress(done);
        }
        if let Some(step) = update.step.filter(|_| self.generate.return_steps.unwrap_or(false)) {
            object["thinking_step"] = step.into();
        }
        if !update.choices.is_empty() {
            object["completion_probabilities"] = probabilities(&update.choices, self.after_sampling, &self.model);
        }
        vec![Chunk::new(object)]
    }

    fn mark(&self) -> Option<&'static str> {
        None
    }

    fn whole(&mut self, answers: &[Answer]) -> Value {
        let mut all: Vec<_> =
            answers.iter().enumerate().map(|(index, answer)| self.last(index, answer, &answer.text)).collect();
        if all.len() == 1 { all.remove(0) } else { all.into() }
    }

    fn id(&self) -> &str {
        &self.id
    }
}

/// OpenAI's format.
struct OpenAi {
    id: String,
    created: u64,
    model: Arc<Model>,
    name: String,
    per_prompt: usize,
    generate: Generate,
    alternatives: Option<Alternatives>,
    /// The prompts, if they are to stand before the answers.
    echoes: Option<Vec<Echo>>,
    /// Of every answer that is streamed, how many characters were told.
    n_told: Vec<usize>,
}

/// A prompt that is told again.
struct Echo {
    text: String,
    tokens: Vec<Token>,
}

impl OpenAi {
    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.name,
            "system_fingerprint": super::fingerprint(),
            "choices": choices,
        })
    }

    /// The prompt of an answer, to be told before it.
    fn echo(&self, index: usize) -> Option<&Echo> {
        self.echoes.as_ref()?.get(index / self.per_prompt)
    }

    /// A part of an answer that begins `offset` characters behind its beginning; `echo` comes first in it.
    fn choice(
        &self,
        index: usize,
        text: &str,
        choices: &[(Token, TokenChoice)],
        echo: Option<(&Echo, &Answer)>,
        offset: usize,
    ) -> Value {
        let prompt = echo.map_or("", |(echo, _)| &echo.text);
        let mut logprobs = Logprobs::new(self, offset);
        if let Some((echo, answer)) = echo.filter(|_| self.alternatives.is_some()) {
            logprobs.push_prompt(echo, &answer.scored);
        }
        logprobs.push(choices);
        json!({
            "text": format!("{prompt}{text}"),
            "index": index,
            "logprobs": logprobs.into_json(),
            "finish_reason": null,
        })
    }
}

/// The probabilities of tokens as OpenAI's API of texts has them, and in `content` as llama-server has them.
struct Logprobs<'a> {
    reply: &'a OpenAi,
    offset: usize,
    content: Vec<Value>,
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl<'a> Logprobs<'a> {
    fn new(reply: &'a OpenAi, offset: usize) -> Self {
        let (content, tokens, token_logprobs) = (Vec::new(), Vec::new(), Vec::new());
        Self { reply, offset, content, tokens, token_logprobs, top_logprobs: Vec::new(), text_offset: Vec::new() }
    }

    /// A prompt's tokens. Nothing foretells the first, and what the model wants in front is no part of the text.
    fn push_prompt(&mut self, echo: &Echo, scored: &[(Token, TokenChoice)]) {
        let Some(&first) = echo.tokens.first() else { return };
        let text = String::from_utf8_lossy(&self.reply.model.piece(first)).into_owned();
        self.text_offset.push(self.offset);
        self.offset += if echo.text.starts_with(&text) { text.chars().count() } else { 0 };
        self.tokens.push(text.into());
        self.token_logprobs.push(Value::Null);
        self.top_logprobs.push(Value::Null);
        self.push(scored);
    }

    fn push(&mut self, choices: &[(Token, TokenChoice)]) {
        let after_sampling = self.reply.alternatives.is_some_and(|alternatives| alternatives.after_sampling);
        let (one, top) = if after_sampling { ("prob", "top_probs") } else { ("logprob", "top_logprobs") };
        let Value::Array(entries) = probabilities(choices, after_sampling, &self.reply.model) else { return };
        for entry in entries {
            let text = entry["token"].as_str().unwrap_or_default();
            let tops = entry[top].as_array().into_iter().flatten();
            let tops = tops.map(|entry| (entry["token"].as_str().unwrap_or_default().to_owned(), entry[one].clone()));
            self.text_offset.push(self.offset);
            self.offset += text.chars().count();
            self.tokens.push(text.into());
            self.token_logprobs.push(entry[one].clone());
            self.top_logprobs.push(tops.collect::<Map<_, _>>().into());
            self.content.push(entry);
        }
    }

    fn into_json(self) -> Value {
        match self.tokens.is_empty() {
            true => Value::Null,
            false => json!({
                "content": self.content,
                "tokens": self.tokens,
                "token_logprobs": self.token_logprobs,
                "top_logprobs": self.top_logprobs,
                "text_offset": self.text_offset,
            }),
        }
    }
}

fn finish_reason(answer: &Answer) -> &'static str {
    if answer.is_complete() { "stop" } else { "length" }
}

impl Reply for OpenAi {
    fn stream(&mut self, index: usize, answer: &Answer, update: &Update) -> Vec<Chunk> {
        let progress = update.progress.filter(|_| self.generate.return_progress.unwrap_or(false));
        if update.tokens.is_empty() && progress.is_none() && !update.ended {
            return Vec::new();
        }
        let is_first = self.n_told[index] == 0 && (update.first || update.ended);
        let echo = self.echo(index).filter(|_| is_first).map(|echo| (echo, answer));
        let mut choice = self.choice(index, &update.text, &update.choices, echo, self.n_told[index]);
        self.n_told[index] += choice["text"].as_str().map_or(0, |text| text.chars().count());
        if update.ended {
            choice["finish_reason"] = finish_reason(answer).into();
        }
        let mut object = self.object(vec![choice]);
        if update.ended || self.generate.timings_per_token.unwrap_or(false) {
            object["timings"] = answer.timings();
        }
        if update.ended && answer.n_prompt > 0 {
            object["usage"] = answer.usage();
        }
        if let Some(done) = progress {
            object["prompt_progress"] = answer.progress(done);
        }
        if let Some(step) = update.step.filter(|_| self.generate.return_steps.unwrap_or(false)) {
            object["thinking_step"] = step.into();
        }
        vec![Chunk::new(object)]
    }

    fn whole(&mut self, answers: &[Answer]) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| {
            let echo = self.echo(index).map(|echo| (echo, answer));
            let mut choice = self.choice(index, &answer.text, &answer.choices, echo, 0);
            choice["finish_reason"] = finish_reason(answer).into();
            choice
        });
        let mut object = self.object(choices.collect());
        object["usage"] = usage_of_all(answers, self.per_prompt);
        if let Some(answer) = answers.first() {
            object["timings"] = answer.timings();
        }
        object
    }

    fn id(&self) -> &str {
        &self.id
    }
}
