//! Slots: sequences that come and go in one context, as a server has them, each with StepFlow settings of its own.
//!
//! A [`Slots::step`] decodes a piece of one prompt, then the next token of every answer. What a slot holds of an earlier
//! conversation is kept and used again where a prompt begins the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::llama::{Adapter, Batch, Context, ContextParams, LlamaError, Model, Row, Token};
use crate::stepflow::{Stats, StepFlowConfig};
use crate::trace::{Markers, Segment, Tracker};

use super::flash::works_in;
use super::open::{check_offered, open, warm_up};
use super::session::{prompt_rows, row};
use super::text::Text;
use super::work::{Ended, SlotEvent, Stop, Timings, TokenChoice, Work};
use super::{Control, EngineError};

/// Rows of a prompt that is scored at once: each has logits of the whole vocabulary.
const SCORED_ROWS: usize = 512;

/// A context with a slot for every sequence.
pub struct Slots {
    context: Context,
    control: Option<Control>,
    markers: Markers,
    slots: Vec<Slot>,
    /// Whether sequences have streams of their own.
    streams: bool,
    /// The slot whose prompt comes first in the next step.
    turn: usize,
    /// Counts jobs, to know which slot was used last.
    clock: u64,
    // Dropped after the context that uses it.
    _adapter: Option<Adapter>,
}

#[derive(Default)]
struct Slot {
    /// The tokens that its sequence holds in the cache.
    tokens: Vec<Token>,
    /// How many of them, from the first on, StepFlow may have had a hand in none of: what other settings may build on.
    untouched: usize,
    used: u64,
    running: Option<Running>,
}

/// A job in a slot.
struct Running {
    work: Work,
    tracker: Tracker,
    text: Text,
    phase: Phase,
    n_cached: usize,
    /// Prompt tokens that no repair reaches.
    reusable: usize,
    n_generated: usize,
    /// Tokens of thinking that is marked: without a mark at its beginning nothing tells it from the answer.
    n_thinking: usize,
    /// Thinking steps begun.
    n_steps: usize,
    started: Instant,
    prompt_done: Option<Instant>,
}

enum Phase {
    /// Rows of the prompt, and how many of them are decoded.
    Prompt(Vec<Row>, usize),
    /// The row of the token that was chosen last.
    Answer(Row),
}

/// What a slot is doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SlotStatus {
    /// The job in it.
    pub job: Option<u64>,
    /// Tokens of the job's prompt.
    pub n_prompt: usize,
    /// Tokens in the cache.
    pub n_cached: usize,
    /// Tokens generated.
    pub n_generated: usize,
    /// Tokens to generate at most; no limit but the context's if `None`.
    pub max_tokens: Option<usize>,
    /// The job's repairs.
    pub stepflow: Option<StepFlowConfig>,
}

/// What one [`Slots::step`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepReport {
    /// Times that llama.cpp was called.
    pub n_decode: usize,
    /// Slots at work in them, added up.
    pub n_busy: usize,
}

impl Slots {
    /// Makes a context of `params` for `n` sequences, which share its tokens evenly, or as they come if
    /// `params.streams` is off. With `stepflow`, jobs can have repairs.
    ///
    /// # Errors
    /// When the model offers StepFlow no place, or llama.cpp fails.
    pub fn new(
        model: Arc<Model>,
        params: &ContextParams,
        stepflow: Option<&StepFlowConfig>,
        markers: Markers,
        n: usize,
        mut adapter: Option<Adapter>,
    ) -> Result<Self, EngineError> {
        let off = StepFlowConfig::default();
        // A recurrent state takes no row that is forgotten again.
        let streams = params.streams && !model.is_recurrent() && !model.is_hybrid();
        // A step decodes a token of every slot at once.
        let (n_batch, n_ubatch) = (params.n_batch.max(n as u32), params.n_ubatch.max(n as u32));
        let params = ContextParams { n_sequences: n as u32, streams, n_batch, n_ubatch, ..params.clone() };
        let (mut context, control) = open(model, &params, stepflow.unwrap_or(&off), adapter.as_mut())?;
        warm_up(&mut context, control.as_ref())?;
        if let Some(control) = &control {
            control.configure(&off)?;
            control.reset_stats();
        }
        let slots = (0..n).map(|_| Slot::default()).collect();
        Ok(Self { context, control, markers, slots, streams, turn: 0, clock: 0, _adapter: adapter })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.context.model()
    }

    /// Whether jobs can have repairs.
    pub fn has_stepflow(&self) -> bool {
        self.control.is_some()
    }

    /// Where StepFlow works, and why there.
    pub fn works_in(&self) -> String {
        works_in(&self.context)
    }

    /// Whether every slot has a share of the context for itself.
    pub fn has_streams(&self) -> bool {
        self.streams
    }

    /// Tokens that a sequence can hold.
    pub fn n_ctx(&self) -> usize {
        if self.streams { self.context.n_ctx() / self.slots.len() } else { self.context.n_ctx() }
    }

    /// Whether no slot is free.
    pub fn is_full(&self) -> bool {
        self.slots.iter().all(|slot| slot.running.is_some())
    }

    /// Whether no slot is at work.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.running.is_none())
    }

    /// What every slot is doing.
    pub fn status(&self) -> Vec<SlotStatus> {
        self.slots.iter().map(Slot::status).collect()
    }

    /// Ends every job where it is.
    pub fn stop_all(&mut self) {
        (0..self.slots.len()).for_each(|i| self.finish(i, Stop::Cancelled));
    }

    /// Takes a job into a free slot; there must be one. What keeps it from running is told to the job itself.
    pub fn start(&mut self, mut work: Work) {
        if !(work.is_wanted)() {
            return;
        }
        let (n_prompt, n_ctx) = (work.tokens.len(), self.n_ctx());
        let refused = match n_prompt {
            0 => Some(EngineError::EmptyPrompt),
            _ if n_prompt >= n_ctx => Some(EngineError::PromptTooLong { n_prompt, n_ctx }),
            _ => None,
        };
        if let Some(error) = refused {
            (work.on_event)(SlotEvent::Failed(error));
            return;
        }
        let Some(i) = self.choose(&work) else { return };
        if let Err(error) = self.occupy(i, work) {
            self.fail(i, error);
        }
    }

    /// The free slot that holds most of the prompt already, else the one that was used longest ago.
    fn choose(&self, work: &Work) -> Option<usize> {
        let free = || self.slots.iter().enumerate().filter(|(_, slot)| slot.running.is_none());
        if let Some((i, _)) = free().find(|(i, _)| work.slot == Some(*i)) {
            return Some(i);
        }
        let common = |slot: &Slot| if work.cache_prompt { slot.common(&work.tokens) } else { 0 };
        // A few tokens in common, as every conversation has at its head, are not worth a slot that another could use.
        let worthwhile = |n: usize| if n * 10 >= work.tokens.len() { n } else { 0 };
        free().max_by_key(|(_, slot)| (worthwhile(common(slot)), std::cmp::Reverse(slot.used))).map(|(i, _)| i)
    }

    fn occupy(&mut self, i: usize, mut work: Work) -> Result<(), EngineError> {
        let mut tracker = Tracker::new(self.markers.clone());
        let mut rows = prompt_rows(self.context.model(), &mut tracker, &work.tokens, work.question, 0);
        let repaired = |row: &Row| row.segment != Segment::Question;
        let reusable = match work.stepflow.is_on() {
            true => rows.iter().position(repaired).unwrap_or(rows.len()),
            false => usize::MAX,
        };
        let slot = &mut self.slots[i];
        let mut kept = if work.cache_prompt && !work.scores_prompt { slot.common(&work.tokens) } else { 0 };
        kept = kept.min(reusable).min(rows.len() - 1);
        if kept < slot.tokens.len() && !self.context.truncate(i as u32, kept) {
            self.context.truncate(i as u32, 0);
            kept = 0;
        }
        slot.tokens.truncate(kept);
        slot.untouched = kept;
        self.clock += 1;
        slot.used = self.clock;
        self.context.relabel(i as u32, Segment::Question);
        rows.drain(..kept);
        for row in &mut rows {
            row.sequence = i as u32;
            row.logits |= work.scores_prompt;
        }
        work.tokens.iter().for_each(|&token| work.sampler.accept_prompt(token));
        if let Some(budget) = &mut work.budget {
            let model = self.context.model();
            work.tokens[work.question..].iter().for_each(|&token| budget.observe(&model.piece(token), false));
        }
        let configured = self.control.as_ref().map(|control| control.configure_sequence(i as u32, &work.stepflow));
        let text = Text::new(std::mem::take(&mut work.stop));
        slot.running = Some(Running {
            work,
            tracker,
            text,
            phase: Phase::Prompt(rows, 0),
            n_cached: kept,
            reusable,
            n_generated: 0,
            n_thinking: 0,
            n_steps: 0,
            started: Instant::now(),
            prompt_done: None,
        });
        self.tell_progress(i);
        Ok(configured.unwrap_or(Ok(()))?)
    }

    /// Decodes a piece of one prompt and the next token of every answer.
    ///
    /// # Errors
    /// When it was interrupted. What else fails is told to the jobs it concerns.
    pub fn step(&mut self) -> Result<StepReport, EngineError> {
        let mut report = StepReport::default();
        let n = self.slots.len();
        let next = (0..n).map(|i| (self.turn + i) % n).find(|&i| self.slots[i].is_reading());
        if let Some(i) = next {
            self.turn = i + 1;
            report.n_decode += 1;
            report.n_busy += 1;
            self.decode_prompt(i)?;
        }
        let answering: Vec<usize> = (0..n).filter(|&i| self.slots[i].answer_row().is_some()).collect();
        if !answering.is_empty() {
            report.n_decode += 1;
            report.n_busy += answering.len();
            self.decode_answers(&answering)?;
        }
        Ok(report)
    }

    fn decode_prompt(&mut self, i: usize) -> Result<(), EngineError> {
        let mut max_batch = self.context.max_batch();
        let Some(Running { phase: Phase::Prompt(rows, done), work, .. }) = &self.slots[i].running else {
            return Ok(());
        };
        if work.scores_prompt {
            max_batch = max_batch.min(SCORED_ROWS);
        }
        let chunk = rows[*done..rows.len().min(*done + max_batch)].to_vec();
        let (n, is_last) = (chunk.len(), *done + chunk.len() == rows.len());
        let tokens: Vec<Token> = chunk.iter().map(|row| row.token).collect();
        let scores = work.scores_prompt;
        let foretold = rows[*done + 1..].iter().take(if scores { n } else { 0 });
        let foretold: Vec<Token> = foretold.map(|row| row.token).collect();
        if let Err(error) = self.decode(chunk) {
            return self.fail_or_interrupt(&[i], error);
        }
        let slot = &mut self.slots[i];
        slot.tokens.extend(tokens);
        let Some(running) = &mut slot.running else { return Ok(()) };
        slot.untouched = slot.tokens.len().min(running.reusable);
        if let Phase::Prompt(_, done) = &mut running.phase {
            *done += n;
        }
        if scores {
            let scored = running.work.score(&self.context, &foretold);
            // Who does not want it any more says so at the next event, too.
            _ = (running.work.on_event)(SlotEvent::Scored(scored));
        }
        self.tell_progress(i);
        if is_last {
            self.choose_token(i, n - 1);
        }
        Ok(())
    }

    fn decode_answers(&mut self, answering: &[usize]) -> Result<(), EngineError> {
        let (first, last) = (answering[0], answering[answering.len() - 1]);
        let mut rows = Vec::new();
        for i in first..=last {
            match self.slots[i].answer_row() {
                Some(row) => rows.push(row.clone()),
                None if self.streams => rows.push(self.filler(i)),
                None => {}
            }
        }
        let decoded = self.decode(rows.clone());
        for row in rows.iter().filter(|row| !answering.contains(&(row.sequence as usize))) {
            self.context.truncate(row.sequence, row.position);
        }
        if let Err(error) = decoded {
            // Shared by all, the context has room for the others once one has ended.
            let full = matches!(error, EngineError::Llama(LlamaError::ContextFull { .. }));
            let longest = answering.iter().copied().max_by_key(|&i| self.slots[i].tokens.len());
            return match longest.filter(|_| full) {
                Some(longest) => self.fail_or_interrupt(&[longest], error),
                None => self.fail_or_interrupt(answering, error),
            };
        }
        for (index, row) in rows.iter().enumerate() {
            let i = row.sequence as usize;
            if answering.contains(&i) {
                let slot = &mut self.slots[i];
                slot.tokens.push(row.token);
                let reusable = slot.running.as_ref().map_or(0, |running| running.reusable);
                slot.untouched = slot.tokens.len().min(reusable);
                self.choose_token(i, index);
            }
        }
        Ok(())
    }

    /// What a slot decodes that has nothing to say, to be forgotten at once: with streams, a batch has a row for every
    /// sequence between its first and its last.
    fn filler(&mut self, i: usize) -> Row {
        let n_ctx = self.n_ctx();
        let slot = &mut self.slots[i];
        if slot.tokens.len() >= n_ctx {
            slot.tokens.truncate(n_ctx - 1);
            slot.untouched = slot.untouched.min(slot.tokens.len());
            self.context.truncate(i as u32, slot.tokens.len());
        }
        Row { sequence: i as u32, logits: true, ..Row::plain(Token(0), slot.tokens.len()) }
    }

    fn decode(&mut self, rows: Vec<Row>) -> Result<(), EngineError> {
        let batch = Batch { rows };
        let mut decoded = self.context.decode(&batch);
        if matches!(decoded, Err(LlamaError::ContextFull { .. })) {
            // Shared by all, the context may be full of what idle slots remember.
            for (i, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.running.is_none()) {
                self.context.truncate(i as u32, 0);
                slot.tokens.clear();
                slot.untouched = 0;
            }
            decoded = self.context.decode(&batch);
        }
        decoded?;
        check_offered(&self.context, self.control.as_ref())
    }

    /// Chooses the next token of slot `i` from the logits of the batch's `row`, and tells of it.
    fn choose_token(&mut self, i: usize, batch_row: usize) {
        let Some(running) = &mut self.slots[i].running else { return };
        running.prompt_done.get_or_insert_with(Instant::now);
        if running.work.max_tokens == Some(0) {
            return self.finish(i, Stop::Length);
        }
        let model = self.context.model();
        let thinking = running.tracker.next_segment() == Segment::Thinking && self.markers.think_start.is_some();
        let Work { budget, sampler, .. } = &mut running.work;
        let is_allowed = |token| sampler.allows(token, thinking);
        let forced = budget.as_mut().and_then(|budget| budget.forced_token(thinking, model, is_allowed));
        let chosen = running.work.choose(&self.context, batch_row, thinking, forced);
        match chosen {
            Ok((token, choice)) => self.take(i, token, choice),
            Err(error) => self.fail(i, error.into()),
        }
    }

    /// Takes a chosen token into the answer of slot `i`.
    fn take(&mut self, i: usize, token: Token, choice: Option<TokenChoice>) {
        let (n_ctx, model) = (self.n_ctx(), self.context.model().clone());
        let slot = &mut self.slots[i];
        let Some(running) = &mut slot.running else { return };
        running.n_generated += 1;
        if model.is_end(token) {
            return self.finish(i, Stop::End);
        }
        let piece = model.piece(token);
        let tracked = running.tracker.push(&piece, true);
        let is_thinking = tracked.segment == Segment::Thinking && self.markers.think_start.is_some();
        running.n_thinking += usize::from(is_thinking);
        let first_step = tracked.segment == Segment::Thinking && running.n_steps == 0;
        let step = (first_step || tracked.step_start.is_some()).then_some(running.n_steps + 1);
        running.n_steps = step.unwrap_or(running.n_steps);
        if let Some(budget) = &mut running.work.budget {
            budget.observe(&piece, is_thinking);
        }
        let hidden = model.is_control(token) && !running.work.preserved.contains(&token);
        let (text, stop) = running.text.push(if hidden { &[] } else { &piece });
        let timings = running.timings();
        let segment = tracked.segment;
        let wanted = (running.work.on_event)(SlotEvent::Token { token, text, segment, step, choice, timings });
        let over = running.work.max_tokens.is_some_and(|max| running.n_generated >= max)
            || running.work.max_time.is_some_and(|max| running.started.elapsed() >= max);
        let position = slot.tokens.len();
        running.phase = Phase::Answer(Row { sequence: i as u32, ..row(token, position, &tracked, true) });
        match stop {
            _ if !wanted => self.finish(i, Stop::Cancelled),
            Some(word) => self.finish(i, Stop::Word(word)),
            None if over => self.finish(i, Stop::Length),
            // The token just chosen would need a cell that is not there.
            None if position >= n_ctx => self.finish(i, Stop::ContextFull),
            None => {}
        }
    }

    fn tell_progress(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        let Some(running) = &mut slot.running else { return };
        let event = SlotEvent::Prompt {
            slot: i,
            done: slot.tokens.len(),
            cached: running.n_cached,
            total: running.work.tokens.len(),
            timings: running.timings(),
        };
        if !(running.work.on_event)(event) {
            self.finish(i, Stop::Cancelled);
        }
    }

    /// Ends the job of slot `i`, if it has one, and tells it how it went.
    fn finish(&mut self, i: usize, stop: Stop) {
        let Some(mut running) = self.slots[i].running.take() else { return };
        let stats = self.control.as_ref().map_or_else(Stats::default, |control| control.take_stats(i as u32));
        let text = if matches!(stop, Stop::Word(_)) { String::new() } else { running.text.flush() };
        let timings = running.timings();
        let mut tokens = self.slots[i].tokens.clone();
        if let Phase::Answer(row) = &running.phase
            && tokens.len() < running.tracker.len()
        {
            tokens.push(row.token);
        }
        let Running { n_generated, n_thinking, tracker, .. } = running;
        let ended = Ended { stop, text, n_generated, n_thinking, timings, stats, tokens, tracker };
        let mut on_event = running.work.on_event;
        on_event(SlotEvent::Ended(Box::new(ended)));
    }

    fn fail(&mut self, i: usize, error: EngineError) {
        let Some(mut running) = self.slots[i].running.take() else { return };
        if let Some(control) = &self.control {
            control.take_stats(i as u32);
        }
        (running.work.on_event)(SlotEvent::Failed(error));
    }

    /// Tells the jobs of `slots` that they failed; an interruption is the caller's.
    fn fail_or_interrupt(&mut self, slots: &[usize], error: EngineError) -> Result<(), EngineError> {
        if matches!(error, EngineError::Llama(LlamaError::Interrupted)) {
            return Err(error);
        }
        let message = error.to_string();
        let full = matches!(error, EngineError::Llama(LlamaError::ContextFull { .. }));
        for &i in slots {
            match full && self.slots[i].answer_row().is_some() {
                true => self.finish(i, Stop::ContextFull),
                false => self.fail(i, EngineError::Llama(LlamaError::Decode { reason: message.clone() })),
            }
        }
        Ok(())
    }
}

impl Slot {
    /// How many tokens of a prompt it holds already, as any settings would have them.
    fn common(&self, prompt: &[Token]) -> usize {
        self.tokens[..self.untouched].iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }

    fn is_reading(&self) -> bool {
        matches!(self.running, Some(Running { phase: Phase::Prompt(..), .. }))
    }

    fn answer_row(&self) -> Option<&Row> {
        match &self.running {
            Some(Running { phase: Phase::Answer(row), .. }) => Some(row),
            _ => None,
        }
    }

    fn status(&self) -> SlotStatus {
        let running = self.running.as_ref();
        SlotStatus {
            job: running.map(|running| running.work.id),
            n_prompt: running.map_or(0, |running| running.work.tokens.len()),
            n_cached: self.tokens.len(),
            n_generated: running.map_or(0, |running| running.n_generated),
            max_tokens: running.and_then(|running| running.work.max_tokens),
            stepflow: running.map(|running| running.work.stepflow.clone()),
        }
    }
}

impl Running {
    fn timings(&self) -> Timings {
        let decoded = match &self.phase {
            Phase::Prompt(_, done) => *done,
            Phase::Answer(_) => self.work.tokens.len() - self.n_cached,
        };
        let prompt = match decoded {
            0 => Duration::ZERO,
            _ => self.prompt_done.unwrap_or_else(Instant::now).duration_since(self.started),
        };
        Timings {
            n_cached: self.n_cached,
            n_prompt: decoded,
            prompt,
            n_generated: self.n_generated,
            generation: self.prompt_done.map_or_else(Default::default, |done| done.elapsed()),
        }
    }
}
