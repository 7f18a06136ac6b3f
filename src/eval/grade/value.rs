//! What an answer says, once its spelling is out of the way.

use std::fmt;

use super::rational::{self, Rational};
use super::tokens::Tokens;
use super::{text, units};

/// Lists inside lists beyond this depth are compared as text, so that time stays linear.
const MAX_DEPTH: usize = 8;

const SET: [&str; 2] = ["\\{", "\\}"];

/// An answer as a whole: what it means, and its text for where one of two is not understood.
pub(super) struct Form {
    text: String,
    value: Value,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(Rational),
    Percent(Rational),
    List { brackets: [&'static str; 2], items: Vec<Value> },
    Text(String),
}

impl Form {
    pub(super) fn of(answer: &str) -> Self {
        let normal = text::normalise(answer);
        let bare = unassigned(&normal);
        Self { text: text::compact(bare), value: Value::parse(bare, 0) }
    }

    pub(super) fn equals(&self, other: &Self) -> bool {
        let textual = matches!(self.value, Value::Text(_)) || matches!(other.value, Value::Text(_));
        !self.text.is_empty() && (self.value.equals(&other.value) || (textual && self.text == other.text))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// Without the one variable that a value is assigned to: `x = 5`, `x_1 = 5`, `\theta = 5`, `x \in [1, 2]`.
fn unassigned(text: &str) -> &str {
    let Some((at, sign)) = Tokens::of(text).find(|(_, token)| matches!(*token, "=" | "\\in")) else { return text };
    let (left, right) = (text[..at].trim(), text[at + sign.len()..].trim());
    let (name, index) = left.split_once('_').unwrap_or((left, ""));
    let is_index = index.chars().all(|c| c.is_alphanumeric() || matches!(c, '{' | '}'));
    let is_variable = match name.strip_prefix('\\') {
        Some(greek) => !greek.is_empty() && greek.chars().all(char::is_alphabetic),
        None => name.chars().count() <= 1 && name.chars().all(char::is_alphabetic),
    };
    let says_something = !text::compact(right).is_empty();
    if is_variable && is_index && says_something && !right.contains('=') { right } else { text }
}

impl Value {
    fn parse(text: &str, depth: usize) -> Self {
        let text = text.trim();
        if let Some(number) = Rational::parse(text) {
            return Self::Number(number);
        }
        if let Some(number) = text.strip_suffix('%').or_else(|| text.strip_suffix(" percent")).and_then(Rational::parse)
        {
            return Self::Percent(number);
        }
        if let Some(digits) = rational::too_large(text) {
            return Self::Text(digits);
        }
        if let Some(value) = units::strip(text, |value| Rational::parse(value).is_some()) {
            return Self::parse(value, depth);
        }
        Self::list(text, depth).unwrap_or_else(|| Self::Text(text::compact(text)))
    }

    /// A list of several elements, or what stands alone in parentheses.
    fn list(text: &str, depth: usize) -> Option<Self> {
        if depth == MAX_DEPTH {
            return None;
        }
        let (brackets, parts) = enclosed(text).or_else(|| Some((["", ""], split(text)?)))?;
        if parts.iter().any(|part| part.trim().is_empty()) {
            return None;
        }
        match (brackets, &parts[..]) {
            (["(", ")"] | ["{", "}"], [single]) => return Some(Self::parse(single, depth + 1)),
            (["", ""], [_]) => return None,
            _ => {}
        }
        let mut items: Vec<Self> = parts.iter().map(|part| Self::parse(part, depth + 1)).collect();
        // A brace that nobody escaped is no longer LaTeX's: a set written in plain text.
        let brackets = if brackets == ["{", "}"] { SET } else { brackets };
        if brackets == SET || brackets == ["", ""] {
            items.sort_by_cached_key(Self::to_string);
        }
        Some(Self::List { brackets, items })
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Percent(percent), Self::Number(number)) | (Self::Number(number), Self::Percent(percent)) => {
                percent == number || percent.hundredth().as_ref() == Some(number)
            }
            (Self::List { brackets, items }, Self::List { brackets: others, items: other_items }) => {
                let pairs = || items.iter().zip(other_items);
                brackets == others && items.len() == other_items.len() && pairs().all(|(a, b)| a.equals(b))
            }
            _ => self == other,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Percent(number) => write!(f, "{number}%"),
            Self::Text(text) => f.write_str(text),
            Self::List { brackets: [open, close], items } => {
                f.write_str(open)?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(close)
            }
        }
    }
}

/// The elements between the brackets that enclose all of `text`.
fn enclosed(text: &str) -> Option<([&'static str; 2], Vec<&str>)> {
    let open = ["(", "[", "\\{", "{"].into_iter().find(|open| text.starts_with(open))?;
    let close = [")", "]", "\\}", "}"].into_iter().find(|close| text.ends_with(close))?;
    let inner = text.get(open.len()..text.len() - close.len())?;
    Some(([open, close], split(inner)?))
}

/// The parts between commas that no bracket holds; `None` if brackets are not balanced.
fn split(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (depth == 0).then_some(parts)
}
