//! Metadata values.

use std::fmt;

use super::shown;

/// One metadata value with the type it has in the file.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are the value types of the format")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of metadata values, all of one type. llama.cpp knows no arrays of arrays.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are the element types of the format")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The value as an unsigned number; `None` for a negative number or another type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a floating-point number; `None` if it is not a number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            Value::I8(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::I64(n) => Some(n as f64),
            _ => self.as_u64().map(|n| n as f64),
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The value as an array of text.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::String(texts)) => Some(texts),
            _ => None,
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index` as an unsigned number; `None` past the end, for a negative number or another type.
    pub fn u64_at(&self, index: usize) -> Option<u64> {
        match self {
            Array::U8(v) => v.get(index).map(|&n| n.into()),
            Array::U16(v) => v.get(index).map(|&n| n.into()),
            Array::U32(v) => v.get(index).map(|&n| n.into()),
            Array::U64(v) => v.get(index).copied(),
            Array::I8(v) => v.get(index).and_then(|&n| n.try_into().ok()),
            Array::I16(v) => v.get(index).and_then(|&n| n.try_into().ok()),
            Array::I32(v) => v.get(index).and_then(|&n| n.try_into().ok()),
            Array::I64(v) => v.get(index).and_then(|&n| n.try_into().ok()),
            Array::Bool(v) => v.get(index).map(|&flag| flag.into()),
            Array::F32(_) | Array::F64(_) | Array::String(_) => None,
        }
    }
}

/// Short enough for a message: strings are cut and an array shows its length only.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(n) => write!(f, "{n}"),
            Value::I8(n) => write!(f, "{n}"),
            Value::U16(n) => write!(f, "{n}"),
            Value::I16(n) => write!(f, "{n}"),
            Value::U32(n) => write!(f, "{n}"),
            Value::I32(n) => write!(f, "{n}"),
            Value::U64(n) => write!(f, "{n}"),
            Value::I64(n) => write!(f, "{n}"),
            Value::F32(x) => write!(f, "{x}"),
            Value::F64(x) => write!(f, "{x}"),
            Value::Bool(flag) => write!(f, "{flag}"),
            Value::String(text) => write!(f, "\"{}\"", shown(text)),
            Value::Array(array) => write!(f, "an array of {}", array.len()),
        }
    }
}

/// Lets a plain Rust value be given where a metadata value is wanted.
macro_rules! from {
    ($($plain:ty => $variant:ident),+ $(,)?) => {$(
        impl From<$plain> for Value {
            fn from(plain: $plain) -> Self {
                Value::$variant(plain)
            }
        }
        impl From<Vec<$plain>> for Value {
            fn from(plain: Vec<$plain>) -> Self {
                Value::Array(Array::$variant(plain))
            }
        }
    )+};
}

from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, String => String,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.to_owned())
    }
}
