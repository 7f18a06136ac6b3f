//! What can be wrong with a file of problems or replies.

use serde_json::Value;
use thiserror::Error;

/// Why a file of problems was refused.
#[derive(Debug, Error)]
#[error("{place}: {fault}")]
pub struct ProblemError {
    /// The file and, if it is known, the line or entry.
    place: String,
    fault: Fault,
}

#[derive(Debug, Error)]
pub(super) enum Fault {
    #[error("expected problems, found none; give one JSON object per line, or CSV with a header")]
    NoProblems,
    #[error("expected replies, found none; give one JSON object per line")]
    NoReplies,
    #[error("expected a JSON object, found {found}")]
    Json { found: String },
    #[error("expected CSV with as many fields as its header: {0}")]
    Csv(csv::Error),
    #[error("expected a field {}, found {}", quoted(expected.iter().copied()), quoted(found.iter().map(String::as_str)))]
    Missing { expected: &'static [&'static str], found: Vec<String> },
    #[error("expected text in field `{field}`, found {found}")]
    NoText { field: &'static str, found: &'static str },
    #[error("expected a final answer in \\boxed{{}} or after #### in field `{field}`, found neither")]
    NoFinalAnswer { field: &'static str },
    #[error(
        "expected 2 to 26 options as a list, or as an object from letter to text, in field `{field}`, found {found}"
    )]
    Options { field: &'static str, found: String },
    #[error("expected the letter of one of {count} options or its index from 0 as the answer, found {found:?}")]
    NoOption { count: usize, found: String },
    #[error("expected every id once, found {id:?} as at {first} already; make them differ")]
    Duplicate { id: String, first: String },
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{}`", name.escape_debug())).collect();
    if names.is_empty() { "no fields".to_owned() } else { names.join(", ") }
}

impl Fault {
    pub(super) fn at(self, name: &str, place: &str) -> ProblemError {
        ProblemError { place: format!("{name}, {place}"), fault: self }
    }

    /// Of a file as a whole.
    pub(super) fn of(self, name: &str) -> ProblemError {
        ProblemError { place: name.to_owned(), fault: self }
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(text) if text.trim().is_empty() => "an empty one",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
