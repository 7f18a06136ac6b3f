//! What a slot is asked to do, and what it tells while it does.

use std::collections::HashSet;
use std::time::Duration;

use crate::llama::{Candidates, Context, Model, Token};
use crate::stepflow::{Stats, StepFlowConfig};
use crate::trace::{Family, Markers, Segment, TraceFile, Tracker};

use super::budget::Budget;
use super::session::trace_file;
use super::{DeadEnd, EngineError, Sampler};

/// An answer to generate.
pub struct Work {
    /// The caller's name for it.
    pub id: u64,
    /// Tokens of the prompt, the opening of the answer included.
    pub tokens: Vec<Token>,
    /// How many of them come before the opening of the answer: they are the question.
    pub question: usize,
    /// Tokens to generate at most; no limit but the context's if `None`.
    pub max_tokens: Option<usize>,
    /// Time after which no further token is begun.
    pub max_time: Option<Duration>,
    /// The limit of thinking.
    pub(super) budget: Option<Budget>,
    /// Texts that end the answer and are no part of it.
    pub stop: Vec<String>,
    /// Special tokens that are text of the answer nevertheless.
    pub preserved: HashSet<Token>,
    /// Chooses the tokens.
    pub sampler: Sampler,
    /// The repairs of this answer.
    pub stepflow: StepFlowConfig,
    /// Whether a slot that has the beginning of the prompt may use it.
    pub cache_prompt: bool,
    /// The slot to use, if it is free.
    pub slot: Option<usize>,
    /// The most likely tokens to report beside each chosen one; `None` reports nothing.
    pub alternatives: Option<Alternatives>,
    /// Whether to report them for the prompt's tokens, too, as the model's logits say. None of the prompt is then taken from
    /// the cache.
    pub scores_prompt: bool,
    /// Whether anyone still waits for it.
    pub is_wanted: Box<dyn Fn() -> bool + Send>,
    /// Told what happens; `false` ends the work.
    pub on_event: Box<dyn FnMut(SlotEvent) -> bool + Send>,
}

/// Which probabilities to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternatives {
    /// Tokens beside the chosen one.
    pub n: usize,
    /// Whether as the sampler chain left them, or else as the model's logits say.
    pub after_sampling: bool,
}

/// The probability of a chosen token and of the likeliest ones.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenChoice {
    /// Of the chosen token.
    pub probability: f32,
    /// The likeliest tokens, in order.
    pub top: Vec<(Token, f32)>,
}

/// What happens to a [`Work`].
#[derive(Debug)]
pub enum SlotEvent {
    /// `done` of `total` prompt tokens are in the cache, of which `cached` were there before.
    Prompt {
        /// The slot.
        slot: usize,
        /// Tokens in the cache.
        done: usize,
        /// Tokens found there.
        cached: usize,
        /// Tokens of the prompt.
        total: usize,
        /// So far.
        timings: Timings,
    },
    /// Tokens of the prompt, the first of all left out, with how likely they were.
    Scored(Vec<(Token, TokenChoice)>),
    /// A token was generated.
    Token {
        /// The token.
        token: Token,
        /// What can be shown now; empty while a character or a possible stop text is not whole.
        text: String,
        /// The token's segment.
        segment: Segment,
        /// The number of the thinking step that it begins, from 1 on, if it begins one.
        step: Option<usize>,
        /// Its probability, if that was asked for.
        choice: Option<TokenChoice>,
        /// So far.
        timings: Timings,
    },
    /// It is over.
    Ended(Box<Ended>),
    /// It could not be done.
    Failed(EngineError),
}

/// How an answer ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Why.
    pub stop: Stop,
    /// The rest of its text.
    pub text: String,
    /// Tokens generated, the end token included.
    pub n_generated: usize,
    /// How many of them were thinking, where the model's family marks the beginning of it.
    pub n_thinking: usize,
    /// How long it took.
    pub timings: Timings,
    /// What StepFlow did.
    pub stats: Stats,
    /// All tokens, those of the prompt first.
    pub tokens: Vec<Token>,
    pub(super) tracker: Tracker,
}

impl Ended {
    /// The conversation with its segments and steps.
    pub fn trace(&self, model: &Model, family: Family, markers: &Markers) -> TraceFile {
        trace_file(model, family, markers, &self.tokens, &self.tracker)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it.
    End,
    /// This stop text came up.
    Word(String),
    /// A limit of tokens or time was reached.
    Length,
    /// The context is full.
    ContextFull,
    /// Nobody wants it any more.
    Cancelled,
}

/// Where the time of an answer went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Prompt tokens found in the cache.
    pub n_cached: usize,
    /// Prompt tokens decoded.
    pub n_prompt: usize,
    /// Time for them.
    pub prompt: Duration,
    /// Tokens generated.
    pub n_generated: usize,
    /// Time from the first one on; the first one is the prompt's.
    pub generation: Duration,
}

impl Work {
    /// Closes thinking after `tokens` tokens of it, with `message` before the closing marker.
    pub fn limit_thinking(&mut self, tokens: usize, message: &str, markers: &Markers) {
        self.budget = Some(Budget::new(tokens, message, markers));
    }

    /// A work with nothing but a prompt, a sampler and someone to tell.
    pub fn new(tokens: Vec<Token>, sampler: Sampler, on_event: Box<dyn FnMut(SlotEvent) -> bool + Send>) -> Self {
        Self {
            id: 0,
            question: 0,
            tokens,
            max_tokens: None,
            max_time: None,
            budget: None,
            stop: Vec::new(),
            preserved: HashSet::new(),
            sampler,
            stepflow: StepFlowConfig::default(),
            cache_prompt: true,
            slot: None,
            alternatives: None,
            scores_prompt: false,
            is_wanted: Box::new(|| true),
            on_event,
        }
    }

    /// Chooses a token from the logits of the batch's `row`, unless it is forced.
    pub(super) fn choose(
        &mut self,
        context: &Context,
        row: usize,
        thinking: bool,
        forced: Option<Token>,
    ) -> Result<(Token, Option<TokenChoice>), DeadEnd> {
        let Some(Alternatives { n, after_sampling }) = self.alternatives else {
            return match forced {
                Some(token) => Ok((self.force(token, thinking), None)),
                None => Ok((self.sampler.sample(context, row, thinking)?, None)),
            };
        };
        let (token, sampled) = match forced {
            Some(token) => (self.force(token, thinking), None),
            None => self.sampler.sample_among(context, row, thinking).map(|(token, among)| (token, Some(among)))?,
        };
        let probabilities = match sampled {
            Some(candidates) if after_sampling => candidates.probabilities(),
            _ => Candidates::of(context, row).softmax(),
        };
        Ok((token, Some(choice(token, probabilities, n))))
    }

    /// How likely each of `tokens` was, where the logits of the batch's rows foretell them in this order.
    pub(super) fn score(&self, context: &Context, tokens: &[Token]) -> Vec<(Token, TokenChoice)> {
        let n = self.alternatives.map_or(0, |alternatives| alternatives.n);
        let scored = |(row, &token)| (token, choice(token, Candidates::of(context, row).softmax(), n));
        tokens.iter().enumerate().map(scored).collect()
    }

    fn force(&mut self, token: Token, thinking: bool) -> Token {
        self.sampler.accept(token, thinking);
        token
    }
}

/// The chosen token's probability and the `n` likeliest.
fn choice(token: Token, mut probabilities: Vec<(Token, f32)>, n: usize) -> TokenChoice {
    let probability = probabilities.iter().find(|(other, _)| *other == token).map_or(0.0, |(_, p)| *p);
    probabilities.retain(|(_, p)| *p > 0.0);
    let by_probability = |a: &(Token, f32), b: &(Token, f32)| b.1.total_cmp(&a.1).then(a.0.0.cmp(&b.0.0));
    if n < probabilities.len() {
        probabilities.select_nth_unstable_by(n, by_probability);
        probabilities.truncate(n);
    }
    probabilities.sort_unstable_by(by_probability);
    TokenChoice { probability, top: probabilities }
}
