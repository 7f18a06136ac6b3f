//! From a request's answers as they grow to one response: whole, or a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::engine::{Ended, SlotEvent, Stop, Timings, TokenChoice};
use crate::llama::{Model, Token};

use super::app::{App, Told};
use super::error::ApiError;

/// How often a stream says that it is still there while nothing comes: proxies close silent connections.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One answer, as far as it has come.
#[derive(Debug, Default)]
pub struct Answer {
    pub slot: usize,
    pub n_prompt: usize,
    pub n_cached: usize,
    /// The prompt's tokens but the first, with how likely they were, if that was asked for.
    pub scored: Vec<(Token, TokenChoice)>,
    pub text: String,
    pub tokens: Vec<Token>,
    /// Those of an answer that is not streamed; a stream tells them as they come.
    pub choices: Vec<(Token, TokenChoice)>,
    pub timings: Timings,
    pub ended: Option<Arc<Ended>>,
}

/// What has been added to an answer.
#[derive(Debug, Default)]
pub struct Update {
    /// Whether it is the first that has a token.
    pub first: bool,
    /// Prompt tokens in the cache, if it is news of the prompt.
    pub progress: Option<usize>,
    pub text: String,
    pub tokens: Vec<Token>,
    /// The thinking step that begins with it.
    pub step: Option<usize>,
    pub choices: Vec<(Token, TokenChoice)>,
    /// Whether the answer is over.
    pub ended: bool,
}

/// A server-sent event.
pub struct Chunk {
    /// Its name, where the API has names.
    pub name: Option<&'static str>,
    pub data: Value,
}

impl Chunk {
    pub fn new(data: Value) -> Self {
        Self { name: None, data }
    }

    /// An event that is named after its `type`.
    pub fn named(name: &'static str, mut data: Value) -> Self {
        data["type"] = name.into();
        Self { name: Some(name), data }
    }
}

/// An API's way to answer.
pub trait Reply: Send + 'static {
    /// What a stream sends for an `update` of the answer at `index`; the answer has taken it in.
    fn stream(&mut self, index: usize, answer: &Answer, update: &Update) -> Vec<Chunk>;

    /// What a stream sends when all answers are over.
    fn close(&mut self, _answers: &[Answer]) -> Vec<Chunk> {
        Vec::new()
    }

    /// How a stream says that it failed.
    fn failure(&self, error: &ApiError) -> Chunk {
        Chunk::new(error.to_json())
    }

    /// The last line of a stream, if the API has one.
    fn mark(&self) -> Option<&'static str> {
        Some("[DONE]")
    }

    /// The response to all answers at once.
    fn whole(&mut self, answers: &[Answer]) -> Value;

    /// The response's name, which saliency can be asked for by.
    fn id(&self) -> &str;
}

/// A request's answers while they are generated.
pub struct Generation {
    app: Arc<App>,
    told: UnboundedReceiver<Told>,
    answers: Vec<Answer>,
    reply: Box<dyn Reply>,
    streamed: bool,
    pending: VecDeque<Event>,
    over: bool,
}

impl Generation {
    /// `n` answers, of which `told` hears.
    pub fn new(app: Arc<App>, n: usize, told: UnboundedReceiver<Told>, reply: Box<dyn Reply>) -> Self {
        let answers = (0..n).map(|_| Answer::default()).collect();
        Self { app, told, answers, reply, streamed: false, pending: VecDeque::new(), over: false }
    }

    /// The response: a stream begins when the first answer has got a slot, so that what is refused until then has a
    /// status of its own.
    pub async fn respond(mut self, streamed: bool) -> Result<Response, ApiError> {
        if !streamed {
            while !self.all_ended() {
                let told = self.told.recv().await;
                self.take(told)?;
            }
            return Ok(axum::Json(self.reply.whole(&self.answers)).into_response());
        }
        self.streamed = true;
        let first = self.told.recv().await;
        self.push(first)?;
        let events = stream::unfold(self, |mut this| async move { this.next().await.map(|event| (Ok(event), this)) });
        let events: Sse<_> =
            Sse::<std::pin::Pin<Box<dyn stream::Stream<Item = Result<Event, Infallible>> + Send>>>::new(Box::pin(
                events,
            ));
        Ok(events.keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let told = self.told.recv().await;
            if let Err(error) = self.push(told) {
                let failure = self.reply.failure(&error);
                self.send(vec![failure]);
                self.end();
            }
        }
    }

    /// Takes in what was told, and what else is there already: a reader that lags behind gets larger pieces.
    fn push(&mut self, told: Option<Told>) -> Result<(), ApiError> {
        let mut updates: Vec<(usize, Update)> = Vec::new();
        let mut told = told;
        loop {
            let (index, update) = self.take(told)?;
            match updates.last_mut() {
                Some((last, so_far)) if *last == index && so_far.joins(&update) => so_far.join(update),
                _ => updates.push((index, update)),
            }
            match self.told.try_recv() {
                Ok(more) => told = Some(more),
                Err(_) => break,
            }
        }
        for (index, update) in updates {
            let chunks = self.reply.stream(index, &self.answers[index], &update);
            self.send(chunks);
        }
        if self.all_ended() {
            let last = self.reply.close(&self.answers);
            self.send(last);
            self.end();
        }
        Ok(())
    }

    fn send(&mut self, chunks: Vec<Chunk>) {
        for Chunk { name, data } in chunks {
            let event = Event::default().data(data.to_string());
            self.pending.push_back(match name {
                Some(name) => event.event(name),
                None => event,
            });
        }
    }

    fn end(&mut self) {
        self.over = true;
        self.pending.extend(self.reply.mark().map(|mark| Event::default().data(mark)));
    }

    fn all_ended(&self) -> bool {
        self.answers.iter().all(|answer| answer.ended.is_some())
    }

    /// Takes what was told into its answer.
    fn take(&mut self, told: Option<Told>) -> Result<(usize, Update), ApiError> {
        let Some((index, event)) = told else { return Err(ApiError::shutting_down()) };
        let answer = &mut self.answers[index];
        let mut update = Update::default();
        match event {
            SlotEvent::Prompt { slot, done, cached, total, timings } => {
                (answer.slot, answer.n_prompt, answer.n_cached, answer.timings) = (slot, total, cached, timings);
                update.progress = Some(done);
            }
            SlotEvent::Scored(scored) => answer.scored.extend(scored),
            SlotEvent::Token { token, text, step, choice, timings, .. } => {
                update.first = answer.tokens.is_empty();
                answer.text.push_str(&text);
                answer.tokens.push(token);
                answer.timings = timings;
                update.choices.extend(choice.map(|choice| (token, choice)));
                if !self.streamed {
                    answer.choices.extend_from_slice(&update.choices);
                }
                (update.text, update.tokens, update.step) = (text, vec![token], step);
            }
            SlotEvent::Ended(ended) if ended.stop == Stop::Cancelled => return Err(ApiError::shutting_down()),
            SlotEvent::Ended(mut ended) => {
                answer.timings = ended.timings;
                update.text = std::mem::take(&mut ended.text);
                answer.text.push_str(&update.text);
                let ended = Arc::new(*ended);
                self.app.remember(self.reply.id(), &ended);
                answer.ended = Some(ended);
                update.ended = true;
            }
            SlotEvent::Failed(error) => return Err(error.into()),
        }
        Ok((index, update))
    }
}

impl Update {
    /// Whether `next` can be told together with this.
    fn joins(&self, next: &Self) -> bool {
        let is_text = |update: &Self| update.progress.is_none() && !update.ended;
        is_text(self) && is_text(next) && next.step.is_none()
    }

    fn join(&mut self, next: Self) {
        self.first |= next.first;
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.choices.extend(next.choices);
    }
}

impl Answer {
    /// Tokens generated.
    pub fn n_generated(&self) -> usize {
        self.ended.as_ref().map_or(self.tokens.len(), |ended| ended.n_generated)
    }

    /// Tokens of thinking, once it is over.
    pub fn n_thinking(&self) -> usize {
        self.ended.as_ref().map_or(0, |ended| ended.n_thinking)
    }

    /// Whether the model came to an end of its own, or to a stop text.
    pub fn is_complete(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| matches!(ended.stop, Stop::End | Stop::Word(_)))
    }

    /// The stop text that ended it, if one did.
    pub fn stopping_word(&self) -> Option<&str> {
        match &self.ended.as_ref()?.stop {
            Stop::Word(word) => Some(word),
            _ => None,
        }
    }

    /// llama-server's `timings`, with what StepFlow did where it was on.
    pub fn timings(&self) -> Value {
        let Timings { n_cached, n_prompt, prompt, n_generated, generation } = self.timings;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        // The first token comes of the prompt's logits and costs no step.
        let n_steps = n_generated.saturating_sub(1) as f64;
        let mut timings = json!({
            "cache_n": n_cached,
            "prompt_n": n_prompt,
            "prompt_ms": ms(prompt),
            "prompt_per_token_ms": ratio(ms(prompt), n_prompt as f64),
            "prompt_per_second": ratio(n_prompt as f64, prompt.as_secs_f64()),
            "predicted_n": n_generated,
            "predicted_ms": ms(generation),
            "predicted_per_token_ms": ratio(ms(generation), n_steps),
            "predicted_per_second": if n_steps > 0.0 { ratio(n_steps, generation.as_secs_f64()) } else { 0.0 },
        });
        if let Some(ended) = self.ended.as_ref().filter(|ended| !ended.stats.layers.is_empty()) {
            timings["stepflow"] = ended.stats.to_json();
        }
        timings
    }

    /// OpenAI's `usage`.
    pub fn usage(&self) -> Value {
        usage(self.n_prompt, self.n_cached, self.n_generated())
    }

    /// llama-server's `prompt_progress`.
    pub fn progress(&self, done: usize) -> Value {
        json!({
            "total": self.n_prompt,
            "cache": self.n_cached,
            "processed": done,
            "time_ms": self.timings.prompt.as_millis() as u64,
        })
    }
}

/// OpenAI's `usage` of several answers, `per_prompt` to each prompt.
pub fn usage_of_all(answers: &[Answer], per_prompt: usize) -> Value {
    let prompts = || answers.iter().step_by(per_prompt);
    let (n_prompt, n_cached) =
        (prompts().map(|answer| answer.n_prompt).sum(), prompts().map(|answer| answer.n_cached).sum());
    usage(n_prompt, n_cached, answers.iter().map(Answer::n_generated).sum())
}

fn usage(n_prompt: usize, n_cached: usize, n_generated: usize) -> Value {
    json!({
        "completion_tokens": n_generated,
        "prompt_tokens": n_prompt,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": { "cached_tokens": n_cached },
    })
}

/// llama-server's list of probabilities, which has OpenAI's fields.
pub fn probabilities(choices: &[(Token, TokenChoice)], after_sampling: bool, model: &Model) -> Value {
    let (one, top) = if after_sampling { ("prob", "top_probs") } else { ("logprob", "top_logprobs") };
    let number = |p: f32| match after_sampling {
        true => f64::from(p),
        // JSON has no infinity.
        false if p == 0.0 => f64::from(f32::MIN),
        false => f64::from(p).ln(),
    };
    let entry = |token: Token, p: f32| {
        let piece = model.piece(token);
        let text = String::from_utf8_lossy(&piece).into_owned();
        json!({ "id": token.0, "token": text, "bytes": piece, one: number(p) })
    };
    let entries = choices.iter().map(|(token, choice)| {
        let mut object = entry(*token, choice.probability);
        object[top] = choice.top.iter().map(|&(token, p)| entry(token, p)).collect();
        object
    });
    entries.collect()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
