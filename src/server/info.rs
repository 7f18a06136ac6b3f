//! What the server says of itself: health, properties, models, slots and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::engine::SlotStatus;

use super::app::{App, Ready};
use super::error::ApiError;
use super::plan::stepflow_json;
use super::request::sampling_json;

/// `GET /health`.
pub async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    app.ready()?;
    match app.queue.is_closed() {
        true => Err(ApiError::shutting_down()),
        false => Ok(Json(json!({ "status": "ok" }))),
    }
}

/// `GET /props`.
pub async fn props(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let ready = app.ready()?;
    let text = |token: Option<crate::llama::Token>| {
        token.map(|token| String::from_utf8_lossy(&ready.model.piece(token)).into_owned()).unwrap_or_default()
    };
    Ok(Json(json!({
        "default_generation_settings": { "params": default_params(&app, ready), "n_ctx": ready.n_ctx },
        "total_slots": app.options.slots,
        "model_alias": app.model_name(),
        "model_path": ready.model.path(),
        "modalities": { "vision": false, "audio": false },
        "endpoint_slots": app.options.slots_endpoint,
        "endpoint_props": false,
        "endpoint_metrics": app.options.metrics,
        "chat_template": ready.templates.source(),
        "chat_template_tool_use": ready.templates.tool_use_source(),
        "chat_template_caps": ready.templates.caps(),
        "supports_thinking": ready.templates.supports_thinking(),
        "bos_token": text(ready.model.bos()),
        "eos_token": text(ready.model.eos()),
        "build_info": super::fingerprint(),
        "is_sleeping": false,
        "stepflow": {
            "default": stepflow_json(&ready.stepflow),
            "settings": ready.stepflow_settings.as_ref().map(stepflow_json),
            "works": ready.stepflow_settings.is_some().then_some(&ready.works_in),
            "family": ready.family.to_string(),
        },
    })))
}

fn default_params(app: &App, ready: &Ready) -> Map<String, Value> {
    let mut params = sampling_json(&ready.sampling);
    let n_predict = app.options.max_tokens.map_or(-1, |n| n as i64);
    params.insert("max_tokens".into(), n_predict.into());
    params.insert("n_predict".into(), n_predict.into());
    params
}

/// `GET /v1/models/ID`.
pub async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let ready = app.ready()?;
    match id == app.model_name() || app.options.aliases.contains(&id) {
        true => Ok(Json(entry(&app, ready))),
        false => Err(ApiError::not_found(format!("There is no model `{id}`; this server's is `{}`", app.model_name()))),
    }
}

/// `GET /v1/models`: the one that there is.
pub async fn models(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let ready = app.ready()?;
    let (model, name) = (&ready.model, app.model_name());
    Ok(Json(json!({
        "object": "list",
        "models": [{
            "name": name,
            "model": name,
            "type": "model",
            "tags": app.options.tags,
            "capabilities": ["completion"],
            "details": { "format": "gguf", "family": model.metadata().architecture() },
        }],
        "data": [entry(&app, ready)],
    })))
}

/// OpenAI's description of the model.
fn entry(app: &App, ready: &Ready) -> Value {
    let created = app.started.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    json!({
        "id": app.model_name(),
        "object": "model",
        "created": created,
        "owned_by": "stepflow",
        "aliases": app.options.aliases,
        "tags": app.options.tags,
        "meta": {
            "n_vocab": ready.model.n_vocab(),
            "n_ctx": ready.n_ctx,
            "n_ctx_train": ready.model.n_ctx_train(),
            "n_params": ready.model.n_params(),
            "size": ready.model.size(),
        },
    })
}

#[derive(Debug, Deserialize)]
pub struct SlotsQuery {
    fail_on_no_slot: Option<String>,
}

/// `GET /slots`.
pub async fn slots(State(app): State<Arc<App>>, Query(query): Query<SlotsQuery>) -> Result<Json<Value>, ApiError> {
    if !app.options.slots_endpoint {
        return Err(ApiError::not_supported("This server does not support slots endpoint. Start it with `--slots`"));
    }
    let ready = app.ready()?;
    let slots = ready.slots().clone();
    if query.fail_on_no_slot.is_some() && slots.iter().all(|slot| slot.job.is_some()) {
        return Err(ApiError::no_slot());
    }
    Ok(Json(slots.iter().enumerate().map(|(id, slot)| slot_json(id, slot, ready.n_ctx)).collect()))
}

fn slot_json(id: usize, slot: &SlotStatus, n_ctx: usize) -> Value {
    let remain = slot.max_tokens.map_or(-1, |max| max.saturating_sub(slot.n_generated) as i64);
    json!({
        "id": id,
        "id_task": slot.job.map_or(-1, |job| job as i64),
        "n_ctx": n_ctx,
        "speculative": false,
        "is_processing": slot.job.is_some(),
        "n_prompt_tokens": slot.n_prompt,
        "n_prompt_tokens_cache": slot.n_cached,
        "next_token": [{
            "has_next_token": slot.job.is_some(),
            "n_remain": if slot.job.is_some() { remain } else { -1 },
            "n_decoded": slot.n_generated,
        }],
        "stepflow": slot.stepflow.as_ref().map(stepflow_json),
    })
}

/// `GET /metrics`.
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if !app.options.metrics {
        let message = "This server does not support metrics endpoint. Start it with `--metrics`";
        return Err(ApiError::not_supported(message));
    }
    let processing = app.ready()?.slots().iter().filter(|slot| slot.job.is_some()).count();
    let started = app.started.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/plain; version=0.0.4".to_owned()),
        ("process-start-time-unix", started.to_string()),
    ];
    Ok((headers, app.metrics.scrape(processing, app.queue.len())).into_response())
}

/// What llama-server has and this server has not.
pub async fn not_here() -> ApiError {
    ApiError::not_supported("This server does not support this endpoint; it serves text generation alone")
}

/// What is nowhere.
pub async fn nowhere() -> ApiError {
    ApiError::not_found("File Not Found")
}
