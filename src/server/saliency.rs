//! `/v1/saliency`: the maps of an answer or a trace. Attention is measured at once; what takes longer is a job in the
//! background.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::llama::Token;
use crate::saliency::Pool;
use crate::stepflow::Side;
use crate::trace::TraceFile;

use super::app::App;
use super::error::ApiError;
use super::guard::Body;
use super::jobs::CancelOnDrop;
use super::measuring::{Format, Method, Task};
use super::request::{layer_selection, read};

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

/// Which form a result is wanted in.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    format: Option<Format>,
}

/// `POST /v1/saliency`.
pub async fn create(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, ApiError> {
    if app.options.lora {
        let message = "maps are of the model alone, and this server adds a LoRA adapter: merge it into the model first";
        return Err(ApiError::not_supported(message));
    }
    let fields: Fields = read(&body)?;
    let (method, format) = (fields.method, fields.format);
    let task = tokio::task::block_in_place(|| task(&app, fields))?;
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
    if job.is_over() { job.result(wanted.format.unwrap_or(job.format)) } else { Ok(Json(job.status()).into_response()) }
}

/// `DELETE /v1/saliency/{id}`: a job that runs is cancelled, one that is over is forgotten.
pub async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let job = app.jobs.find(&id)?;
    app.jobs.forget(&job);
    Ok(Json(json!({ "id": id, "status": "cancelled" })))
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

/// What is to be measured, if it can be.
fn task(app: &App, fields: Fields) -> Result<Task, ApiError> {
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
    let task = Task { model, trace, tokens, pool, method, layers };
    task.check()?;
    Ok(task)
}
