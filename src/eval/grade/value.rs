//! What an answer says, once its spelling is out of the way.

use std::fmt;

use super::algebra::Algebra;
use super::assign::{assigned, split};
use super::list::{self, BARE, SET, TUPLE};
use super::matrix::{self, Entry};
use super::rational::{self, Rational};
use super::{compound, relation, text, units, words};

/// Lists inside lists beyond this depth are compared as text, so that time stays linear.
const MAX_DEPTH: usize = 8;

const PERCENT: [&str; 4] = ["%", " percent", " pct", " percentage"];

const INFINITY: [&str; 4] = ["\\infty", "oo", "inf", "infinity"];

/// What an answer means, or a part of one.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Number(Rational),
    Percent(Rational),
    List {
        brackets: [&'static str; 2],
        items: Vec<Value>,
    },
    /// An element among others of other names.
    Named {
        name: String,
        value: Box<Value>,
    },
    /// Sets joined by `\cup`.
    Union(Vec<Value>),
    Matrix(Vec<Vec<Value>>),
    /// What inequalities leave for a variable.
    Bounds {
        name: String,
        range: Box<Value>,
    },
    /// All else: its text, and what it is worth where that can be computed.
    Formula {
        text: String,
        algebra: Option<Algebra>,
    },
}

impl Value {
    pub(super) fn parse(text: &str, depth: usize) -> Self {
        let text = assigned(text.trim()).1.trim();
        if let Some(number) = Rational::parse(text) {
            return Self::Number(number);
        }
        if let Some(number) = PERCENT.iter().find_map(|sign| text.strip_suffix(sign)).and_then(Rational::parse) {
            return Self::Percent(number);
        }
        if let Some(digits) = rational::too_large(text) {
            return Self::Formula { text: digits, algebra: None };
        }
        if let Some(number) = compound::parse(text) {
            return Self::Number(number);
        }
        if let Some(digits) = words::in_digits(text).filter(|_| depth < MAX_DEPTH) {
            return Self::parse(&digits, depth + 1);
        }
        if let Some(value) = units::strip(text, |value| Rational::parse(value).is_some()) {
            return Self::parse(value, depth);
        }
        if depth == MAX_DEPTH {
            return Self::formula(text);
        }
        matrix::parse(text)
            .map(|rows| Self::matrix(rows, depth + 1))
            .or_else(|| Self::union(text, depth + 1))
            .or_else(|| Self::list(text, depth + 1))
            .or_else(|| Self::bounds(text, depth + 1))
            .unwrap_or_else(|| Self::formula(text))
    }

    fn matrix(rows: Vec<Vec<Entry<'_>>>, depth: usize) -> Self {
        let read = |entry| match entry {
            Entry::Text(text) => Self::parse(text, depth),
            Entry::Number(number) => Self::Number(number),
        };
        Self::Matrix(rows.into_iter().map(|row| row.into_iter().map(read).collect()).collect())
    }

    fn formula(text: &str) -> Self {
        let (sign, size) = text.split_at(usize::from(text.starts_with('-')));
        if INFINITY.contains(&size.trim_start_matches('+')) {
            return Self::Formula { text: format!("{sign}\\infty"), algebra: None };
        }
        let algebra = Algebra::parse(text);
        match algebra.and_then(Algebra::number) {
            Some(number) => Self::Number(number),
            None => Self::Formula { text: text::compact(text), algebra },
        }
    }

    pub(super) fn named(self, name: &str) -> Self {
        Self::Named { name: text::compact(name), value: Box::new(self) }
    }

    fn union(text: &str, depth: usize) -> Option<Self> {
        let parts = split(text, &["\\cup"]).0;
        let is_union = parts.len() > 1 && parts.iter().all(|part| list::enclosed(part.trim()).is_some());
        is_union.then(|| Self::Union(parts.iter().map(|part| Self::parse(part, depth)).collect()))
    }

    /// Intervals of one variable that "or" joins: `x < 1 or x > 3`.
    fn either(items: &[Self]) -> Option<Self> {
        let bounds = items.iter().map(|item| match item {
            Self::Bounds { name, range } => Some((name, range.as_ref())),
            _ => None,
        });
        let bounds: Vec<_> = bounds.collect::<Option<_>>()?;
        let name = bounds.first()?.0;
        let is_one = bounds.iter().all(|(other, _)| *other == name);
        let range = || Self::Union(bounds.iter().map(|(_, range)| (*range).clone()).collect());
        is_one.then(|| Self::Bounds { name: name.clone(), range: Box::new(range()) })
    }

    fn bounds(text: &str, depth: usize) -> Option<Self> {
        let (name, interval) = relation::interval(text)?;
        Some(Self::Bounds { name: text::compact(name), range: Box::new(Self::parse(&interval, depth)) })
    }

    /// A list of several elements, or what stands alone in parentheses.
    fn list(text: &str, depth: usize) -> Option<Self> {
        let (brackets, parts) = list::enclosed(text).or_else(|| Some((BARE, list::parts(text)?)))?;
        if parts.iter().any(|part| part.trim().is_empty()) {
            return None;
        }
        if let [single] = parts[..] {
            let is_closed = single.len() < text.len();
            match brackets {
                TUPLE | BARE | SET if is_closed => return Some(Self::parse(single, depth)),
                BARE if list::alternatives(text).len() == 1 => return None,
                _ => {}
            }
        }
        let read = |(name, text): (Option<&str>, String)| {
            let value = Self::parse(&text, depth);
            if let Some(name) = name { value.named(name) } else { value }
        };
        let mut items: Vec<_> = list::items(&parts).into_iter().map(read).collect();
        if brackets == BARE {
            let says_or = text.match_indices("or").any(|(at, _)| list::joint(text, at) > 0);
            if let Some(range) = Self::either(&items).filter(|_| says_or) {
                return Some(range);
            }
            // A point that is named twice is one solution, and so is a number with "or"; of others, one that counts twice
            // may be meant.
            let is_point = |item: &Self| matches!(item.bare(), Self::List { .. });
            let mut seen = std::collections::HashSet::new();
            items.retain(|item| !is_point(item) || seen.insert(item.to_string()));
            if says_or && items.iter().skip(1).all(|item| item.equals(&items[0])) {
                return Some(items.swap_remove(0));
            }
        }
        Some(Self::List { brackets, items })
    }

    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) | (Self::Percent(a), Self::Percent(b)) => a.is(*b),
            (Self::Percent(percent), Self::Number(number)) | (Self::Number(number), Self::Percent(percent)) => {
                percent == number || percent.hundredth().as_ref() == Some(number)
            }
            (Self::List { brackets: a, items }, Self::List { brackets: b, items: others }) => {
                lists_are_equal((a, items), (b, others))
            }
            (Self::Named { name: a, value }, Self::Named { name: b, value: other }) => a == b && value.equals(other),
            (Self::Union(a), Self::Union(b)) => in_any_order(a, b),
            (Self::Union(union), Self::List { brackets: BARE, items })
            | (Self::List { brackets: BARE, items }, Self::Union(union)) => in_any_order(union, &unnamed(items)),
            (Self::Matrix(a), Self::Matrix(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| in_order(a, b)),
            (Self::Bounds { name: a, range }, Self::Bounds { name: b, range: other }) => a == b && range.equals(other),
            (Self::Bounds { range, .. }, other) | (other, Self::Bounds { range, .. }) => range.equals(other),
            (Self::Formula { text: a, algebra }, Self::Formula { text: b, algebra: other }) => {
                a == b || algebra.zip(*other).is_some_and(|(a, b)| a.equals(&b))
            }
            (Self::Formula { algebra: Some(algebra), .. }, Self::Number(number))
            | (Self::Number(number), Self::Formula { algebra: Some(algebra), .. }) => {
                algebra.equals(&Algebra::exactly(*number))
            }
            _ => false,
        }
    }

    /// Without its name.
    fn bare(&self) -> &Self {
        match self {
            Self::Named { value, .. } => value,
            value => value,
        }
    }

    /// How many values it is made of.
    pub(super) fn leaves(&self) -> usize {
        match self {
            Self::List { items, .. } | Self::Union(items) => items.iter().map(Self::leaves).sum(),
            Self::Matrix(rows) => rows.iter().flatten().map(Self::leaves).sum(),
            Self::Named { value, .. } | Self::Bounds { range: value, .. } => value.leaves(),
            _ => 1,
        }
    }

    /// Whether it is no more than text to this program.
    pub(super) fn is_text(&self) -> bool {
        matches!(self, Self::Formula { .. })
    }

    /// Whether it is more than text to this program.
    pub(super) fn is_understood(&self) -> bool {
        match self {
            Self::List { items, .. } | Self::Union(items) => items.iter().all(Self::is_understood),
            Self::Named { value, .. } | Self::Bounds { range: value, .. } => value.is_understood(),
            Self::Formula { algebra, .. } => algebra.is_some(),
            _ => true,
        }
    }
}

fn in_any_order(a: &[Value], b: &[Value]) -> bool {
    list::equal_in_any_order((a, b), Value::leaves, Value::equals)
}

fn in_order(a: &[Value], b: &[Value]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bare().equals(b.bare()))
}

/// Whether names only count the solutions of one variable: `x_1 = 3, x_2 = -5`.
fn is_numbered(items: &[Value]) -> bool {
    let name = |item: &Value| match item {
        Value::Named { name, .. } => name.split_once('_').map(|(stem, index)| (stem.to_owned(), index.to_owned())),
        _ => None,
    };
    let Some((first, _)) = items.first().and_then(name) else { return false };
    (1..)
        .zip(items)
        .all(|(at, item): (usize, _)| name(item).is_some_and(|(stem, i)| stem == first && i == at.to_string()))
}

/// Whether all elements are values of one variable: `x = 3, x = -5`.
fn is_of_one_variable(items: &[Value]) -> bool {
    let name = |item: &Value| match item {
        Value::Named { name, .. } => Some(name.clone()),
        _ => None,
    };
    let first = items.first().and_then(name);
    first.is_some() && items.iter().all(|item| name(item) == first)
}

fn unnamed(items: &[Value]) -> Vec<Value> {
    items.iter().map(|item| item.bare().clone()).collect()
}

/// Sets have no order, nor have solutions without brackets among themselves; beside a point or beside names they have.
fn lists_are_equal((a, items): (&[&str; 2], &[Value]), (b, others): (&[&str; 2], &[Value])) -> bool {
    let only_counts = |items: &[Value]| is_numbered(items) || is_of_one_variable(items);
    let is_named =
        |items: &[Value]| items.iter().any(|item| matches!(item, Value::Named { .. })) && !only_counts(items);
    match (*a, *b) {
        (BARE | SET, BARE | SET) if is_numbered(items) && is_numbered(others) => in_any_order(items, others),
        (BARE | SET, BARE | SET) if !is_named(items) && !is_named(others) => {
            in_any_order(&unnamed(items), &unnamed(others))
        }
        (BARE, BARE) if only_counts(items) != only_counts(others) && is_named(items) != is_named(others) => false,
        (BARE, BARE) if is_named(items) != is_named(others) => in_order(items, others),
        (BARE | SET, BARE | SET) => in_any_order(items, others),
        (BARE, TUPLE) | (TUPLE, BARE) => in_order(items, others),
        (a, b) => a == b && in_order(items, others),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Percent(number) => write!(f, "{number}%"),
            Self::Formula { text, .. } => f.write_str(text),
            Self::Named { name, value } => write!(f, "{name} = {value}"),
            Self::Bounds { name, range } => write!(f, "{name} \\in {range}"),
            Self::Union(parts) => {
                for (i, part) in parts.iter().enumerate() {
                    let sign = if i > 0 { " \\cup " } else { "" };
                    match part {
                        Self::List { .. } => write!(f, "{sign}{part}")?,
                        // A set of one element.
                        _ => write!(f, "{sign}\\{{{part}\\}}")?,
                    }
                }
                Ok(())
            }
            Self::Matrix(rows) => {
                f.write_str("\\begin{pmatrix}")?;
                for row in rows {
                    joined(f, row, " & ")?;
                    f.write_str(" \\\\ ")?;
                }
                f.write_str("\\end{pmatrix}")
            }
            Self::List { brackets: [open, close], items } => {
                f.write_str(open)?;
                joined(f, items, ", ")?;
                f.write_str(close)
            }
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, values: &[Value], sign: &str) -> fmt::Result {
    for (i, value) in values.iter().enumerate() {
        write!(f, "{}{value}", if i > 0 { sign } else { "" })?;
    }
    Ok(())
}
