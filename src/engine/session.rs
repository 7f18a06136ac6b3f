//! A session: one sequence in one context, from prompt to tokens, with StepFlow inside.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::llama::{Adapter, Batch, Context, ContextParams, LlamaError, Model, Row, Token};
use crate::stepflow::{ConfigError, StepFlowConfig};
use crate::trace::{Family, Markers, Segment, TraceFile, TraceToken, Tracked, Tracker};

use super::answer::Answer;
use super::budget::Budget;
use super::flash::works_in;
use super::open::{check_offered, load_adapter, open, warm_up};
use super::tokens::prompt_tokens;
use super::{Control, DeadEnd, Event, Finish, Prompt, Request, Sampler, Summary};

/// What a session is made of.
#[derive(Debug, Clone, Default)]
pub struct SessionParams {
    /// The context. With StepFlow on, flash attention is as [`flash_attention`](crate::engine::flash_attention) has it.
    pub context: ContextParams,
    /// The repairs.
    pub stepflow: StepFlowConfig,
    /// How the model marks its segments; detected where not given.
    pub family: Option<Family>,
    /// Text that opens thinking, in place of the family's.
    pub think_start: Option<String>,
    /// Text that closes thinking, in place of the family's.
    pub think_end: Option<String>,
    /// LoRA adapter to apply.
    pub lora: Option<PathBuf>,
}

/// Why a session could not be made or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// llama.cpp failed.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// StepFlow has no place to work in this model.
    #[error("StepFlow cannot work here: {0}")]
    NotHookable(String),
    /// The prompt does not fit.
    #[error("the prompt has {n_prompt} tokens and the context holds {n_ctx}; use a larger -c")]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens that fit.
        n_ctx: usize,
    },
    /// There is nothing to go on from.
    #[error("the prompt is empty; give one with -p, -f or on stdin")]
    EmptyPrompt,
    /// The grammar leaves nothing to say.
    #[error(transparent)]
    Grammar(#[from] DeadEnd),
}

/// One sequence in one context.
pub struct Session {
    context: Context,
    tracker: Tracker,
    /// Every token of the sequence; the cache holds the first `n_decoded` of them.
    tokens: Vec<Token>,
    n_decoded: usize,
    family: Family,
    family_found: bool,
    markers: Markers,
    control: Option<Control>,
    // Dropped after the context that uses it.
    _adapter: Option<Adapter>,
}

impl Session {
    /// Makes a session of `model`. A LoRA adapter needs a model that no other session uses.
    ///
    /// # Errors
    /// When a setting is wrong, StepFlow is on and the model offers it no place, or llama.cpp fails.
    pub fn new(mut model: Arc<Model>, params: &SessionParams) -> Result<Self, EngineError> {
        let (family, family_found, markers) = markers_of(&model, params);
        let mut adapter = load_adapter(&mut model, params.lora.as_deref())?;
        let (context, control) = open(model, &params.context, &params.stepflow, adapter.as_mut())?;
        Ok(Self {
            context,
            tracker: Tracker::new(markers.clone()),
            tokens: Vec::new(),
            n_decoded: 0,
            family,
            family_found,
            markers,
            control,
            _adapter: adapter,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.context.model()
    }

    /// Tokens that fit.
    pub fn n_ctx(&self) -> usize {
        self.context.n_ctx()
    }

    /// How the model marks its segments, and whether that was given or found in the model rather than assumed.
    pub fn family(&self) -> (Family, bool) {
        (self.family, self.family_found)
    }

    /// The markers in use.
    pub fn markers(&self) -> &Markers {
        &self.markers
    }

    /// The switch and the statistics of StepFlow, if it is part of this session.
    pub fn stepflow(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// Where StepFlow works, and why there; known once a token was decoded.
    pub fn works_in(&self) -> String {
        works_in(&self.context)
    }

    /// Runs one token through the model and forgets it: pages the weights in, and finds out whether StepFlow has a
    /// place in the graph.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        warm_up(&mut self.context, self.control.as_ref())?;
        self.n_decoded = 0;
        Ok(())
    }

    /// Tokens of a rendered prompt, and how many of them come before its opening.
    pub fn tokenize(&self, prompt: &Prompt) -> (Vec<Token>, usize) {
        prompt_tokens(self.model(), prompt)
    }

    /// Tells before any work is done whether there is a prompt and it fits.
    ///
    /// # Errors
    /// When there is none, or it does not.
    pub fn check(&self, request: &Request<'_>) -> Result<(), EngineError> {
        let (n_prompt, n_ctx) = (request.tokens.len(), self.n_ctx());
        match n_prompt {
            0 => Err(EngineError::EmptyPrompt),
            _ if n_prompt > n_ctx => Err(EngineError::PromptTooLong { n_prompt, n_ctx }),
            _ => Ok(()),
        }
    }

    /// Generates an answer. What the cache holds already of the conversation is not decoded again.
    ///
    /// # Errors
    /// When the prompt is empty or too long, or decoding fails. A full context or an interruption is no error: see
    /// [`Summary::finish`].
    pub fn generate(
        &mut self,
        request: &Request<'_>,
        sampler: &mut Sampler,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Summary, EngineError> {
        self.check(request)?;
        let n_prompt = request.tokens.len();
        let started = Instant::now();
        let cached = self.reuse(request);
        let mut summary = Summary {
            finish: Finish::Interrupted,
            n_prompt: n_prompt - cached,
            prompt_time: Duration::ZERO,
            n_generated: [0; 3],
            generation_time: Duration::ZERO,
        };
        request.tokens.iter().for_each(|&token| sampler.accept_prompt(token));
        let decoded = self.decode_prompt(request, cached, on_event);
        summary.prompt_time = started.elapsed();
        let last_row = match decoded {
            Err(EngineError::Llama(LlamaError::Interrupted)) => {
                summary.n_prompt = self.n_decoded - cached;
                return Ok(summary);
            }
            decoded => decoded?,
        };
        let started = Instant::now();
        let finish = self.decode_answer(request, sampler, last_row, &mut summary.n_generated, on_event);
        summary.generation_time = started.elapsed();
        summary.finish = match finish {
            Err(EngineError::Llama(LlamaError::Interrupted)) => Finish::Interrupted,
            Err(EngineError::Llama(LlamaError::ContextFull { .. })) => Finish::ContextFull,
            finish => finish?,
        };
        Ok(summary)
    }

    /// The sequence so far, with its segments and steps.
    pub fn trace(&self) -> TraceFile {
        trace_file(self.model(), self.family, &self.markers, &self.tokens, &self.tracker)
    }

    /// Keeps what cache and request have in common, up to the opening of the answer. Returns its length.
    fn reuse(&mut self, request: &Request<'_>) -> usize {
        let common = self.tokens.iter().zip(&request.tokens).take_while(|(a, b)| a == b).count();
        let mut kept = common.min(request.question).min(request.tokens.len() - 1).min(self.n_decoded);
        if kept < self.n_decoded && !self.context.truncate(0, kept) {
            // A recurrent state cannot go back.
            self.context.truncate(0, 0);
            kept = 0;
        }
        self.n_decoded = kept;
        self.tokens.truncate(kept);
        self.tracker.truncate(kept);
        kept
    }

    /// Decodes the rest of the prompt. Returns the row of its last token in the last batch.
    fn decode_prompt(
        &mut self,
        request: &Request<'_>,
        cached: usize,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, EngineError> {
        let total = request.tokens.len();
        // From here on it is the answer's turn: all before it is question.
        self.context.relabel(0, Segment::Question);
        let rows = prompt_rows(self.context.model(), &mut self.tracker, &request.tokens, request.question, cached);
        self.tokens.extend_from_slice(&request.tokens[cached..]);
        on_event(Event::Prompt { done: cached, total });
        let mut last_row = 0;
        for rows in rows.chunks(self.context.max_batch()) {
            self.decode(rows.to_vec())?;
            last_row = rows.len() - 1;
            on_event(Event::Prompt { done: self.n_decoded, total });
        }
        Ok(last_row)
    }

    fn decode_answer(
        &mut self,
        request: &Request<'_>,
        sampler: &mut Sampler,
        mut last_row: usize,
        n_generated: &mut [usize; 3],
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Finish, EngineError> {
        let mut answer = Answer::new(request.stop);
        let mut budget = request.reasoning_budget.map(|tokens| Budget::new(tokens, "", &self.markers));
        if let Some(budget) = &mut budget {
            request.tokens[request.question..].iter().for_each(|&t| budget.observe(&self.model().piece(t), false));
        }
        for _ in 0..request.max_tokens.unwrap_or(usize::MAX) {
            let thinking = self.tracker.next_segment() == Segment::Thinking;
            let forced = budget.as_mut().and_then(|budget| {
                budget.forced_token(thinking, self.model(), |token| sampler.allows(token, thinking))
            });
            let token = match forced {
                Some(token) => {
                    sampler.accept(token, thinking);
                    token
                }
                None => sampler.sample(&self.context, last_row, thinking)?,
            };
            if self.model().is_end(token) {
                return Ok(Finish::Stop);
            }
            let position = self.n_decoded;
            if position >= self.n_ctx() {
                return Ok(Finish::ContextFull);
            }
            let piece = self.model().piece(token);
            let tracked = self.tracker.push(&piece, true);
            self.tokens.push(token);
            n_generated[tracked.segment as usize] += 1;
            if let Some(budget) = &mut budget {
                budget.observe(&piece, tracked.segment == Segment::Thinking);
            }
            answer.report(token, &piece, &tracked, self.model().is_control(token), on_event);
            if answer.stops(&piece) {
                return Ok(Finish::Stop);
            }
            self.decode(vec![row(token, position, &tracked, true)])?;
            last_row = 0;
        }
        Ok(Finish::Length)
    }

    fn decode(&mut self, rows: Vec<Row>) -> Result<(), EngineError> {
        let batch = Batch { rows };
        self.context.decode(&batch)?;
        self.n_decoded += batch.rows.len();
        check_offered(&self.context, self.control.as_ref())
    }
}

/// The trace of tokens that a tracker has seen.
pub(super) fn trace_file(
    model: &Model,
    family: Family,
    markers: &Markers,
    tokens: &[Token],
    tracker: &Tracker,
) -> TraceFile {
    let labelled = tokens.iter().zip(tracker.segments());
    TraceFile {
        model: about(model),
        family,
        markers: markers.clone(),
        tokens: labelled
            .map(|(&token, &segment)| TraceToken { id: token.0, piece: model.piece(token), segment })
            .collect(),
        steps: tracker.steps(),
    }
}

/// What a trace or a report says of its model: name, file, architecture and description.
pub fn about(model: &Model) -> serde_json::Map<String, serde_json::Value> {
    let text = |text: Option<&str>| text.unwrap_or_default().into();
    let file = model.path().file_name().unwrap_or_default().to_string_lossy();
    let facts: [(&str, serde_json::Value); 4] = [
        ("name", text(model.metadata().str("general.name"))),
        ("file", file.into()),
        ("architecture", text(model.metadata().architecture())),
        ("description", model.description().into()),
    ];
    facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The rows of a prompt from position `cached` on, in sequence 0; the last one's logits are wanted. The `question`
/// tokens before the opening of the answer are question whatever they say.
pub(super) fn prompt_rows(
    model: &Model,
    tracker: &mut Tracker,
    tokens: &[Token],
    question: usize,
    cached: usize,
) -> Vec<Row> {
    let mut rows = Vec::with_capacity(tokens.len() - cached);
    for (position, &token) in tokens.iter().enumerate().skip(cached) {
        if position == question {
            tracker.new_turn();
        }
        let mut tracked = tracker.push(&model.piece(token), false);
        if position < question {
            // Markers of earlier answers, if the template repeats them, do not count for this one.
            tracked = Tracked { segment: Segment::Question, step_start: None };
        }
        rows.push(row(token, position, &tracked, position + 1 == tokens.len()));
    }
    if question >= tokens.len() {
        // A template that opens no answer: the first generated token opens it.
        tracker.new_turn();
    }
    rows
}

/// The row of a tracked token in sequence 0.
pub(super) fn row(token: Token, position: usize, tracked: &Tracked, logits: bool) -> Row {
    let previous_step = tracked.step_start.as_ref().map(|start| start.previous.clone());
    Row { token, position, sequence: 0, segment: tracked.segment, previous_step, logits }
}

/// The family, whether it was given or found in the model rather than assumed, and the markers.
pub fn markers_of(model: &Model, params: &SessionParams) -> (Family, bool, Markers) {
    if params.think_start.is_some() || params.think_end.is_some() {
        let family = params.family.unwrap_or(Family::Custom);
        let markers = family.markers().with(params.think_start.as_deref(), params.think_end.as_deref());
        return (family, true, markers);
    }
    let detect = || Family::detect(|text| model.token_of(text).is_some(), model.chat_template());
    match params.family.or_else(detect) {
        Some(family) => (family, true, family.markers()),
        None => (Family::Implicit, false, Family::Implicit.markers()),
    }
}
