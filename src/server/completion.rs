//! `/completion`, llama-server's own, and `/v1/completions`, OpenAI's older API: text goes on from a prompt as it is.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::engine::Stop;
use crate::llama::Model;
use crate::llama::chat::json_schema_to_grammar;

use super::app::{App, Ready};
use super::error::ApiError;
use super::generation::{Answer, Chunk, Reply, Update, now, probabilities, random_id, usage_of_all};
use super::guard::Body;
use super::plan::{GrammarPlan, Plan, Prompt, prompts};
use super::request::{Generate, read};

/// The fields of these endpoints beside those of all.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Fields {
    prompt: Value,
    grammar: Option<String>,
    json_schema: Option<Value>,
    logprobs: Option<usize>,
}

/// `POST /completion`.
pub async fn native(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    respond(&app, &body, |plan, generate, ready, prompts| {
        Box::new(Native::new(app.as_ref(), ready, plan, generate, prompts))
    })
    .await
}

/// `POST /v1/completions`.
pub async fn openai(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    respond(&app, &body, |plan, generate, ready, _| {
        Box::new(OpenAi {
            id: random_id("cmpl-"),
            created: now(),
            model: ready.model.clone(),
            name: app.model_name(),
            per_prompt: plan.n_choices,
            generate: generate.clone(),
            after_sampling: plan.alternatives.is_some_and(|alternatives| alternatives.after_sampling),
        })
    })
    .await
}

async fn respond(
    app: &Arc<App>,
    body: &Value,
    reply: impl FnOnce(&Plan, &Generate, &Ready, &[Prompt]) -> Box<dyn Reply>,
) -> Result<Response, ApiError> {
    let generate: Generate = read(body)?;
    let generation = tokio::task::block_in_place(|| {
        let ready = app.ready_for_more()?;
        let fields: Fields = read(body)?;
        let mut plan = Plan::new(app, ready, &generate, fields.logprobs)?;
        plan.grammar = grammar(fields.grammar, fields.json_schema)?;
        let prompts = prompts(&fields.prompt, &ready.model)?;
        let reply = reply(&plan, &generate, ready, &prompts);
        plan.start(app, ready, &prompts, reply)
    })?;
    generation.respond(generate.streams()).await
}

fn grammar(grammar: Option<String>, schema: Option<Value>) -> Result<Option<GrammarPlan>, ApiError> {
    match (grammar.filter(|grammar| !grammar.is_empty()), schema.filter(|schema| !schema.is_null())) {
        (Some(grammar), _) => GrammarPlan::own(grammar).map(Some),
        (None, Some(mut schema)) => {
            if schema.as_object().is_some_and(Map::is_empty) {
                schema = json!({ "type": "object" });
            }
            Ok(Some(GrammarPlan { gbnf: json_schema_to_grammar(&schema)?, ..GrammarPlan::default() }))
        }
        (None, None) => Ok(None),
    }
}

/// The text of a prompt, special tokens included.
fn text_of(prompt: &Prompt, model: &Model) -> String {
    let bytes: Vec<u8> = prompt.tokens.iter().flat_map(|&token| model.piece(token)).collect();
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
    after_sampling: bool,
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

    fn choice(&self, index: usize, text: &str, update: &[(crate::llama::Token, crate::engine::TokenChoice)]) -> Value {
        let logprobs =
            (!update.is_empty()).then(|| json!({ "content": probabilities(update, self.after_sampling, &self.model) }));
        json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": null })
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
        let mut choice = self.choice(index, &update.text, &update.choices);
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
        vec![Chunk::new(object)]
    }

    fn whole(&mut self, answers: &[Answer]) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| {
            let mut choice = self.choice(index, &answer.text, &answer.choices);
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
