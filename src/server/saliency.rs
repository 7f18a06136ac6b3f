//! `/v1/saliency`: the maps of an answer or a trace. Attention is measured at once; what takes longer is a job in the
//! background. What is measured stays in memory: a job that is cut short leaves nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::llama::{Backward, ContextParams, FlashAttention, LlamaError, Model, Token};
use crate::saliency::{self, Estimator, LayerMaps, Pool, Probe, Run, Saliency};
use crate::trace::TraceFile;

use super::app::App;
use super::error::ApiError;
use super::generation::random_id;
use super::guard::Body;
use super::request::read;

/// Jobs that can wait for the one that runs.
const MAX_WAITING: usize = 8;

/// Jobs that are remembered.
const MAX_JOBS: usize = 32;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    /// The name of a finished answer.
    id: Option<String>,
    /// A trace file.
    trace: Option<Value>,
    #[serde(default)]
    method: Method,
    layers: Option<Vec<usize>>,
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
#[derive(Default)]
pub struct Jobs {
    jobs: Mutex<VecDeque<Arc<Job>>>,
    /// Measuring takes all processors, so one job runs at a time.
    running: Mutex<()>,
}

/// A job, and what came of it.
pub struct Job {
    id: String,
    task: Task,
    format: Format,
    stop: Arc<AtomicBool>,
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

/// Ends a job whose client is gone.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `POST /v1/saliency`.
pub async fn create(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    let fields: Fields = read(&body)?;
    let (method, format) = (fields.method, fields.format);
    let task = tokio::task::block_in_place(|| Task::new(&app, fields))?;
    let job = app.jobs.add(task, format)?;
    let (runner, running) = (app.clone(), job.clone());
    let work = tokio::task::spawn_blocking(move || runner.jobs.run(&running));
    if method == Method::Attention {
        let guard = StopOnDrop(job.stop.clone());
        _ = work.await;
        drop(guard);
        return job.result(format);
    }
    Ok((StatusCode::ACCEPTED, Json(job.status())).into_response())
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
    job.stop.store(true, Ordering::Relaxed);
    app.jobs.lock().retain(|other| other.id != id);
    Ok(Json(json!({ "id": id, "status": "cancelled" })))
}

impl Jobs {
    fn add(&self, task: Task, format: Format) -> Result<Arc<Job>, ApiError> {
        let mut jobs = self.lock();
        let waiting = jobs.iter().filter(|job| *job.state() == Progress::Waiting).count();
        if waiting >= MAX_WAITING {
            return Err(ApiError::overloaded(10));
        }
        let over = |job: &Arc<Job>| !matches!(*job.state(), Progress::Waiting | Progress::Running { .. });
        if jobs.len() >= MAX_JOBS
            && let Some(oldest) = jobs.iter().position(over)
        {
            jobs.remove(oldest);
        }
        let state = Mutex::new(Progress::Waiting);
        let job = Arc::new(Job { id: random_id("sal-"), task, format, stop: Arc::default(), state });
        jobs.push_back(job.clone());
        Ok(job)
    }

    fn run(&self, job: &Job) {
        let _one_at_a_time = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if job.stop.load(Ordering::Relaxed) {
            *job.state() = Progress::Cancelled;
            return;
        }
        let measured = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            job.task.measure(&job.stop, &mut |done, total| *job.state() = Progress::Running { done, total })
        }));
        *job.state() = match measured {
            _ if job.stop.load(Ordering::Relaxed) => Progress::Cancelled,
            Ok(Ok(saliency)) => Progress::Done(Arc::new(saliency)),
            Ok(Err(error)) => Progress::Failed(ApiError::server(error.to_string())),
            Err(_) => Progress::Failed(ApiError::server("a mistake of the server's; its log has more")),
        };
    }

    fn find(&self, id: &str) -> Result<Arc<Job>, ApiError> {
        let found = self.lock().iter().find(|job| job.id == id).cloned();
        found.ok_or_else(|| ApiError::not_found("there is no such saliency job, or it is long over"))
    }

    /// Ends all jobs.
    pub fn stop(&self) {
        self.lock().iter().for_each(|job| job.stop.store(true, Ordering::Relaxed));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn state(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let task = &self.task;
        let run = Run { id: &self.id, method: task.method.name(), steps: &task.trace.steps, pool: &task.pool };
        match format {
            Format::Json => Ok(Json(task.to_json(&self.id, &saliency)).into_response()),
            Format::Csv => {
                let mut csv = Vec::new();
                run.write_csv(&saliency.layers, &mut csv).map_err(|error| ApiError::server(error.to_string()))?;
                Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], csv).into_response())
            }
        }
    }
}

impl Task {
    fn new(app: &App, fields: Fields) -> Result<Self, ApiError> {
        let model = app.ready()?.model.clone();
        let trace = match (&fields.id, &fields.trace) {
            (Some(id), None) => app.trace_of(id).ok_or_else(|| {
                ApiError::not_found("there is no such answer, or it is forgotten: only the last ones are remembered")
            })?,
            (None, Some(trace)) => TraceFile::read(trace.to_string().as_bytes())
                .map_err(|error| ApiError::invalid(format!("trace: {error}")))?,
            _ => return Err(ApiError::invalid("expected the `id` of an answer, or a `trace`")),
        };
        let tokens: Vec<Token> = trace.tokens.iter().map(|token| Token(token.id)).collect();
        let in_vocabulary = |token: &Token| token.0 >= 0 && (token.0 as usize) < model.n_vocab();
        if let Some(token) = tokens.iter().find(|token| !in_vocabulary(token)) {
            return Err(ApiError::invalid(format!("trace: token {} is none of this model's", token.0)));
        }
        let n_ctx = app.ready()?.n_ctx;
        if tokens.len() > n_ctx || trace.steps.len() < 2 {
            let (n, steps) = (tokens.len(), trace.steps.len());
            return Err(ApiError::invalid(format!(
                "expected at least 2 steps and at most {n_ctx} tokens, found {steps} steps and {n} tokens"
            )));
        }
        let layers = fields.layers.unwrap_or_else(|| (0..model.n_layer()).collect());
        if let Some(layer) = layers.iter().find(|&&layer| layer >= model.n_layer()) {
            let last = model.n_layer() - 1;
            return Err(ApiError::invalid(format!("layers: expected numbers from 0 to {last}, found {layer}")));
        }
        let pool = Pool::new(trace.steps.iter().map(|step| step.tokens.clone()));
        let task = Self { model, trace, tokens, pool, method: fields.method, layers };
        task.check()?;
        Ok(task)
    }

    fn check(&self) -> Result<(), ApiError> {
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
                let wanted = move |layer| layers.contains(&layer);
                let shown = |done| progress(done, total);
                saliency::attention(self.model.clone(), &params, &self.tokens, &self.pool, wanted, shown)
            }
            Method::Gradient => {
                let n_threads = params.n_threads;
                let (model, tokens) = (self.model.path(), self.tokens.as_slice());
                let pass = Backward { model, tokens, counted: &counted, n_threads, interrupt: stop.clone() };
                let n_layer = self.model.n_layer();
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
                probe.run(&mut |done| progress(done, total))
            }
        }
    }

    /// The maps, each a triangle: row `q` has the steps up to `q`.
    fn to_json(&self, id: &str, saliency: &Saliency) -> Value {
        let steps = self.trace.steps.iter().map(|step| {
            let bytes: Vec<u8> = self.trace.tokens[step.tokens.clone()].iter().flat_map(|t| t.piece.clone()).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            json!({ "segment": step.segment, "start": step.tokens.start, "end": step.tokens.end, "text": text })
        });
        let maps = |layer: &LayerMaps| {
            let maps = layer.maps.iter().map(|map| {
                let rows = (0..map.values.n_steps()).map(|query| map.values.row(query).to_vec());
                json!({ "metric": map.metric.name(), "unit": map.metric.unit(), "values": rows.collect::<Vec<_>>() })
            });
            json!({ "layer": layer.layer, "maps": maps.collect::<Vec<_>>() })
        };
        json!({
            "id": id,
            "status": "done",
            "method": self.method.name(),
            "loss": saliency.loss,
            "steps": steps.collect::<Vec<_>>(),
            "layers": saliency.layers.iter().map(maps).collect::<Vec<_>>(),
        })
    }
}
