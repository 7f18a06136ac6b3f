//! What every request passes: keys, origins, limits; and how its body is read.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::app::App;
use super::error::ApiError;
use super::options::Options;

/// A JSON body, within the server's limits of size and time.
pub struct Body(pub Value);

impl FromRequest<Arc<App>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let limit = app.options.max_body;
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > limit as u64) {
            return Err(ApiError::too_large(limit));
        }
        let reading = axum::body::to_bytes(request.into_body(), limit);
        let bytes = match tokio::time::timeout(app.options.read_timeout, reading).await {
            Err(_) => return Err(ApiError::too_slow()),
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if is_over_limit(&error) => return Err(ApiError::too_large(limit)),
            Ok(Err(error)) => return Err(ApiError::invalid(format!("cannot read the request's body: {error}"))),
        };
        let body: Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::invalid(format!("the request's body is not JSON: {error}")))?;
        match body {
            Value::Object(_) => Ok(Self(whole_numbers(body))),
            _ => Err(ApiError::invalid("expected the request's body to be a JSON object")),
        }
    }
}

/// The same, with numbers such as 8.0 as 8, which some clients' languages cannot tell apart.
fn whole_numbers(value: Value) -> Value {
    // Up to here every whole number is one of a float's.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() <= EXACT => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(values) => values.into_iter().map(whole_numbers).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, whole_numbers(value))).collect(),
        value => value,
    }
}

fn is_over_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// Refuses what has no key or comes from a foreign page, turns a panic into an error, and counts.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let is_anthropic = request.uri().path().starts_with("/v1/messages");
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.filter(|origin| allows_origin(&app.options, origin));
    let mut response = match check(&app.options, &request) {
        Ok(()) if request.method() == Method::OPTIONS => preflight(allowed.is_some()),
        Ok(()) => AssertUnwindSafe(next.run(request))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| ApiError::server("a mistake of the server's; its log has more").into_response()),
        Err(error) => error.into_response(),
    };
    if is_anthropic && response.status().as_u16() >= 400 {
        response = anthropic_error(response).await;
    }
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static(concat!("stepflow/", env!("CARGO_PKG_VERSION"))));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    app.metrics.count_request(response.status().as_u16());
    response
}

/// An error as Anthropic's clients read it: with a `type` of its own.
async fn anthropic_error(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let mut error: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    error["type"] = "error".into();
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, error.to_string().into())
}

fn check(options: &Options, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    if request.method() == Method::OPTIONS {
        return Ok(());
    }
    if options.keys.is_empty() && options.is_local() && !is_known_host(options, headers) {
        return Err(ApiError::forbidden(
            "Without an API key this server answers to localhost and to addresses; --cors-origins can add a name",
        ));
    }
    // A browser sends some requests for a foreign page without asking first, though the page may not read the answer.
    if let Some(origin) = headers.get(header::ORIGIN)
        && !request.method().is_safe()
        && !is_own(headers, origin)
        && !allows_origin(options, origin)
    {
        return Err(ApiError::forbidden("This origin may not use the server; --cors-origins can allow it"));
    }
    let path = request.uri().path();
    let is_public = matches!(path, "/health" | "/v1/health") || (options.page && super::page::is_asset(path));
    if is_public || options.keys.is_empty() || has_key(&options.keys, headers) {
        return Ok(());
    }
    Err(ApiError::unauthorized())
}

/// Whether a request has one of the keys. Takes as long for a key that is nearly right as for any other.
fn has_key(keys: &[String], headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let Some(given) = bearer.or_else(|| text("x-api-key")) else { return false };
    // Digests have one length, which comparing texts of different lengths would tell.
    let digest = |key: &str| Sha256::digest(key.trim().as_bytes());
    let given = digest(given);
    let found = keys.iter().map(|key| digest(key).as_slice().ct_eq(given.as_slice()));
    found.fold(subtle::Choice::from(0), |any, this| any | this).into()
}

/// Whether a request names the server by what cannot be a foreign page's name: a page can have its own name lead to
/// this machine, and is then of the server's origin to a browser (DNS rebinding).
fn is_known_host(options: &Options, headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let (name, _) = name_and_port(host);
    let is_added = |origin: &String| origin == "*" || origin.split_once("://").is_some_and(|(_, added)| added == host);
    name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || options.cors_origins.iter().any(is_added)
}

/// Whether a page of `origin` comes from this server.
fn is_own(headers: &HeaderMap, origin: &HeaderValue) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    matches!((host, origin), (Some(host), Some((_, origin))) if host == origin)
}

fn allows_origin(options: &Options, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    options.cors_origins.iter().any(|allowed| match allowed.as_str() {
        "*" => true,
        "localhost" => is_local(origin),
        allowed => allowed == origin,
    })
}

/// Whether `origin` is a page of this machine, on any port.
fn is_local(origin: &str) -> bool {
    let (name, port) = name_and_port(origin.split_once("://").map_or(origin, |(_, host)| host));
    port.bytes().all(|byte| byte.is_ascii_digit()) && ["localhost", "127.0.0.1", "[::1]"].contains(&name)
}

fn name_and_port(host: &str) -> (&str, &str) {
    // An IPv6 address has colons of its own, in brackets.
    host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).unwrap_or((host, ""))
}

fn preflight(allowed: bool) -> Response {
    let mut response = StatusCode::OK.into_response();
    if allowed {
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, Authorization"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn keys() {
        let keys = ["one".to_owned(), "two".to_owned()];
        for (name, value) in [("authorization", "Bearer two"), ("x-api-key", "one")] {
            assert!(has_key(&keys, &headers(name, value)), "{name}: {value}");
        }
        for (name, value) in [
            ("authorization", "two"),
            ("authorization", "Bearer "),
            ("authorization", "Bearer tw"),
            ("authorization", "Bearer two2"),
            ("x-api-key", ""),
            ("cookie", "one"),
        ] {
            assert!(!has_key(&keys, &headers(name, value)), "{name}: {value}");
        }
    }

    #[test]
    fn pages_of_this_machine() {
        for origin in
            ["http://localhost", "http://localhost:3000", "https://127.0.0.1:1", "http://[::1]", "http://[::1]:80"]
        {
            assert!(is_local(origin), "{origin}");
        }
        for origin in
            ["http://evil.com", "http://notlocalhost", "http://localhost.evil.com", "http://localhost:80@evil.com"]
        {
            assert!(!is_local(origin), "{origin}");
        }
    }
}
