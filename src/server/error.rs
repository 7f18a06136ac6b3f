//! What a request can fail with, in the shape that OpenAI's clients and llama-server's read.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::{EngineError, GrammarError};
use crate::llama::LlamaError;
use crate::llama::chat::ChatError;
use crate::stepflow::ConfigError;

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// Further fields of the error object.
    details: Vec<(&'static str, Value)>,
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), details: Vec::new(), retry_after: None }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// No key, or not one of the server's.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "Invalid API Key")
    }

    /// The request comes from where none may come from.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// Every slot is at work, and the request asked to be told.
    pub fn no_slot() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "no slot available").retry_after(1)
    }

    /// There is nothing at this path.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// The path knows other methods than this one.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "This path does not take this method")
    }

    /// The server was not started for it.
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", message)
    }

    /// The model is being loaded.
    pub fn loading() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "Loading model").retry_after(1)
    }

    /// The server is about to end.
    pub fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "The server is shutting down")
    }

    /// The queue is full; there may be room after `seconds`.
    pub fn overloaded(seconds: u64) -> Self {
        let message = "The server is busy and its queue is full; try again later";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).retry_after(seconds)
    }

    /// The body has more bytes than the server takes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("The request's body is larger than the {limit} bytes that this server takes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// The body did not come in time.
    pub fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "The request's body did not come in time")
    }

    /// Something that is not the request's fault.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The error object.
    pub fn to_json(&self) -> Value {
        let mut error = json!({ "code": self.status.as_u16(), "message": self.message, "type": self.kind });
        for (key, value) in &self.details {
            error[*key] = value.clone();
        }
        json!({ "error": error })
    }

    /// The same as Anthropic's clients read it.
    pub fn to_anthropic(&self) -> Value {
        let mut object = self.to_json();
        object["type"] = "error".into();
        object
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::PromptTooLong { n_prompt, n_ctx } => Self {
                kind: "exceed_context_size_error",
                details: vec![("n_prompt_tokens", n_prompt.into()), ("n_ctx", n_ctx.into())],
                ..Self::invalid(format!(
                    "the request ({n_prompt} tokens) exceeds the available context size ({n_ctx} tokens), try increasing it"
                ))
            },
            EngineError::EmptyPrompt => Self::invalid("the prompt is empty"),
            EngineError::Config(error) => error.into(),
            EngineError::NotHookable(_) => Self::not_supported(message),
            EngineError::Grammar(_) => Self::invalid(message),
            EngineError::Llama(LlamaError::Interrupted) => Self::shutting_down(),
            EngineError::Llama(_) => Self::server(message),
        }
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::invalid(format!("stepflow: {error}"))
    }
}

impl From<GrammarError> for ApiError {
    fn from(error: GrammarError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        let message = error.to_string();
        match error {
            ChatError::Template(_) | ChatError::Request(_) => Self::invalid(message),
            ChatError::Answer(_) | ChatError::Internal(_) => Self::server(message),
        }
    }
}
