//! `/v1/saliency`: the maps of an answer or a trace. Attention is measured at once; what takes longer is a job in the
//! background. What is measured stays in memory: a job that is cut short leaves nothing.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::{Either, select};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

use crate::llama::{Backward, ContextParams, FlashAttention, LlamaError, Model, Token};
use crate::saliency::{self, Estimator, LayerMaps, MetricMap, Pool, Probe, Run, Saliency};
use crate::stepflow::Side;
use crate::trace::{Step, TraceFile};

use super::app::App;
use super::error::ApiError;
use super::generation::random_id;
use super::guard::Body;
use super::request::{layer_selection, read};

/// Jobs that can wait for the one that runs, and as many requests for attention.
const MAX_WAITING: usize = 8;

/// Jobs that are remembered once they are over.
const MAX_KEPT: usize = 32;

/// Cells of the maps of one job: 250 steps of a model with 64 layers. Half of them, those above the diagonal, are never
/// stored, so it comes to 16 MB, and to some 40 MB as JSON or 200 MB as CSV.
const MAX_CELLS: usize = 4_000_000;

/// Cells of all jobs that are remembered.
const MAX_KEPT_CELLS: usize = 4 * MAX_CELLS;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    /// The name of a finished answer.
    id: Option<String>,
    /// A trace file.
    trace: Option<Value>,
    #[serde(default)]
    method: Method,
    layers: Option<Value>,
    #[serde(default)]
    format: Format,
}

/// How saliency is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Method {
    #[default]
    Attention,
    Gradient,
    Probe,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Gradient => "gradient",
            Self::Probe => "probe",
        }
    }

    /// Whether it takes long, and so runs in the background.
    fn is_job(self) -> bool {
        self != Self::Attention
    }

    /// Numbers for each pair of steps: attention; saliency and its signed sum; a value and the four of its estimate.
    fn n_numbers(self) -> usize {
        match self {
            Self::Attention => 1,
            Self::Gradient => 2,
            Self::Probe => 5,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Csv,
}

/// Which form a result is wanted in.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    format: Option<Format>,
}

/// All jobs of a server.
pub struct Jobs {
    lists: Mutex<Lists>,
    /// Measuring takes all processors, so one job runs at a time.
    in_background: Arc<Semaphore>,
    /// Attention is a single forward pass, which need not wait for any job.
    at_once: Arc<Semaphore>,
}

#[derive(Default)]
struct Lists {
    /// Jobs that wait or run; none that is cancelled.
    open: Vec<Arc<Job>>,
    /// Jobs that are over, in the order in which they ended.
    over: VecDeque<Arc<Job>>,
}

/// A job, and what came of it.
pub struct Job {
    id: String,
    task: Task,
    format: Format,
    /// Interrupts it while it runs.
    stop: Arc<AtomicBool>,
    /// Ends its waiting.
    stopped: Notify,
    state: Mutex<Progress>,
}

#[derive(Debug, Clone, PartialEq)]
enum Progress {
    Waiting,
    Running { done: usize, total: usize },
    Done(Arc<Saliency>),
    Failed(ApiError),
    Cancelled,
}

/// What is measured.
struct Task {
    model: Arc<Model>,
    trace: TraceFile,
    tokens: Vec<Token>,
    pool: Pool,
    method: Method,
    layers: Vec<usize>,
}

/// Cancels a job whose client is gone before it is over.
struct CancelOnDrop<'a> {
    jobs: &'a Jobs,
    job: &'a Arc<Job>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.jobs.lock().close(self.job) {
            self.job.stop();
        }
    }
}

/// `POST /v1/saliency`.
pub async fn create(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    if app.options.lora {
        let message = "maps are of the model alone, and this server adds a LoRA adapter: merge it into the model first";
        return Err(ApiError::not_supported(message));
    }
    let fields: Fields = read(&body)?;
    let (method, format) = (fields.method, fields.format);
    let task = tokio::task::block_in_place(|| Task::new(&app, fields))?;
    let job = app.jobs.add(task, format)?;
    if method.is_job() {
        let status = job.status();
        tokio::spawn(async move { app.jobs.run(&job).await });
        return Ok((StatusCode::ACCEPTED, Json(status)).into_response());
    }
    let _guard = CancelOnDrop { jobs: &app.jobs, job: &job };
    app.jobs.run(&job).await;
    job.result(format)
}

/// `GET /v1/saliency/{id}`: how far a job is, or what it found.
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, ApiError> {
    let job = app.jobs.find(&id)?;
    let over = !matches!(*job.state(), Progress::Waiting | Progress::Running { .. });
    if over { job.result(wanted.format.unwrap_or(job.format)) } else { Ok(Json(job.status()).into_response()) }
}

/// `DELETE /v1/saliency/{id}`: a job that runs is cancelled, one that is over is forgotten.
pub async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let job = app.jobs.find(&id)?;
    job.stop();
    let mut lists = app.jobs.lock();
    lists.close(&job);
    lists.over.retain(|other| other.id != id);
    Ok(Json(json!({ "id": id, "status": "cancelled" })))
}

impl Default for Jobs {
    fn default() -> Self {
        let turn = || Arc::new(Semaphore::new(1));
        Self { lists: Mutex::default(), in_background: turn(), at_once: turn() }
    }
}

impl Jobs {
    fn add(&self, task: Task, format: Format) -> Result<Arc<Job>, ApiError> {
        let mut lists = self.lock();
        let in_line = lists.open.iter().filter(|job| job.task.method.is_job() == task.method.is_job());
        if in_line.filter(|job| *job.state() == Progress::Waiting).count() >= MAX_WAITING {
            return Err(ApiError::overloaded(10));
        }
        let (id, state) = (random_id("sal-"), Mutex::new(Progress::Waiting));
        let job = Arc::new(Job { id, task, format, stop: Arc::default(), stopped: Notify::new(), state });
        lists.open.push(job.clone());
        Ok(job)
    }

    /// Measures a job once it is its turn. Until then it holds no thread, and is gone as soon as it is cancelled.
    async fn run(&self, job: &Arc<Job>) {
        let turns = if job.task.method.is_job() { &self.in_background } else { &self.at_once };
        let (stopped, turn) = (pin!(job.stopped.notified()), pin!(turns.clone().acquire_owned()));
        if let Either::Right((Ok(turn), _)) = select(stopped, turn).await {
            let job = job.clone();
            let work = move || {
                job.measure();
                // Its turn ends with the work, which goes on for a moment after its client is gone or has cancelled it.
                drop(turn);
            };
            _ = tokio::task::spawn_blocking(work).await;
        } else {
            *job.state() = Progress::Cancelled;
        }
        self.keep(job);
    }

    /// Remembers a job that is over, and forgets the oldest beyond the limits.
    fn keep(&self, job: &Arc<Job>) {
        let mut lists = self.lock();
        if !lists.close(job) {
            return;
        }
        lists.over.push_back(job.clone());
        let n_cells = |jobs: &VecDeque<Arc<Job>>| jobs.iter().map(|job| job.task.n_cells()).sum::<usize>();
        while lists.over.len() > MAX_KEPT || n_cells(&lists.over) > MAX_KEPT_CELLS {
            lists.over.pop_front();
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Job>, ApiError> {
        let lists = self.lock();
        let found = lists.open.iter().chain(&lists.over).find(|job| job.id == id).cloned();
        found.ok_or_else(|| ApiError::not_found("there is no such saliency job, or it is long over"))
    }

    /// Ends all jobs.
    pub fn stop(&self) {
        self.lock().open.iter().for_each(|job| job.stop());
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    /// Takes a job from those that wait or run, unless it was cancelled or is over.
    fn close(&mut self, job: &Arc<Job>) -> bool {
        let place = self.open.iter().position(|other| Arc::ptr_eq(other, job));
        place.map(|place| self.open.remove(place)).is_some()
    }
}

impl Job {
    fn state(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.stopped.notify_one();
    }

    fn measure(&self) {
        let measured = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.task.measure(&self.stop, &mut |done, total| *self.state() = Progress::Running { done, total })
        }));
        *self.state() = match measured {
            _ if self.stop.load(Ordering::Relaxed) => Progress::Cancelled,
            Ok(Ok(saliency)) => Progress::Done(Arc::new(saliency)),
            Ok(Err(error)) => Progress::Failed(ApiError::server(error.to_string())),
            Err(_) => Progress::Failed(ApiError::server("a mistake of the server's; its log has more")),
        };
    }

    fn status(&self) -> Value {
        let (word, progress) = match &*self.state() {
            Progress::Waiting => ("waiting", None),
            Progress::Running { done, total } => ("running", Some(json!({ "done": done, "total": total }))),
            Progress::Done(_) => ("done", None),
            Progress::Failed(_) => ("failed", None),
            Progress::Cancelled => ("cancelled", None),
        };
        json!({ "id": self.id, "status": word, "method": self.task.method.name(), "progress": progress })
    }

    fn result(&self, format: Format) -> Result<Response, ApiError> {
        let saliency = match &*self.state() {
            Progress::Done(saliency) => saliency.clone(),
            Progress::Failed(error) => return Err(error.clone()),
            Progress::Waiting | Progress::Running { .. } | Progress::Cancelled => {
                return Err(ApiError::not_found("this saliency job was cancelled"));
            }
        };
        // Millions of numbers take seconds to write.
        tokio::task::block_in_place(|| match format {
            Format::Json => Ok(Json(self.found(&saliency)).into_response()),
            Format::Csv => {
                let csv = self.csv(&saliency).map_err(|error| ApiError::server(error.to_string()))?;
                Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], csv).into_response())
            }
        })
    }

    fn csv(&self, saliency: &Saliency) -> std::io::Result<Vec<u8>> {
        let task = &self.task;
        let run = Run { id: &self.id, method: task.method.name(), steps: &task.trace.steps, pool: &task.pool };
        let mut csv = Vec::new();
        run.write_csv(&saliency.layers, &mut csv)?;
        Ok(csv)
    }

    fn found<'a>(&'a self, saliency: &'a Saliency) -> Found<'a> {
        let layer = |layer: &'a LayerMaps| FoundLayer {
            layer: layer.layer,
            maps: layer.maps.iter().map(FoundMap::new).collect(),
        };
        Found {
            id: &self.id,
            status: "done",
            method: self.task.method.name(),
            loss: saliency.loss,
            steps: self.task.steps(),
            layers: saliency.layers.iter().map(layer).collect(),
        }
    }
}

impl Fields {
    /// The trace that is meant.
    fn trace(&self, app: &App) -> Result<TraceFile, ApiError> {
        match (&self.id, &self.trace) {
            (Some(id), None) => app.trace_of(id).ok_or_else(|| {
                ApiError::not_found("there is no such answer, or it is forgotten: only the last ones are remembered")
            }),
            (None, Some(trace)) => TraceFile::read(trace.to_string().as_bytes())
                .map_err(|error| ApiError::invalid(format!("trace: {error}"))),
            _ => Err(ApiError::invalid("expected the `id` of an answer, or a `trace`")),
        }
    }

    /// The layers that are meant, of a model with `n_layer`: in order, each once.
    fn layers(self, n_layer: usize) -> Result<Vec<usize>, ApiError> {
        let Some(layers) = self.layers else { return Ok((0..n_layer).collect()) };
        let layers = layer_selection(&layers).and_then(|layers| layers.resolve(n_layer, Side::Shallow));
        match layers.map_err(|error| ApiError::invalid(format!("layers: {error}")))? {
            none if none.is_empty() => Err(ApiError::invalid("layers: expected at least one, found none")),
            layers => Ok(layers.into_iter().collect()),
        }
    }
}

impl Task {
    fn new(app: &App, fields: Fields) -> Result<Self, ApiError> {
        let ready = app.ready()?;
        let (model, n_ctx) = (ready.model.clone(), ready.n_ctx);
        let trace = fields.trace(app)?;
        let tokens: Vec<Token> = trace.tokens.iter().map(|token| Token(token.id)).collect();
        let in_vocabulary = |token: &Token| token.0 >= 0 && (token.0 as usize) < model.n_vocab();
        if let Some(token) = tokens.iter().find(|token| !in_vocabulary(token)) {
            return Err(ApiError::invalid(format!("trace: token {} is none of this model's", token.0)));
        }
        if tokens.len() > n_ctx || trace.steps.len() < 2 {
            let (n, steps) = (tokens.len(), trace.steps.len());
            return Err(ApiError::invalid(format!(
                "expected at least 2 steps and at most {n_ctx} tokens, found {steps} steps and {n} tokens"
            )));
        }
        let (method, layers) = (fields.method, fields.layers(model.n_layer())?);
        let pool = Pool::new(trace.steps.iter().map(|step| step.tokens.clone()));
        let task = Self { model, trace, tokens, pool, method, layers };
        task.check_size()?;
        task.check_gradient()?;
        Ok(task)
    }

    /// Cells of its maps, as squares.
    fn n_cells(&self) -> usize {
        self.pool.n_steps().pow(2) * self.layers.len() * self.method.n_numbers()
    }

    /// Refuses what would take too much memory, before any of it is taken.
    fn check_size(&self) -> Result<(), ApiError> {
        let found = self.n_cells();
        if found <= MAX_CELLS {
            return Ok(());
        }
        let (steps, layers, numbers) = (self.pool.n_steps(), self.layers.len(), self.method.n_numbers());
        Err(ApiError::invalid(format!(
            "expected maps of at most {MAX_CELLS} cells, found {found} (steps {steps} x {steps}, layers {layers}, \
             numbers for each {numbers}): name fewer `layers` at a time, or give a trace of fewer steps"
        )))
    }

    fn check_gradient(&self) -> Result<(), ApiError> {
        if self.method != Method::Gradient {
            return Ok(());
        }
        let needed = saliency::gradient_memory(&self.model, self.tokens.len());
        let free = saliency::free_memory().unwrap_or(u64::MAX);
        let too_large = || {
            let mib = |bytes: u64| bytes >> 20;
            (needed > free).then(|| format!("a backward pass needs {} MiB, and {} are free", mib(needed), mib(free)))
        };
        match saliency::no_gradient(&self.model).or_else(too_large) {
            Some(reason) => {
                Err(ApiError::invalid(format!("method gradient: {reason}; probe and attention are others")))
            }
            None => Ok(()),
        }
    }

    fn measure(&self, stop: &Arc<AtomicBool>, progress: &mut dyn FnMut(usize, usize)) -> Result<Saliency, LlamaError> {
        let params = ContextParams {
            n_ctx: self.tokens.len() as u32,
            flash_attention: FlashAttention::Off,
            interrupt: Some(stop.clone()),
            ..ContextParams::default()
        };
        let layers = self.layers.clone();
        let counted = vec![true; self.tokens.len()];
        match self.method {
            Method::Attention => {
                let total = self.tokens.len();
                progress(0, total);
                let wanted = move |layer| layers.contains(&layer);
                let shown = |done| progress(done, total);
                saliency::attention(self.model.clone(), &params, &self.tokens, &self.pool, wanted, shown)
            }
            Method::Gradient => {
                let n_threads = params.n_threads;
                let (model, tokens) = (self.model.path(), self.tokens.as_slice());
                let pass = Backward { model, tokens, counted: &counted, n_threads, interrupt: stop.clone() };
                let n_layer = self.model.n_layer();
                progress(0, n_layer);
                let shown = |layer| progress(n_layer - layer, n_layer);
                saliency::gradient(&pass, &self.pool, |layer| layers.contains(&layer), shown)
            }
            Method::Probe => {
                let probe = Probe {
                    model: self.model.clone(),
                    params: &params,
                    tokens: &self.tokens,
                    counted: &counted,
                    pool: &self.pool,
                    layers: &layers,
                    estimator: Estimator::Rms,
                    pairs: 1,
                    budget: None,
                    seed: 0,
                };
                let total = probe.n_forwards();
                progress(0, total);
                probe.run(&mut |done| progress(done, total))
            }
        }
    }

    fn steps(&self) -> Vec<Value> {
        let step = |step: &Step| {
            let bytes: Vec<u8> = self.trace.tokens[step.tokens.clone()].iter().flat_map(|t| t.piece.clone()).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            json!({ "segment": step.segment, "start": step.tokens.start, "end": step.tokens.end, "text": text })
        };
        self.trace.steps.iter().map(step).collect()
    }
}

/// A result as JSON. It borrows its numbers, for a `Value` of each would take several times their memory.
#[derive(Serialize)]
struct Found<'a> {
    id: &'a str,
    status: &'static str,
    method: &'static str,
    loss: Option<f64>,
    steps: Vec<Value>,
    layers: Vec<FoundLayer<'a>>,
}

#[derive(Serialize)]
struct FoundLayer<'a> {
    layer: usize,
    maps: Vec<FoundMap<'a>>,
}

#[derive(Serialize)]
struct FoundMap<'a> {
    metric: &'static str,
    unit: &'static str,
    /// A triangle: row `q` has the steps up to `q`.
    values: Vec<&'a [f64]>,
}

impl<'a> FoundMap<'a> {
    fn new(map: &'a MetricMap) -> Self {
        let rows = (0..map.values.n_steps()).map(|query| map.values.row(query));
        Self { metric: map.metric.name(), unit: map.metric.unit(), values: rows.collect() }
    }
}
