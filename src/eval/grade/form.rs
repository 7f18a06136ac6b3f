//! An answer as a whole, with all that it can be read as.

use std::fmt;

use super::assign::assigned;
use super::rational::Rational;
use super::relation::Relation;
use super::value::Value;
use super::{text, thousands};

/// What an answer means, its text for where one of two is not understood, and its other readings.
pub(super) struct Form {
    text: String,
    value: Value,
    /// `1,234` as a list.
    list: Option<Value>,
    /// `1234,56` as a decimal.
    decimal: Option<Rational>,
    relation: Option<Relation>,
}

impl Form {
    pub(super) fn of(answer: &str) -> Self {
        let normal = text::normalise(answer);
        let bare = assigned(&normal).1;
        let list = thousands::groups(bare).map(|_| Value::parse(&bare.replace(',', ", "), 0));
        let value = match &list {
            Some(list) if !thousands::is_one_number(bare) && !thousands::is_marked(answer) => list.clone(),
            _ => Value::parse(bare, 0),
        };
        let (decimal, relation) = (thousands::decimal(bare), Relation::parse(&normal));
        Self { text: text::compact(bare), list, decimal, relation, value }
    }

    pub(super) fn equals(&self, other: &Self) -> bool {
        let textual = self.value.is_text() || other.value.is_text();
        !self.text.is_empty()
            && (self.value.equals(&other.value)
                || (textual && self.text == other.text)
                || self.list.as_ref().is_some_and(|list| list.equals(&other.value))
                || other.list.as_ref().is_some_and(|list| list.equals(&self.value))
                || self.decimal.is_some_and(|decimal| other.is_decimal(decimal))
                || other.decimal.is_some_and(|decimal| self.is_decimal(decimal))
                || self.relation.as_ref().zip(other.relation.as_ref()).is_some_and(|(a, b)| a.equals(b)))
    }

    /// Whether it is more than text to this program.
    pub(super) fn is_understood(&self) -> bool {
        self.value.is_understood() || self.relation.is_some()
    }

    /// Whether it is a single number.
    pub(super) fn is_number(&self) -> bool {
        matches!(self.value, Value::Number(_) | Value::Percent(_))
    }

    fn is_decimal(&self, decimal: Rational) -> bool {
        matches!(self.value, Value::Number(number) if number == decimal && !number.is_integer())
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
