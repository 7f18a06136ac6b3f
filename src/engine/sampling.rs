//! How the next token is chosen: llama.cpp's sampler chain with its names, order and defaults.

use std::str::FromStr;

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;

use crate::gguf::Gguf;
use crate::llama::{Candidates, Context, Model, RawSampler, Token};

use super::Grammar;

/// A link of the sampler chain, by llama.cpp's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplerKind {
    /// `penalties`: repetition, presence and frequency.
    Penalties,
    /// `dry`: repeated sequences.
    Dry,
    /// `top_n_sigma`.
    TopNSigma,
    /// `top_k`.
    TopK,
    /// `typ_p`: locally typical.
    TypicalP,
    /// `top_p`.
    TopP,
    /// `min_p`.
    MinP,
    /// `xtc`: exclude top choices.
    Xtc,
    /// `temperature`.
    Temperature,
}

impl SamplerKind {
    const NAMES: [(&str, Self); 9] = [
        ("penalties", Self::Penalties),
        ("dry", Self::Dry),
        ("top_n_sigma", Self::TopNSigma),
        ("top_k", Self::TopK),
        ("typ_p", Self::TypicalP),
        ("top_p", Self::TopP),
        ("min_p", Self::MinP),
        ("xtc", Self::Xtc),
        ("temperature", Self::Temperature),
    ];

    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("?", |(name, _)| name)
    }

    /// A chain as llama.cpp's `--samplers` writes it: `top_k;top_p;temperature`.
    ///
    /// # Errors
    /// When a name is none of llama.cpp's.
    pub fn parse_chain(text: &str) -> Result<Vec<Self>, String> {
        text.split(';').filter(|name| !name.is_empty()).map(str::parse).collect()
    }
}

impl FromStr for SamplerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let name = name.trim().replace('-', "_");
        let alias = match name.as_str() {
            "temp" => "temperature",
            "typical_p" | "typical" => "typ_p",
            "topk" => "top_k",
            "topp" | "nucleus" => "top_p",
            "minp" => "min_p",
            other => other,
        };
        let found = Self::NAMES.iter().find(|(known, _)| *known == alias);
        let names = Self::NAMES.map(|(name, _)| name).join(";");
        found.map(|(_, kind)| *kind).ok_or(format!("unknown sampler `{name}`; expected some of {names}"))
    }
}

/// Every number of the sampler chain. The defaults are llama.cpp's; a model's own are in its metadata.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names are those of llama.cpp's flags, which document them")]
pub struct SamplingParams {
    /// Seed of the random choice; `None` takes a new one each time.
    pub seed: Option<u32>,
    pub samplers: Vec<SamplerKind>,
    pub temp: f32,
    pub dynatemp_range: f32,
    pub dynatemp_exponent: f32,
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub typ_p: f32,
    pub top_n_sigma: f32,
    pub xtc_probability: f32,
    pub xtc_threshold: f32,
    /// Tokens that top-p, min-p, typical and XTC leave at least.
    pub min_keep: usize,
    pub repeat_last_n: i32,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub dry_multiplier: f32,
    pub dry_base: f32,
    pub dry_allowed_length: i32,
    pub dry_penalty_last_n: i32,
    pub dry_sequence_breakers: Vec<String>,
    /// 0 off, 1 or 2 for that version of mirostat in place of the chain.
    pub mirostat: i32,
    pub mirostat_tau: f32,
    pub mirostat_eta: f32,
    /// Added to the logits of these tokens; negative infinity rules one out.
    pub logit_bias: Vec<(Token, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            seed: None,
            samplers: SamplerKind::NAMES.map(|(_, kind)| kind).to_vec(),
            temp: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typ_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            min_keep: 0,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// The defaults, with what the model's metadata recommends (`general.sampling.*`).
    pub fn of_model(metadata: &Gguf) -> Self {
        let mut params = Self::default();
        let number = |key: &str| metadata.f64(&format!("general.sampling.{key}"));
        let set = |field: &mut f32, key| *field = number(key).map_or(*field, |value| value as f32);
        set(&mut params.temp, "temp");
        set(&mut params.top_p, "top_p");
        set(&mut params.min_p, "min_p");
        set(&mut params.xtc_probability, "xtc_probability");
        set(&mut params.xtc_threshold, "xtc_threshold");
        set(&mut params.repeat_penalty, "penalty_repeat");
        set(&mut params.mirostat_tau, "mirostat_tau");
        set(&mut params.mirostat_eta, "mirostat_eta");
        let set = |field: &mut i32, key| *field = number(key).map_or(*field, |value| value as i32);
        set(&mut params.top_k, "top_k");
        set(&mut params.repeat_last_n, "penalty_last_n");
        set(&mut params.mirostat, "mirostat");
        if let Some(Ok(chain)) = metadata.str("general.sampling.sequence").map(SamplerKind::parse_chain)
            && !chain.is_empty()
        {
            params.samplers = chain;
        }
        params
    }
}

/// A running sampler chain, and the grammar that it keeps to: they remember the tokens they were shown.
pub struct Sampler {
    chain: RawSampler,
    grammar: Option<Grammar>,
}

/// The grammar allows no token that the model knows: nothing can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the grammar allows no token here; widen it, or check that it allows the answer to end")]
pub struct DeadEnd;

impl Sampler {
    /// The chain that `params` describe, for `model`.
    pub fn new(params: &SamplingParams, model: &Model) -> Self {
        let seed = params.seed.unwrap_or_else(rand_seed);
        let n_vocab = model.n_vocab() as i32;
        let mut links = Vec::new();
        if !params.logit_bias.is_empty() {
            let biases = params.logit_bias.iter().map(|&(token, bias)| LlamaLogitBias::new(LlamaToken(token.0), bias));
            links.push(LlamaSampler::logit_bias(n_vocab, &biases.collect::<Vec<_>>()));
        }
        if params.mirostat > 0 && params.temp > 0.0 {
            links.push(LlamaSampler::temp(params.temp));
            links.push(match params.mirostat {
                1 => LlamaSampler::mirostat(n_vocab, seed, params.mirostat_tau, params.mirostat_eta, 100),
                _ => LlamaSampler::mirostat_v2(seed, params.mirostat_tau, params.mirostat_eta),
            });
        } else {
            links.extend(params.samplers.iter().map(|kind| link(*kind, params, model, n_vocab, seed)));
            links.push(LlamaSampler::dist(seed));
        }
        Self { chain: RawSampler::new(LlamaSampler::chain(links, true)), grammar: None }
    }

    /// The same, keeping to `grammar`.
    pub fn with_grammar(self, grammar: Option<Grammar>) -> Self {
        Self { grammar, ..self }
    }

    /// Shows the chain a token of the prompt.
    pub fn accept_prompt(&mut self, token: Token) {
        _ = self.chain.accept(token);
    }

    /// Shows the chain and the grammar a token of the answer that they did not choose. `thinking`: whether it is
    /// thinking, where a grammar may rest.
    pub fn accept(&mut self, token: Token, thinking: bool) {
        _ = self.chain.accept(token);
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token, thinking);
        }
    }

    /// Whether the grammar, if there is one, allows `token` next. `thinking` as in [`Sampler::accept`].
    pub fn allows(&mut self, token: Token, thinking: bool) -> bool {
        self.grammar.as_mut().is_none_or(|grammar| grammar.allows(token, thinking))
    }

    /// Chooses a token from the logits of the batch's `row`, and remembers it. `thinking` as in [`Sampler::accept`].
    ///
    /// # Errors
    /// When the grammar leaves nothing to choose from.
    pub fn sample(&mut self, context: &Context, row: usize, thinking: bool) -> Result<Token, DeadEnd> {
        if self.grammar.is_none() {
            return Ok(self.chain.sample(context, row));
        }
        self.sample_among(context, row, thinking).map(|(token, _)| token)
    }

    /// As [`Sampler::sample`]; also returns what the chain chose among.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn sample_among(
        &mut self,
        context: &Context,
        row: usize,
        thinking: bool,
    ) -> Result<(Token, Candidates), DeadEnd> {
        let mut candidates = Candidates::of(context, row);
        self.chain.apply(&mut candidates);
        let mut token = candidates.chosen().ok_or(DeadEnd)?;
        if let Some(grammar) = self.grammar.as_mut()
            && !grammar.allows(token, thinking)
        {
            // Only now is the grammar asked about every token: mostly the first choice passes.
            candidates = Candidates::of(context, row);
            grammar.apply(&mut candidates);
            if candidates.is_barren() {
                return Err(DeadEnd);
            }
            self.chain.apply(&mut candidates);
            token = candidates.chosen().ok_or(DeadEnd)?;
        }
        self.accept(token, thinking);
        Ok((token, candidates))
    }
}

fn link(kind: SamplerKind, p: &SamplingParams, model: &Model, n_vocab: i32, seed: u32) -> LlamaSampler {
    match kind {
        SamplerKind::Penalties => {
            LlamaSampler::penalties(n_vocab, p.repeat_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty)
        }
        SamplerKind::Dry => LlamaSampler::dry(
            model.inner(),
            p.dry_multiplier,
            p.dry_base,
            p.dry_allowed_length,
            p.dry_penalty_last_n,
            &p.dry_sequence_breakers,
        ),
        SamplerKind::TopNSigma => LlamaSampler::top_n_sigma(p.top_n_sigma),
        SamplerKind::TopK => LlamaSampler::top_k(p.top_k),
        SamplerKind::TypicalP => LlamaSampler::typical(p.typ_p, p.min_keep),
        SamplerKind::TopP => LlamaSampler::top_p(p.top_p, p.min_keep),
        SamplerKind::MinP => LlamaSampler::min_p(p.min_p, p.min_keep),
        SamplerKind::Xtc => LlamaSampler::xtc(p.xtc_probability, p.xtc_threshold, p.min_keep, seed),
        SamplerKind::Temperature if p.dynatemp_range > 0.0 => {
            LlamaSampler::temp_ext(p.temp, p.dynatemp_range, p.dynatemp_exponent)
        }
        SamplerKind::Temperature => LlamaSampler::temp(p.temp),
    }
}

/// A fresh seed; the standard library's hasher is seeded by the system.
fn rand_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_by_llama_cpps_names() {
        let chain = SamplerKind::parse_chain("top_k;min-p;temp").unwrap();
        assert_eq!(chain, [SamplerKind::TopK, SamplerKind::MinP, SamplerKind::Temperature]);
        assert!(SamplerKind::parse_chain("top_q").unwrap_err().contains("top_n_sigma"));
    }
}
