//! From what a request asks for to jobs for the engine.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::engine::{Alternatives, EngineError, Grammar, Sampler, SamplingParams, Triggers, Work, tokenize};
use crate::llama::{Model, Token};
use crate::stepflow::{StepFlowConfig, Window};

use super::app::{App, Ready};
use super::error::ApiError;
use super::generation::{Generation, Reply};
use super::request::{Generate, sampling_json};

/// Answers that one request can ask for in all.
const MAX_ANSWERS: usize = 256;

/// Bytes of a request's own grammar: llama.cpp recurses over its rules, and compares them with each other.
const MAX_GRAMMAR: usize = 64 << 10;

/// A tokenized prompt.
pub struct Prompt {
    pub tokens: Vec<Token>,
    /// How many of them the model wants in front of every text.
    pub added: usize,
    /// How many of them come before the opening of the answer.
    pub question: usize,
}

/// A grammar to keep to.
#[derive(Debug, Clone, Default)]
pub struct GrammarPlan {
    pub gbnf: String,
    /// What it waits for; it holds from the start if `None`.
    pub triggers: Option<Triggers>,
    /// Whether it holds while the model thinks, too.
    pub in_thinking: bool,
    /// Tokens of the prompt that belong to what it describes.
    pub opening: Vec<Token>,
}

/// How all answers of a request are generated.
pub struct Plan {
    pub n_choices: usize,
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub sampling: SamplingParams,
    pub grammar: Option<GrammarPlan>,
    /// Special tokens that are text.
    pub preserved: HashSet<Token>,
    /// Tokens of thinking, and what is said when they are spent.
    pub budget: Option<(usize, String)>,
    pub alternatives: Option<Alternatives>,
    /// Whether they are of the prompt's tokens, too.
    pub scores_prompt: bool,
    pub stepflow: StepFlowConfig,
    generate: Generate,
}

impl GrammarPlan {
    /// A request's own grammar: of the answer, which thinking comes before, or of a text that goes on from a prompt.
    pub fn own(gbnf: String, in_thinking: bool) -> Result<Self, ApiError> {
        match gbnf.len() {
            0..=MAX_GRAMMAR => Ok(Self { gbnf, in_thinking, ..Self::default() }),
            n => Err(ApiError::invalid(format!("grammar: expected at most {MAX_GRAMMAR} bytes, found {n}"))),
        }
    }
}

impl Plan {
    /// The plan of a request that says `generate`. `n_probs` is what its API asks for by another name.
    pub fn new(app: &App, ready: &Ready, generate: &Generate, n_probs: Option<usize>) -> Result<Self, ApiError> {
        let off = StepFlowConfig::default();
        let stepflow = generate.stepflow(&ready.stepflow, ready.stepflow_settings.as_ref().unwrap_or(&off))?;
        stepflow.validate_for(ready.model.n_layer())?;
        if ready.stepflow_settings.is_none() && generate.asks_for_stepflow() {
            return Err(ApiError::invalid(
                "stepflow: this server has no StepFlow. Start it with --stepflow, or with -fa off to leave it to requests",
            ));
        }
        Ok(Self {
            n_choices: generate.n_choices()?,
            max_tokens: generate.max_tokens(app.options.max_tokens),
            stop: generate.stop()?,
            sampling: generate.sampling(&ready.sampling, &ready.model, ready.n_ctx)?,
            grammar: None,
            preserved: HashSet::new(),
            budget: None,
            alternatives: generate.alternatives(n_probs)?,
            scores_prompt: false,
            stepflow,
            generate: generate.clone(),
        })
    }

    /// Puts the answers to `prompts` in line, `n_choices` to each.
    pub fn start(
        self,
        app: &Arc<App>,
        ready: &Ready,
        prompts: &[Prompt],
        reply: Box<dyn Reply>,
    ) -> Result<Generation, ApiError> {
        let n_answers = prompts.len().saturating_mul(self.n_choices);
        if n_answers > MAX_ANSWERS {
            let message = format!("expected at most {MAX_ANSWERS} answers to all prompts, found {n_answers}");
            return Err(ApiError::invalid(message));
        }
        if let Some(n_prompt) = prompts.iter().map(|prompt| prompt.tokens.len()).find(|&n| n >= ready.n_ctx) {
            return Err(EngineError::PromptTooLong { n_prompt, n_ctx: ready.n_ctx }.into());
        }
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let mut works = Vec::new();
        for prompt in prompts {
            for choice in 0..self.n_choices {
                let (index, tell) = (works.len(), tell.clone());
                let client = tell.clone();
                let on_event = Box::new(move |event| tell.send((index, event)).is_ok());
                let mut work = Work::new(prompt.tokens.clone(), self.sampler(&ready.model, choice)?, on_event);
                work.question = prompt.question;
                work.is_wanted = Box::new(move || !client.is_closed());
                self.set(&mut work, ready);
                works.push(work);
            }
        }
        let n = works.len();
        app.submit(works)?;
        Ok(Generation::new(app.clone(), n, told, reply))
    }

    fn sampler(&self, model: &Model, choice: usize) -> Result<Sampler, ApiError> {
        // The same seed would give the same answer every time.
        let seed = self.sampling.seed.map(|seed| seed.wrapping_add(choice as u32));
        let grammar = self.grammar.as_ref().map(|plan| {
            Grammar::new(model, &plan.gbnf, plan.triggers.as_ref(), plan.in_thinking)
                .and_then(|grammar| grammar.after(&plan.opening))
        });
        let params = SamplingParams { seed, ..self.sampling.clone() };
        Ok(Sampler::new(&params, model).with_grammar(grammar.transpose()?))
    }

    fn set(&self, work: &mut Work, ready: &Ready) {
        work.max_tokens = self.max_tokens;
        work.max_time = self.generate.max_time();
        work.stop.clone_from(&self.stop);
        work.preserved.clone_from(&self.preserved);
        work.stepflow = self.stepflow.clone();
        work.cache_prompt = self.generate.cache_prompt.unwrap_or(true);
        work.slot = self.generate.slot();
        work.alternatives = self.alternatives;
        work.scores_prompt = self.scores_prompt;
        if let Some((tokens, message)) = &self.budget {
            work.limit_thinking(*tokens, message, &ready.markers);
        }
    }

    /// llama-server's `generation_settings`.
    pub fn settings(&self) -> Map<String, Value> {
        let mut settings = sampling_json(&self.sampling);
        let n_predict = self.max_tokens.map_or(-1, |n| n as i64);
        let own = json!({
            "max_tokens": n_predict,
            "n_predict": n_predict,
            "stop": self.stop,
            "stream": self.generate.streams(),
            "n_probs": self.alternatives.map_or(0, |alternatives| alternatives.n),
            "post_sampling_probs": self.alternatives.is_some_and(|alternatives| alternatives.after_sampling),
            "timings_per_token": self.generate.timings_per_token.unwrap_or(false),
            "grammar": self.grammar.as_ref().map_or("", |grammar| &grammar.gbnf),
            "stepflow": stepflow_json(&self.stepflow),
        });
        settings.extend(own.as_object().cloned().unwrap_or_default());
        settings
    }
}

/// Repairs as a request would ask for them.
pub fn stepflow_json(config: &StepFlowConfig) -> Value {
    let oeb = config.oeb.as_ref();
    let smi = config.smi.as_ref();
    json!({
        "oeb": oeb.is_some(),
        "smi": smi.is_some(),
        "oeb_layers": oeb.map(|oeb| oeb.layers.to_string()),
        "tau_max": oeb.map(|oeb| as_written(oeb.tau_max)),
        "smi_layers": smi.map(|smi| smi.layers.to_string()),
        "alpha": smi.map(|smi| as_written(smi.alpha)),
        "smi_window": smi.map(|smi| match smi.window {
            Window::Last(cells) => json!(cells),
            Window::Step => json!("step"),
        }),
    })
}

/// 0.15 in 32 bits is 0.15, not 0.1500000060.
fn as_written(number: f32) -> Option<f64> {
    number.to_string().parse().ok()
}

/// The prompts that `prompt` stands for: a text, tokens, a mix of both in one list, or a list of such.
///
/// # Errors
/// When it is something else, or a number is no token of the model.
pub fn prompts(prompt: &Value, model: &Model) -> Result<Vec<Prompt>, ApiError> {
    let one = |value: &Value| {
        let (tokens, added) = mixed(value, model)?;
        Ok(Prompt { tokens, added, question: 0 })
    };
    match prompt {
        Value::Array(items) if items.is_empty() => Err(ApiError::invalid("\"prompt\" must not be empty")),
        Value::Array(items) if !items.iter().any(Value::is_number) => items.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Tokens of a text, of a list of tokens and texts, or of an object with a `prompt_string`; and how many of them the model
/// wants in front.
fn mixed(value: &Value, model: &Model) -> Result<(Vec<Token>, usize), ApiError> {
    let wrong = |found: &Value| {
        let kind = match found {
            Value::Null => "nothing".to_owned(),
            found => found.to_string().chars().take(40).collect(),
        };
        ApiError::invalid(format!("\"prompt\" must be a string, a list of tokens, or a list of prompts; found {kind}"))
    };
    match value {
        Value::String(text) => Ok(tokenize(model, text)),
        Value::Object(object) => match (object.get("prompt_string"), object.get("multimodal_data")) {
            (_, Some(_)) => Err(ApiError::invalid("This server does not support multimodal requests")),
            (Some(Value::String(text)), None) => Ok(tokenize(model, text)),
            _ => Err(wrong(value)),
        },
        Value::Array(items) => {
            let (mut tokens, mut added) = (Vec::new(), 0);
            for item in items {
                match item {
                    Value::String(text) if tokens.is_empty() => (tokens, added) = tokenize(model, text),
                    Value::String(text) => tokens.extend(model.tokenize(text, false, true)),
                    item => tokens.push(token(item, model)?),
                }
            }
            Ok((tokens, added))
        }
        value => Err(wrong(value)),
    }
}

/// A number that is a token of the model.
pub fn token(value: &Value, model: &Model) -> Result<Token, ApiError> {
    let valid = value.as_i64().filter(|&id| id >= 0 && (id as usize) < model.n_vocab());
    let n = model.n_vocab();
    valid.map(|id| Token(id as i32)).ok_or_else(|| {
        ApiError::invalid(format!("expected a token of the model, 0 to {}, found {value}", n.saturating_sub(1)))
    })
}
