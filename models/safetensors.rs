//! Reading safetensors: eight bytes with the length of a JSON header, the header, the tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// A file of F32 tensors, in memory.
pub struct Safetensors {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (usize, usize),
}

impl Safetensors {
    /// Reads a file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Self::parse(&bytes).with_context(|| format!("{}: expected safetensors", path.display()))
    }

    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let (length, rest) = bytes.split_first_chunk().context("found fewer than 8 bytes")?;
        let length = u64::from_le_bytes(*length);
        let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
        let (header, data) = split.with_context(|| format!("found a header of {length} bytes, more than there are"))?;
        let Header { metadata, tensors } = serde_json::from_slice(header)?;
        Ok(Self { metadata, tensors, data: data.to_vec() })
    }

    /// A value of the file's own metadata.
    pub fn metadata(&self, key: &str) -> anyhow::Result<&str> {
        self.metadata.get(key).map(String::as_str).with_context(|| format!("expected metadata `{key}`, found none"))
    }

    /// A tensor: its shape, the longest stride first, and its values.
    pub fn tensor(&self, name: &str) -> anyhow::Result<(&[u64], Vec<f32>)> {
        let Some(tensor) = self.tensors.get(name) else { bail!("expected a tensor {name}, found none") };
        ensure!(tensor.dtype == "F32", "tensor {name}: expected F32, found {}", tensor.dtype);
        let range = Range { start: tensor.data_offsets.0, end: tensor.data_offsets.1 };
        let bytes = self.data.get(range).with_context(|| format!("tensor {name}: the file is truncated"))?;
        let (values, _) = bytes.as_chunks();
        Ok((&tensor.shape, values.iter().map(|value| f32::from_le_bytes(*value)).collect()))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }
}
