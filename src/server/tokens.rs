//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::llama::{Model, Token};

use super::app::App;
use super::error::ApiError;
use super::guard::Body;
use super::plan::token;
use super::request::read;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokenize {
    content: Value,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

/// `POST /tokenize`: a text, or a list of texts and tokens.
pub async fn tokenize(State(app): State<Arc<App>>, Body(body): Body) -> Result<Json<Value>, ApiError> {
    let fields: Tokenize = read(&body)?;
    let model = &app.ready()?.model;
    let tokens = tokio::task::block_in_place(|| tokens_of(&fields, model))?;
    let tokens: Vec<Value> = match fields.with_pieces.unwrap_or(false) {
        true => tokens.into_iter().map(|token| json!({ "id": token.0, "piece": piece(token, model) })).collect(),
        false => tokens.into_iter().map(|token| token.0.into()).collect(),
    };
    Ok(Json(json!({ "tokens": tokens })))
}

fn tokens_of(fields: &Tokenize, model: &Model) -> Result<Vec<Token>, ApiError> {
    let mut add_special = fields.add_special.unwrap_or(false);
    let special = fields.parse_special.unwrap_or(true);
    let mut tokens = Vec::new();
    let parts = match &fields.content {
        Value::Null => &[][..],
        Value::Array(parts) => parts,
        one => std::slice::from_ref(one),
    };
    for part in parts {
        match part {
            Value::String(text) => tokens.extend(model.tokenize(text, std::mem::take(&mut add_special), special)),
            part => tokens.push(token(part, model)?),
        }
    }
    Ok(tokens)
}

/// The text of a token, or its bytes where they are no text.
fn piece(token: Token, model: &Model) -> Value {
    match String::from_utf8(model.piece(token)) {
        Ok(text) => text.into(),
        Err(error) => error.into_bytes().into(),
    }
}

/// `POST /detokenize`.
pub async fn detokenize(State(app): State<Arc<App>>, Body(body): Body) -> Result<Json<Value>, ApiError> {
    let model = &app.ready()?.model;
    let tokens = match body.get("tokens") {
        None => &[][..],
        Some(Value::Array(tokens)) => tokens,
        Some(other) => return Err(ApiError::invalid(format!("tokens: expected a list of tokens, found {other}"))),
    };
    let pieces = tokens.iter().map(|value| Ok(model.piece(token(value, model)?)));
    let bytes = pieces.collect::<Result<Vec<_>, ApiError>>()?.concat();
    Ok(Json(json!({ "content": String::from_utf8_lossy(&bytes) })))
}
