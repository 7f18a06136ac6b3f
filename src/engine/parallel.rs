//! Many sequences side by side in one context: what evaluation runs on.
//!
//! What a sequence generates does not depend on what runs beside it: every sequence has a stream of the cache to itself,
//! prompts are decoded alone, and a generation step always has one row for every slot, idle ones included, so that the
//! matrices of every step have the same shape. So a run that was interrupted, or spread over machines, gives the same
//! answers as one that was not.

use std::time::{Duration, Instant};

use crate::llama::{Batch, Context, ContextParams, LlamaError, Row, Token};
use crate::stepflow::{ConfigError, Stats, StepFlowConfig};
use crate::trace::{Markers, Segment, Tracker};

use super::open::{check_offered, open};
use super::session::{EngineError, prompt_rows, row};
use super::{Control, Finish, Sampler};

/// A sequence to generate.
pub struct Job {
    /// Tokens of the prompt, the opening of the answer included.
    pub tokens: Vec<Token>,
    /// How many of them come before the opening of the answer: they are the question.
    pub question: usize,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Chooses the tokens.
    pub sampler: Sampler,
}

/// A generated sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// What was generated, the end token left out.
    pub text: Vec<u8>,
    /// What of it is summary; the whole text where no thinking was closed, or nothing marks it.
    pub summary: Vec<u8>,
    /// Why it ended.
    pub finish: Finish,
    /// Prompt tokens.
    pub n_prompt: usize,
    /// Tokens generated, by segment: question, thinking, summary.
    pub n_generated: [usize; 3],
    /// Its share of the machine's time: a step's time is divided among the sequences in it.
    pub time: Duration,
    /// What StepFlow did.
    pub stats: Stats,
}

/// A context with a slot for every sequence.
pub struct Parallel {
    context: Context,
    control: Option<Control>,
    markers: Markers,
    slots: usize,
}

/// A slot at work on a job that the caller knows as `id`.
struct Slot<T> {
    id: T,
    job: Job,
    tracker: Tracker,
    /// Chosen, and not decoded yet.
    next: Token,
    position: usize,
    generated: Generated,
}

impl Parallel {
    /// Makes a context of `params` for `slots` sequences, each of which holds `params.n_ctx` tokens. With `stepflow`, the
    /// repairs can be set by [`Parallel::configure`].
    ///
    /// # Errors
    /// When the model offers StepFlow no place, or llama.cpp fails.
    pub fn new(
        model: std::sync::Arc<crate::llama::Model>,
        params: &ContextParams,
        stepflow: &StepFlowConfig,
        markers: Markers,
        slots: usize,
    ) -> Result<Self, EngineError> {
        let n_ctx = if params.n_ctx == 0 { model.n_ctx_train() } else { params.n_ctx };
        let n_sequences = slots as u32;
        let params =
            ContextParams { n_ctx: n_ctx.saturating_mul(n_sequences), n_sequences, streams: true, ..params.clone() };
        let (context, control) = open(model, &params, stepflow, None)?;
        Ok(Self { context, control, markers, slots })
    }

    /// Sets the repairs of everything that is generated from here on.
    ///
    /// # Errors
    /// When a setting is wrong.
    pub fn configure(&mut self, stepflow: &StepFlowConfig) -> Result<(), ConfigError> {
        self.control.as_ref().map_or(Ok(()), |control| control.configure(stepflow))
    }

    /// Sequences that run side by side.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens that a sequence can hold.
    pub fn n_ctx(&self) -> usize {
        self.context.n_ctx() / self.slots
    }

    /// Generates all `jobs`, each as soon as a slot is free, and hands each to `done` when it ends.
    ///
    /// # Errors
    /// When decoding fails, is interrupted, or `done` fails. Jobs that did not end are lost.
    pub fn run<T, E: From<EngineError>>(
        &mut self,
        jobs: &mut dyn Iterator<Item = (T, Job)>,
        done: &mut dyn FnMut(T, Generated) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut slots: Vec<Option<Slot<T>>> = (0..self.slots).map(|_| None).collect();
        loop {
            for (sequence, slot) in slots.iter_mut().enumerate() {
                while slot.is_none()
                    && let Some((id, job)) = jobs.next()
                {
                    let started = self.start(sequence as u32, id, job)?;
                    *slot = self.end_if_over(started, sequence as u32, done)?;
                }
            }
            if slots.iter().all(Option::is_none) {
                return Ok(());
            }
            self.step(&mut slots)?;
            for (sequence, slot) in slots.iter_mut().enumerate() {
                *slot = match slot.take() {
                    Some(slot) => self.end_if_over(slot, sequence as u32, done)?,
                    None => None,
                };
            }
        }
    }

    /// Decodes the prompt of a job alone and chooses its first token.
    fn start<T>(&mut self, sequence: u32, id: T, mut job: Job) -> Result<Slot<T>, EngineError> {
        let (n_prompt, n_ctx) = (job.tokens.len(), self.n_ctx());
        if n_prompt > n_ctx {
            return Err(EngineError::PromptTooLong { n_prompt, n_ctx });
        }
        if n_prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        let started = Instant::now();
        let mut tracker = Tracker::new(self.markers.clone());
        let mut rows = prompt_rows(self.context.model(), &mut tracker, &job.tokens, job.question, 0);
        rows.iter_mut().for_each(|row| row.sequence = sequence);
        let mut last = 0;
        for rows in rows.chunks(self.context.max_batch()) {
            self.decode(rows.to_vec())?;
            last = rows.len() - 1;
        }
        job.tokens.iter().for_each(|&token| job.sampler.accept_prompt(token));
        let next = job.sampler.sample(&self.context, last, false)?;
        let generated = Generated {
            text: Vec::new(),
            summary: Vec::new(),
            finish: Finish::Length,
            n_prompt,
            n_generated: [0; 3],
            time: started.elapsed(),
            stats: Stats::default(),
        };
        Ok(Slot { id, job, tracker, next, position: n_prompt, generated })
    }

    /// Decodes the next token of every slot and chooses the one after it.
    fn step<T>(&mut self, slots: &mut [Option<Slot<T>>]) -> Result<(), EngineError> {
        let started = Instant::now();
        let mut rows = Vec::with_capacity(slots.len());
        for (sequence, slot) in slots.iter_mut().enumerate() {
            let row = match slot {
                Some(slot) => slot.push(self.context.model()),
                None => idle_row(),
            };
            rows.push(Row { sequence: sequence as u32, ..row });
        }
        self.decode(rows)?;
        for (sequence, slot) in slots.iter_mut().enumerate() {
            match slot {
                Some(slot) => slot.next = slot.job.sampler.sample(&self.context, sequence, false)?,
                None => _ = self.context.truncate(sequence as u32, 0),
            }
        }
        let share = started.elapsed() / slots.iter().flatten().count().max(1) as u32;
        slots.iter_mut().flatten().for_each(|slot| slot.generated.time += share);
        Ok(())
    }

    fn decode(&mut self, rows: Vec<Row>) -> Result<(), EngineError> {
        if self.context.interrupt().load(std::sync::atomic::Ordering::Relaxed) {
            return Err(LlamaError::Interrupted.into());
        }
        self.context.decode(&Batch { rows })?;
        check_offered(&self.context, self.control.as_ref())
    }

    /// Hands a slot's sequence over if it has ended, and empties its stream.
    fn end_if_over<T, E: From<EngineError>>(
        &mut self,
        mut slot: Slot<T>,
        sequence: u32,
        done: &mut dyn FnMut(T, Generated) -> Result<(), E>,
    ) -> Result<Option<Slot<T>>, E> {
        let generated: usize = slot.generated.n_generated.iter().sum();
        slot.generated.finish = if self.context.model().is_end(slot.next) {
            Finish::Stop
        } else if generated >= slot.job.max_tokens {
            Finish::Length
        } else if slot.position >= self.n_ctx() {
            Finish::ContextFull
        } else {
            return Ok(Some(slot));
        };
        self.context.truncate(sequence, 0);
        if let Some(control) = &self.control {
            slot.generated.stats = control.take_stats(sequence);
        }
        // What opens an answer is part of it.
        if slot.generated.n_generated[Segment::Summary as usize] == 0 || self.markers.answers {
            slot.generated.summary.clone_from(&slot.generated.text);
        }
        done(slot.id, slot.generated)?;
        Ok(None)
    }
}

impl<T> Slot<T> {
    /// Takes the chosen token into the sequence. Returns its row.
    fn push(&mut self, model: &crate::llama::Model) -> Row {
        let piece = model.piece(self.next);
        let tracked = self.tracker.push(&piece, true);
        self.generated.n_generated[tracked.segment as usize] += 1;
        self.generated.text.extend_from_slice(&piece);
        if tracked.segment == Segment::Summary {
            self.generated.summary.extend_from_slice(&piece);
        }
        self.position += 1;
        row(self.next, self.position - 1, &tracked, true)
    }
}

/// What an idle slot decodes, to be forgotten at once.
fn idle_row() -> Row {
    Row { logits: true, ..Row::plain(Token(0), 0) }
}
