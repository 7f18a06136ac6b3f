//! The page to chat on: one file without a build step, part of the program.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Where it is found.
pub const PATHS: &[&str] = &["/", "/index.html"];

/// Whether a path is one of the page's, for which no key is asked.
pub fn is_asset(path: &str) -> bool {
    PATHS.contains(&path)
}

/// `GET /`.
pub async fn asset() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("page.html")).into_response()
}
