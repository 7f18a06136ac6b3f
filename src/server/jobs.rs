//! The jobs of `/v1/saliency`: those that wait, the one that runs, and what the last ones found. All of it stays in memory:
//! a job that is cut short leaves nothing.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::future::{Either, select};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

use crate::saliency::{LayerMaps, MetricMap, Run, Saliency};

use super::error::ApiError;
use super::measuring::{Format, MAX_CELLS, Task};
use super::names::random_id;

/// Jobs that can wait for the one that runs, and as many requests for attention.
const MAX_WAITING: usize = 8;

/// Jobs that are remembered once they are over.
const MAX_KEPT: usize = 32;

/// Cells of all jobs that are remembered.
const MAX_KEPT_CELLS: usize = 4 * MAX_CELLS;

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
    pub id: String,
    task: Task,
    pub format: Format,
    /// Interrupts it while it runs.
    stop: Arc<AtomicBool>,
    /// Ends its waiting.
    stopped: Notify,
    state: Mutex<Progress>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    Waiting,
    Running { done: usize, total: usize },
    Done(Arc<Saliency>),
    Failed(ApiError),
    Cancelled,
}

/// Cancels a job whose client is gone before it is over.
pub struct CancelOnDrop<'a> {
    pub jobs: &'a Jobs,
    pub job: &'a Arc<Job>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.jobs.lock().close(self.job) {
            self.job.stop();
        }
    }
}

impl Default for Jobs {
    fn default() -> Self {
        let turn = || Arc::new(Semaphore::new(1));
        Self { lists: Mutex::default(), in_background: turn(), at_once: turn() }
    }
}

impl Jobs {
    /// Puts a task in line.
    ///
    /// # Errors
    /// When the line is full.
    pub fn add(&self, task: Task, format: Format) -> Result<Arc<Job>, ApiError> {
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
    pub async fn run(&self, job: &Arc<Job>) {
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

    /// The job of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, id: &str) -> Result<Arc<Job>, ApiError> {
        let lists = self.lock();
        let found = lists.open.iter().chain(&lists.over).find(|job| job.id == id).cloned();
        found.ok_or_else(|| ApiError::not_found("there is no such saliency job, or it is long over"))
    }

    /// Cancels a job that waits or runs, and forgets one that is over.
    pub fn forget(&self, job: &Arc<Job>) {
        job.stop();
        let mut lists = self.lock();
        lists.close(job);
        lists.over.retain(|other| !Arc::ptr_eq(other, job));
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

    /// Whether it neither waits nor runs any more.
    pub fn is_over(&self) -> bool {
        !matches!(*self.state(), Progress::Waiting | Progress::Running { .. })
    }

    /// How far it is.
    pub fn status(&self) -> Value {
        let (word, progress) = match &*self.state() {
            Progress::Waiting => ("waiting", None),
            Progress::Running { done, total } => ("running", Some(json!({ "done": done, "total": total }))),
            Progress::Done(_) => ("done", None),
            Progress::Failed(_) => ("failed", None),
            Progress::Cancelled => ("cancelled", None),
        };
        json!({ "id": self.id, "status": word, "method": self.task.method.name(), "progress": progress })
    }

    /// What it found.
    ///
    /// # Errors
    /// When it failed or was cancelled.
    pub fn result(&self, format: Format) -> Result<Response, ApiError> {
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
