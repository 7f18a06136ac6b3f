//! What a session is asked for, what it tells while it works, and how it went.

use std::time::Duration;

use crate::llama::Token;
use crate::trace::Segment;

/// What to generate.
pub struct Request<'a> {
    /// Tokens of the whole conversation so far, the opening of the answer included.
    pub tokens: Vec<Token>,
    /// How many of them come before the opening of the answer: they are the question.
    pub question: usize,
    /// Tokens to generate at most; no limit but the context's if `None`.
    pub max_tokens: Option<usize>,
    /// Thinking tokens after which thinking is closed; no limit if `None`.
    pub reasoning_budget: Option<usize>,
    /// Texts that end the answer.
    pub stop: &'a [String],
}

/// What happens while a session generates.
#[derive(Debug)]
pub enum Event<'a> {
    /// `done` of `total` prompt tokens are decoded.
    Prompt {
        /// Tokens decoded, those found in the cache included.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// The segment of what comes next has changed.
    Segment(Segment),
    /// The next token starts a thinking step; the first step is 1.
    Step(usize),
    /// A token was generated.
    Token {
        /// The token.
        token: Token,
        /// Its text; it may end inside a UTF-8 character.
        piece: &'a [u8],
        /// Its segment.
        segment: Segment,
        /// Whether it is a special token, which a user does not want to read.
        control: bool,
    },
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer, or a stop text came up.
    Stop,
    /// The limit of tokens was reached.
    Length,
    /// The context is full.
    ContextFull,
    /// The interrupt flag was set.
    Interrupted,
}

/// How a generation went.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// Prompt tokens decoded; those found in the cache are not among them.
    pub n_prompt: usize,
    /// Time for them.
    pub prompt_time: Duration,
    /// Tokens generated, by segment: question, thinking, summary.
    pub n_generated: [usize; 3],
    /// Time for them.
    pub generation_time: Duration,
}

impl Summary {
    /// Prompt tokens per second.
    pub fn prompt_speed(&self) -> f64 {
        per_second(self.n_prompt, self.prompt_time)
    }

    /// Generated tokens per second.
    pub fn generation_speed(&self) -> f64 {
        per_second(self.n_generated.iter().sum(), self.generation_time)
    }
}

fn per_second(n: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}
