//! What a request says about how to generate: llama-server's fields, OpenAI's names for the same, and `stepflow`.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::engine::{Alternatives, SamplerKind, SamplingParams};
use crate::llama::{Model, Token};
use crate::stepflow::{ConfigError, LayerSelection, OebConfig, SmiConfig, StepFlowConfig};

use super::error::ApiError;

/// Stop texts that a request can have: each costs time at every token.
const MAX_STOPS: usize = 64;

/// Most likely tokens that an answer reports beside each of its own; each of them becomes an object.
const MAX_PROBS: usize = 100;

/// Samplers of a chain, each of which looks at the whole vocabulary for every token.
const MAX_SAMPLERS: usize = 32;

/// Answers that one request can ask for to a prompt.
const MAX_CHOICES: usize = 128;

/// Texts that DRY's repetitions cannot cross: each is looked up in the whole vocabulary.
const MAX_BREAKERS: usize = 64;

/// Reads a body as `T`; what is wrong is named with its place.
///
/// # Errors
/// When a field has another type than expected.
pub fn read<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    read_at("", body)
}

/// The same for what a request has in `field`.
///
/// # Errors
/// As [`read`].
pub fn read_at<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let place = match (field, path.as_str()) {
            ("", ".") => String::new(),
            ("", path) => format!("{path}: "),
            (field, ".") => format!("{field}: "),
            (field, path) => format!("{field}.{path}: "),
        };
        ApiError::invalid(format!("{place}{}", error.into_inner()))
    })
}

/// The fields that all endpoints share which generate.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Generate {
    pub stream: Option<bool>,
    pub verbose: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub cache_prompt: Option<bool>,
    pub return_tokens: Option<bool>,
    pub return_progress: Option<bool>,
    pub return_steps: Option<bool>,
    pub timings_per_token: Option<bool>,
    pub response_fields: Option<Vec<String>>,
    pub id_slot: Option<i64>,
    pub n: Option<usize>,
    pub n_cmpl: Option<usize>,
    n_predict: Option<i64>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    t_max_predict_ms: Option<i64>,
    stop: Option<OneOrMany<String>>,
    ignore_eos: Option<bool>,
    logit_bias: Option<Value>,
    samplers: Option<OneOrMany<String>>,
    seed: Option<i64>,
    temperature: Option<f32>,
    dynatemp_range: Option<f32>,
    dynatemp_exponent: Option<f32>,
    top_k: Option<i32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    top_n_sigma: Option<f32>,
    xtc_probability: Option<f32>,
    xtc_threshold: Option<f32>,
    min_keep: Option<usize>,
    repeat_last_n: Option<i32>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    dry_multiplier: Option<f32>,
    dry_base: Option<f32>,
    dry_allowed_length: Option<i32>,
    dry_penalty_last_n: Option<i32>,
    dry_sequence_breakers: Option<Vec<String>>,
    mirostat: Option<i32>,
    mirostat_tau: Option<f32>,
    mirostat_eta: Option<f32>,
    n_probs: Option<usize>,
    post_sampling_probs: Option<bool>,
    stepflow: Option<Value>,
}

/// OpenAI's options of a stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// What OpenAI's fields allow to be one thing or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl Generate {
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// How many answers to each prompt.
    pub fn n_choices(&self) -> Result<usize, ApiError> {
        match self.n_cmpl.or(self.n).unwrap_or(1) {
            n @ 1..=MAX_CHOICES => Ok(n),
            n => Err(ApiError::invalid(format!("n: expected 1 to {MAX_CHOICES}, found {n}"))),
        }
    }

    /// Tokens to generate at most; `default` and below 0 are no limit.
    pub fn max_tokens(&self, default: Option<usize>) -> Option<usize> {
        match self.n_predict.or(self.max_completion_tokens).or(self.max_tokens) {
            Some(n) => usize::try_from(n).ok(),
            None => default,
        }
    }

    pub fn max_time(&self) -> Option<Duration> {
        self.t_max_predict_ms.and_then(|ms| u64::try_from(ms).ok()).filter(|&ms| ms > 0).map(Duration::from_millis)
    }

    pub fn slot(&self) -> Option<usize> {
        self.id_slot.and_then(|id| usize::try_from(id).ok())
    }

    pub fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stop: Vec<_> = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        match stop.len() {
            0..=MAX_STOPS => Ok(stop.into_iter().filter(|text| !text.is_empty()).collect()),
            n => Err(ApiError::invalid(format!("stop: expected at most {MAX_STOPS} texts, found {n}"))),
        }
    }

    /// The probabilities to report, if this request's `n_probs` asks for any, or `n` of another name, which of 0 tokens is
    /// still of the chosen one.
    pub fn alternatives(&self, n: Option<usize>) -> Result<Option<Alternatives>, ApiError> {
        let after_sampling = self.post_sampling_probs.unwrap_or(false);
        match self.n_probs.filter(|&n| n > 0).or(n) {
            None => Ok(None),
            Some(n @ 0..=MAX_PROBS) => Ok(Some(Alternatives { n, after_sampling })),
            Some(n) => Err(ApiError::invalid(format!("n_probs: expected at most {MAX_PROBS}, found {n}"))),
        }
    }

    /// The repairs that it asks for: what `default` has where it says nothing. `settings` are the server's, where it
    /// says `true`.
    pub fn stepflow(&self, default: &StepFlowConfig, settings: &StepFlowConfig) -> Result<StepFlowConfig, ApiError> {
        let config = match &self.stepflow {
            None | Some(Value::Null) => default.clone(),
            Some(Value::Bool(false)) => StepFlowConfig::default(),
            Some(Value::Bool(true)) => settings.clone(),
            Some(value @ Value::Object(_)) => read_at::<StepFlowSettings>("stepflow", value)?.over(settings)?,
            Some(value) => {
                return Err(ApiError::invalid(format!("stepflow: expected true, false or an object, found {value}")));
            }
        };
        Ok(config)
    }

    /// Whether it asks for repairs in so many words.
    pub fn asks_for_stepflow(&self) -> bool {
        !matches!(self.stepflow, None | Some(Value::Null | Value::Bool(false)))
    }

    /// The sampler chain: `default` where it says nothing.
    pub fn sampling(&self, default: &SamplingParams, model: &Model, n_ctx: usize) -> Result<SamplingParams, ApiError> {
        let mut params = default.clone();
        macro_rules! take {
            ($($field:ident: $name:ident),*) => { $( if let Some(value) = self.$field { params.$name = value; } )* };
        }
        take!(temperature: temp, dynatemp_range: dynatemp_range, dynatemp_exponent: dynatemp_exponent, top_k: top_k);
        take!(top_p: top_p, min_p: min_p, typical_p: typ_p, top_n_sigma: top_n_sigma, min_keep: min_keep);
        take!(xtc_probability: xtc_probability, xtc_threshold: xtc_threshold, repeat_last_n: repeat_last_n);
        take!(repeat_penalty: repeat_penalty, presence_penalty: presence_penalty, dry_base: dry_base);
        take!(frequency_penalty: frequency_penalty, dry_multiplier: dry_multiplier, mirostat_tau: mirostat_tau);
        take!(dry_allowed_length: dry_allowed_length, dry_penalty_last_n: dry_penalty_last_n, mirostat: mirostat);
        take!(mirostat_eta: mirostat_eta);
        if let Some(seed) = self.seed {
            // As in llama-server, -1 takes a new one.
            params.seed = u32::try_from(seed & 0xFFFF_FFFF).ok().filter(|&seed| seed != u32::MAX);
        }
        if let Some(breakers) = &self.dry_sequence_breakers {
            if breakers.len() > MAX_BREAKERS || breakers.iter().any(|text| text.contains('\0')) {
                let message = format!("dry_sequence_breakers: expected at most {MAX_BREAKERS} texts without NUL");
                return Err(ApiError::invalid(message));
            }
            params.dry_sequence_breakers.clone_from(breakers);
        }
        if let Some(samplers) = self.samplers.clone() {
            params.samplers = chain(samplers)?;
        }
        if params.samplers.len() > MAX_SAMPLERS {
            let message = format!("samplers: expected at most {MAX_SAMPLERS}, found {}", params.samplers.len());
            return Err(ApiError::invalid(message));
        }
        params.logit_bias = self.logit_bias.as_ref().map_or(Ok(Vec::new()), |bias| logit_bias(bias, model))?;
        if self.ignore_eos.unwrap_or(false) {
            let ends = (0..model.n_vocab() as i32).map(Token).filter(|&token| model.is_end(token));
            params.logit_bias.extend(ends.map(|token| (token, f32::NEG_INFINITY)));
        }
        check(&mut params, n_ctx)?;
        Ok(params)
    }
}

/// Refuses numbers that no sampler can work with, and keeps those that size a buffer within the context.
fn check(params: &mut SamplingParams, n_ctx: usize) -> Result<(), ApiError> {
    let numbers = [
        ("temperature", params.temp),
        ("dynatemp_range", params.dynatemp_range),
        ("dynatemp_exponent", params.dynatemp_exponent),
        ("top_p", params.top_p),
        ("min_p", params.min_p),
        ("typical_p", params.typ_p),
        ("top_n_sigma", params.top_n_sigma),
        ("xtc_probability", params.xtc_probability),
        ("xtc_threshold", params.xtc_threshold),
        ("repeat_penalty", params.repeat_penalty),
        ("presence_penalty", params.presence_penalty),
        ("frequency_penalty", params.frequency_penalty),
        ("dry_multiplier", params.dry_multiplier),
        ("dry_base", params.dry_base),
        ("mirostat_tau", params.mirostat_tau),
        ("mirostat_eta", params.mirostat_eta),
    ];
    if let Some((name, value)) = numbers.iter().find(|(_, value)| !value.is_finite()) {
        return Err(ApiError::invalid(format!("{name}: expected a finite number, found {value}")));
    }
    if !(params.repeat_penalty > 0.0 && (1.0 / params.repeat_penalty).is_finite()) {
        let message = format!("repeat_penalty: expected a number above 0, found {}", params.repeat_penalty);
        return Err(ApiError::invalid(message));
    }
    if !(0..=2).contains(&params.mirostat) {
        return Err(ApiError::invalid(format!("mirostat: expected 0, 1 or 2, found {}", params.mirostat)));
    }
    if params.repeat_last_n < -1 || params.dry_penalty_last_n < -1 {
        return Err(ApiError::invalid("repeat_last_n, dry_penalty_last_n: expected -1 (the context), 0 or more"));
    }
    let n_ctx = i32::try_from(n_ctx).unwrap_or(i32::MAX);
    let within = |n: i32| if n < 0 { n_ctx } else { n.min(n_ctx) };
    params.repeat_last_n = within(params.repeat_last_n);
    params.dry_penalty_last_n = within(params.dry_penalty_last_n);
    params.dry_allowed_length = params.dry_allowed_length.clamp(0, n_ctx);
    Ok(())
}

/// Samplers by name, or as llama.cpp's string of letters.
fn chain(samplers: OneOrMany<String>) -> Result<Vec<SamplerKind>, ApiError> {
    let names = match samplers {
        OneOrMany::Many(names) => names,
        OneOrMany::One(letters) => letters.chars().map(|letter| name_of(letter).to_owned()).collect(),
    };
    names.iter().map(|name| name.parse()).collect::<Result<_, String>>().map_err(ApiError::invalid)
}

fn name_of(letter: char) -> &'static str {
    match letter {
        'e' => "penalties",
        'd' => "dry",
        's' => "top_n_sigma",
        'k' => "top_k",
        'y' => "typ_p",
        'p' => "top_p",
        'm' => "min_p",
        'x' => "xtc",
        't' => "temperature",
        _ => "?",
    }
}

/// `[[token or text, bias or false], ...]`, or `{"token or text": bias, ...}`.
fn logit_bias(value: &Value, model: &Model) -> Result<Vec<(Token, f32)>, ApiError> {
    let wrong = |found: &Value| {
        let expected = "expected pairs of a token or text and a number, or false to rule it out";
        ApiError::invalid(format!("logit_bias: {expected}, found {found}"))
    };
    let pairs: Vec<(Value, Value)> = match value {
        Value::Null => Vec::new(),
        Value::Object(map) => map.iter().map(|(key, bias)| (Value::from(key.as_str()), bias.clone())).collect(),
        Value::Array(items) => items
            .iter()
            .map(|item| match item.as_array().map(Vec::as_slice) {
                Some([key, bias]) => Ok((key.clone(), bias.clone())),
                _ => Err(wrong(item)),
            })
            .collect::<Result<_, _>>()?,
        other => return Err(wrong(other)),
    };
    if pairs.len() > model.n_vocab() {
        let message = format!("logit_bias: expected at most {} pairs, found {}", model.n_vocab(), pairs.len());
        return Err(ApiError::invalid(message));
    }
    let mut biases = Vec::new();
    for (key, bias) in &pairs {
        let bias = match bias {
            Value::Bool(false) => f32::NEG_INFINITY,
            bias => bias.as_f64().map(|bias| bias as f32).filter(|bias| bias.is_finite()).ok_or_else(|| wrong(bias))?,
        };
        let number = key.as_i64().or_else(|| key.as_str()?.parse().ok());
        match (number, key.as_str()) {
            (Some(id), _) => {
                let token = i32::try_from(id).ok().filter(|&id| id >= 0 && (id as usize) < model.n_vocab());
                biases.extend(token.map(|id| (Token(id), bias)));
            }
            (None, Some(text)) => biases.extend(model.tokenize(text, false, false).into_iter().map(|id| (id, bias))),
            _ => return Err(wrong(key)),
        }
        if biases.len() > model.n_vocab() {
            let message = format!("logit_bias: expected texts of at most {} tokens in all", model.n_vocab());
            return Err(ApiError::invalid(message));
        }
    }
    Ok(biases)
}

/// `stepflow` as an object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StepFlowSettings {
    oeb: Option<bool>,
    smi: Option<bool>,
    oeb_layers: Option<Value>,
    smi_layers: Option<Value>,
    tau_max: Option<f32>,
    alpha: Option<f32>,
    smi_window: Option<Value>,
}

impl StepFlowSettings {
    /// These settings, over `base`'s, and its repairs unless one is turned off, or one alone turned on.
    fn over(self, base: &StepFlowConfig) -> Result<StepFlowConfig, ApiError> {
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut oeb: OebConfig = base.oeb.clone().unwrap_or_default();
        let mut smi: SmiConfig = base.smi.clone().unwrap_or_default();
        if let Some(layers) = self.oeb_layers {
            oeb.layers = layer_selection(&layers)?;
        }
        if let Some(layers) = self.smi_layers {
            smi.layers = layer_selection(&layers)?;
        }
        if let Some(window) = self.smi_window {
            smi.window = text(window).parse()?;
        }
        oeb.tau_max = self.tau_max.unwrap_or(oeb.tau_max);
        smi.alpha = self.alpha.unwrap_or(smi.alpha);
        let on = |own: Option<bool>, other: Option<bool>, base: bool| own.unwrap_or(base && other != Some(true));
        Ok(StepFlowConfig {
            oeb: on(self.oeb, self.smi, base.oeb.is_some()).then_some(oeb),
            smi: on(self.smi, self.oeb, base.smi.is_some()).then_some(smi),
        })
    }
}

/// Layers as the flags have them (`0-6,9`, `25%`), or a list of their numbers.
pub fn layer_selection(value: &Value) -> Result<LayerSelection, ConfigError> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(layers) => layers.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    text.parse()
}

/// A chain's numbers under llama-server's names.
pub fn sampling_json(params: &SamplingParams) -> Map<String, Value> {
    let bias = |&(token, bias): &(Token, f32)| json!({ "token": token.0, "bias": bias.is_finite().then_some(bias) });
    let object = json!({
        "seed": params.seed.unwrap_or(u32::MAX),
        "temperature": params.temp,
        "dynatemp_range": params.dynatemp_range,
        "dynatemp_exponent": params.dynatemp_exponent,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_n_sigma": params.top_n_sigma,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "typical_p": params.typ_p,
        "repeat_last_n": params.repeat_last_n,
        "repeat_penalty": params.repeat_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_penalty_last_n": params.dry_penalty_last_n,
        "dry_sequence_breakers": params.dry_sequence_breakers,
        "mirostat": params.mirostat,
        "mirostat_tau": params.mirostat_tau,
        "mirostat_eta": params.mirostat_eta,
        "min_keep": params.min_keep,
        "logit_bias": params.logit_bias.iter().map(bias).collect::<Vec<_>>(),
        "samplers": params.samplers.iter().map(|sampler| sampler.name()).collect::<Vec<_>>(),
    });
    match object {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
