//! The page to chat on: files without a build step, part of the program, and the Markdown of its answers.

use axum::Json;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::llama::on_stack;

use super::error::ApiError;
use super::guard::Body;
use super::markdown::to_html;
use super::request::read;

/// A path of the page's, the type of what is there, and what is there.
type File = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 10] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/index.html", HTML, include_str!("page/index.html")),
    ("/page/style.css", STYLE, include_str!("page/style.css")),
    ("/page/main.js", SCRIPT, include_str!("page/main.js")),
    ("/page/api.js", SCRIPT, include_str!("page/api.js")),
    ("/page/map.css", STYLE, include_str!("../pages/map.css")),
    ("/page/map.js", SCRIPT, include_str!("../pages/map.js")),
    ("/page/settings.js", SCRIPT, include_str!("page/settings.js")),
    ("/page/store.js", SCRIPT, include_str!("page/store.js")),
    ("/page/view.js", SCRIPT, include_str!("page/view.js")),
];

/// What the page may do: nothing but its own scripts runs, and nothing but this server is asked.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where Markdown is rendered.
pub const MARKDOWN: &str = "/page/markdown";

/// Bytes of Markdown that one request can have; with formulas alone it takes a second.
const MAX_TEXT: usize = 200_000;

/// Bytes of stack for it. The library of formulas recurses over them; the hungriest of the longest takes 8 MiB.
const STACK: usize = 64 << 20;

/// Where its files are found.
pub fn paths() -> [&'static str; FILES.len()] {
    FILES.map(|(path, ..)| path)
}

/// Whether a path is one of its files, for which no key is asked.
pub fn is_asset(path: &str) -> bool {
    paths().contains(&path)
}

/// `GET` of a file.
pub async fn asset(uri: Uri) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|(path, ..)| *path == uri.path()) else {
        return ApiError::not_found("the page has no such file").into_response();
    };
    let headers =
        [(header::CONTENT_TYPE, *kind), (header::CONTENT_SECURITY_POLICY, POLICY), (header::CACHE_CONTROL, "no-cache")];
    (headers, *text).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    texts: Vec<String>,
}

/// `POST /page/markdown`: the HTML of each text.
pub async fn markdown(Body(body): Body) -> Result<Json<Value>, ApiError> {
    let Texts { texts } = read(&body)?;
    let found = texts.iter().map(String::len).sum::<usize>();
    if found > MAX_TEXT {
        return Err(ApiError::invalid(format!("texts: expected at most {MAX_TEXT} bytes in all, found {found}")));
    }
    let html = tokio::task::block_in_place(|| rendered(&texts));
    html.map(|html| Json(json!({ "html": html })))
        .map_err(|error| ApiError::server(format!("cannot start a thread: {error}")))
}

fn rendered(texts: &[String]) -> std::io::Result<Vec<String>> {
    on_stack(STACK, || texts.iter().map(|text| to_html(text)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_within_groups_find_a_stack() {
        for piece in [
            "\\bf",
            "\\tiny",
            "\\color{red}",
            "\\displaystyle",
            "\\begin{matrix}",
            "\\bgroup",
            "\\begingroup",
            "\\left(",
            "\\mathbf",
        ] {
            let text = format!("\\[{}\\]", piece.repeat(3900 / piece.len()));
            assert!(rendered(&[text]).is_ok(), "{piece}");
        }
    }

    /// Each takes some milliseconds where time is in proportion to the text, and hours where it is not.
    #[test]
    fn long_texts_take_no_long_time() {
        let begun = std::time::Instant::now();
        for piece in [
            "$",
            "$a",
            "$$ a",
            "\\[",
            "\\(",
            "\\boxed{",
            "\\begin{align}",
            "[",
            "![",
            "*a_",
            "> ",
            "`a``",
            "<a ",
            "<!--",
            "|",
            "- ",
            "$a\n\n",
            "[a](",
        ] {
            assert!(rendered(&[piece.repeat(MAX_TEXT / piece.len())]).is_ok(), "{piece}");
        }
        assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    }
}
