//! What all requests share: the options, the model once it is loaded, the queue to the engine, and what was finished.

use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use serde_json::Value;

use crate::engine::{Ended, SamplingParams, SlotEvent, SlotStatus, Work};
use crate::llama::Model;
use crate::llama::chat::ChatTemplates;
use crate::stepflow::StepFlowConfig;
use crate::trace::{Family, Markers, TraceFile};

use super::error::ApiError;
use super::fields::{self, Api};
use super::jobs::Jobs;
use super::metrics::Metrics;
use super::options::Options;
use super::queue::{Queue, Refused};

/// Tokens of finished answers that are remembered for their step maps.
const REMEMBERED_TOKENS: usize = 1 << 20;

/// Names of unknown fields that are logged, so that no client fills the memory or the log with them.
const MAX_UNKNOWN_FIELDS: usize = 256;
const MAX_FIELD_NAME: usize = 64;

/// The server.
pub struct App {
    pub options: Options,
    pub metrics: Metrics,
    pub queue: Queue<Work>,
    pub jobs: Jobs,
    pub started: SystemTime,
    ready: OnceLock<Ready>,
    finished: Mutex<Finished>,
    /// What was logged of requests: fields that are nobody's, and tools that nobody reads.
    unknown_fields: Mutex<HashSet<String>>,
    next_job: AtomicU64,
}

/// What there is once the model is loaded.
pub struct Ready {
    /// The model.
    pub model: Arc<Model>,
    /// Its chat templates.
    pub templates: ChatTemplates,
    /// How it marks its segments.
    pub family: Family,
    /// The marks.
    pub markers: Markers,
    /// The sampler chain where a request says nothing.
    pub sampling: SamplingParams,
    /// The repairs where a request says nothing.
    pub stepflow: StepFlowConfig,
    /// The repairs where a request says `true`; `None` if there is no place for them.
    pub stepflow_settings: Option<StepFlowConfig>,
    /// Where the repairs work, and why there.
    pub works_in: String,
    /// Tokens that a slot holds.
    pub n_ctx: usize,
    /// What the slots are doing, as of the last step.
    pub slots: Mutex<Vec<SlotStatus>>,
}

/// The last answers, by the names that their responses had.
#[derive(Default)]
struct Finished {
    answers: VecDeque<(String, Arc<Ended>)>,
    n_tokens: usize,
}

/// What an answer tells its request; `usize` is the answer's place among the request's.
pub type Told = (usize, SlotEvent);

impl App {
    /// A server that has no model yet.
    pub fn new(options: Options) -> Self {
        Self {
            queue: Queue::new(options.queue),
            options,
            metrics: Metrics::default(),
            jobs: Jobs::default(),
            started: SystemTime::now(),
            ready: OnceLock::new(),
            finished: Mutex::default(),
            unknown_fields: Mutex::default(),
            next_job: AtomicU64::new(0),
        }
    }

    /// Refuses a request of `api` that has fields which would change its answer and are not served. A field that is
    /// nobody's is logged, once.
    ///
    /// # Errors
    /// When there is such a field.
    pub fn check_fields(&self, api: Api, body: &Value) -> Result<(), ApiError> {
        for name in fields::check(api, body)? {
            self.say_once(&name, &format!("a field {name:?}, which is taken for nothing"));
        }
        Ok(())
    }

    /// Logs that requests have something, once for each `name`.
    pub fn say_once(&self, name: &str, what: &str) {
        let mut logged = self.unknown_fields.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < MAX_UNKNOWN_FIELDS && name.len() < MAX_FIELD_NAME && logged.insert(name.to_owned()) {
            // A closed stderr is no reason to end.
            _ = writeln!(std::io::stderr(), "stepflow: requests have {what}");
        }
    }

    /// From here on requests are answered.
    pub fn set_ready(&self, ready: Ready) {
        assert!(self.ready.set(ready).is_ok(), "a server has one model");
    }

    /// The model and what belongs to it.
    ///
    /// # Errors
    /// While it is loaded.
    pub fn ready(&self) -> Result<&Ready, ApiError> {
        self.ready.get().ok_or_else(ApiError::loading)
    }

    /// The same, if there is room for more answers: what does not fit is refused before any work is done for it.
    ///
    /// # Errors
    /// While the model is loaded, or when the queue is full.
    pub fn ready_for_more(&self) -> Result<&Ready, ApiError> {
        // Clients that have gone leave their place to others.
        self.queue.retain(|work| (work.is_wanted)());
        if self.queue.len() >= self.options.queue { Err(self.overloaded()) } else { self.ready() }
    }

    fn overloaded(&self) -> ApiError {
        let wait = self.metrics.seconds_per_answer() * self.queue.len() as f64 / self.options.slots as f64;
        ApiError::overloaded((wait.ceil() as u64).clamp(1, 60))
    }

    /// The name that the model goes by.
    pub fn model_name(&self) -> String {
        let of_model = || {
            let path = self.ready.get()?.model.path();
            path.file_name().map(|name| name.to_string_lossy().into_owned())
        };
        self.options.aliases.first().cloned().or_else(of_model).unwrap_or_else(|| "none".to_owned())
    }

    /// Puts `works` in line, each with a number and with what it tells counted.
    ///
    /// # Errors
    /// When there is no room, or the server is about to end.
    pub fn submit(self: &Arc<Self>, works: Vec<Work>) -> Result<(), ApiError> {
        let works = works.into_iter().map(|work| self.observed(work)).collect();
        self.queue.push(works).map_err(|refused| match refused {
            Refused::Closed => ApiError::shutting_down(),
            Refused::Full => self.overloaded(),
        })
    }

    fn observed(self: &Arc<Self>, mut work: Work) -> Work {
        let job = self.next_job.fetch_add(1, Ordering::Relaxed);
        work.id = job;
        let app = self.clone();
        let mut since = Instant::now();
        let mut is_first = true;
        let mut tell = work.on_event;
        work.on_event = Box::new(move |event| {
            match &event {
                SlotEvent::Token { .. } => {
                    app.metrics.count_token(is_first, since);
                    (is_first, since) = (false, Instant::now());
                }
                SlotEvent::Ended(ended) => {
                    app.metrics.count_answer(ended);
                    app.note_end(job);
                }
                SlotEvent::Failed(_) => app.note_end(job),
                SlotEvent::Prompt { .. } | SlotEvent::Scored(_) => {}
            }
            tell(event)
        });
        work
    }

    /// Notes that a job is over before its client is told so, who may look at the slots next.
    fn note_end(&self, job: u64) {
        let Some(ready) = self.ready.get() else { return };
        let mut slots = ready.slots();
        let ended = slots.iter_mut().filter(|slot| slot.job == Some(job));
        ended.for_each(|slot| *slot = SlotStatus { n_cached: slot.n_cached, ..SlotStatus::default() });
    }

    /// Remembers an answer under the name that its response has, and forgets the oldest beyond the limit.
    pub fn remember(&self, id: &str, ended: &Arc<Ended>) {
        let mut finished = self.finished();
        finished.n_tokens += ended.tokens.len();
        finished.answers.push_back((id.to_owned(), ended.clone()));
        while finished.n_tokens > REMEMBERED_TOKENS
            && let Some((_, oldest)) = finished.answers.pop_front()
        {
            finished.n_tokens -= oldest.tokens.len();
        }
    }

    /// The trace of a finished answer, if it is still remembered.
    pub fn trace_of(&self, id: &str) -> Option<TraceFile> {
        let ready = self.ready.get()?;
        let found = self.finished().answers.iter().find(|(name, _)| name == id).map(|(_, ended)| ended.clone());
        found.map(|ended| ended.trace(&ready.model, ready.family, &ready.markers))
    }

    fn finished(&self) -> MutexGuard<'_, Finished> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ready {
    /// What the slots are doing.
    pub fn slots(&self) -> MutexGuard<'_, Vec<SlotStatus>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
