//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use super::app::App;
use super::error::ApiError;
use super::{chat, completion, guard, info, messages, page, responses, saliency, tokens};

/// Everything that the server answers.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    let mut at = |paths: &[&str], route: MethodRouter<Arc<App>>| {
        for path in paths {
            router = std::mem::take(&mut router).route(path, route.clone());
        }
    };
    at(&["/health", "/v1/health"], get(info::health));
    at(&["/props"], get(info::props).post(info::not_here));
    at(&["/models", "/v1/models"], get(info::models));
    at(&["/models/{*id}", "/v1/models/{*id}"], get(info::model));
    at(&["/slots"], get(info::slots));
    at(&["/metrics"], get(info::metrics));
    at(&["/completion", "/completions"], post(completion::native));
    at(&["/v1/completions"], post(completion::openai));
    at(&["/chat/completions", "/v1/chat/completions"], post(chat::completions));
    at(&["/apply-template"], post(chat::apply_template));
    at(&["/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"], post(chat::count_tokens));
    at(&["/responses", "/v1/responses"], post(responses::create));
    at(&["/v1/messages"], post(messages::create));
    at(&["/v1/messages/count_tokens"], post(messages::count_tokens));
    at(&["/tokenize"], post(tokens::tokenize));
    at(&["/detokenize"], post(tokens::detokenize));
    at(&["/v1/saliency"], post(saliency::create));
    at(&["/v1/saliency/{id}"], get(saliency::show).delete(saliency::cancel));
    at(&["/infill", "/embedding", "/embeddings", "/v1/embeddings"], post(info::not_here));
    at(&["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"], post(info::not_here));
    at(&["/audio/transcriptions", "/v1/audio/transcriptions", "/slots/{id}"], post(info::not_here));
    at(&["/lora-adapters"], get(info::not_here).post(info::not_here));
    if app.options.page {
        at(&page::paths(), get(page::asset));
        at(&[page::MARKDOWN], post(page::markdown));
    }
    router
        .fallback(info::nowhere)
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}
