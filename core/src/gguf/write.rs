//! Writing a GGUF file.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};

use super::{
    Array, GgmlType, GgufError, MAX_KEY, MAX_TENSOR_NAME, Value, alignment, header_error, metadata_error, tensor_error,
};

/// Collects metadata and tensors, then writes them as a GGUF file of version 3.
#[derive(Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor<'a>>,
    used: HashSet<String>,
}

struct Tensor<'a> {
    name: String,
    dims: Vec<u64>,
    ty: GgmlType,
    data: Cow<'a, [u8]>,
}

impl<'a> GgufWriter<'a> {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata value.
    ///
    /// # Errors
    /// The key is empty, longer than 65535 bytes or taken.
    pub fn metadata(&mut self, key: &str, value: impl Into<Value>) -> Result<(), GgufError> {
        if key.is_empty() || key.len() as u64 > MAX_KEY {
            return Err(header_error(format!("expected a key of 1 to {MAX_KEY} bytes, found {}", key.len())));
        }
        if self.metadata.iter().any(|(taken, _)| taken == key) {
            return Err(metadata_error(key, "expected the key once, found it twice"));
        }
        self.metadata.push((key.to_owned(), value.into()));
        Ok(())
    }

    /// Adds a tensor; `dims` begins with the length of a row.
    ///
    /// # Errors
    /// The name is longer than 63 bytes or taken, the type does not allow the dimensions, or `data` has another size
    /// than they ask for.
    pub fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        ty: GgmlType,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), GgufError> {
        let data = data.into();
        let problem = |problem| tensor_error(name, problem);
        if name.len() as u64 > MAX_TENSOR_NAME {
            return Err(problem(format!("expected a name of at most {MAX_TENSOR_NAME} bytes, found {}", name.len())));
        }
        let bytes = ty.bytes(dims).map_err(problem)?;
        if data.len() as u64 != bytes {
            return Err(problem(format!("expected {bytes} bytes of data, found {}", data.len())));
        }
        if !self.used.insert(name.to_owned()) {
            return Err(problem("expected the name once, found it twice".to_owned()));
        }
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), ty, data });
        Ok(())
    }

    /// Writes the file: header, padding, tensor data.
    ///
    /// # Errors
    /// `general.alignment` is not a power of two of at least 32, or `out` fails.
    pub fn finish(self, mut out: impl Write) -> Result<(), GgufError> {
        let declared = self.metadata.iter().find(|(key, _)| key == "general.alignment");
        let align = alignment(declared.map(|(_, value)| value))?;
        let mut header = self.header(align)?;
        pad(&mut header, align)?;
        out.write_all(&header)?;
        for tensor in &self.tensors {
            out.write_all(&tensor.data)?;
            let padding = padding(tensor.data.len() as u64, align);
            io::copy(&mut io::Read::take(io::repeat(0), padding), &mut out)?;
        }
        Ok(out.flush()?)
    }

    fn header(&self, align: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        out.write_all(b"GGUF")?;
        out.write_all(&3_u32.to_le_bytes())?;
        out.write_all(&(self.tensors.len() as u64).to_le_bytes())?;
        out.write_all(&(self.metadata.len() as u64).to_le_bytes())?;
        for (key, value) in &self.metadata {
            string(&mut out, key)?;
            write_value(&mut out, value)?;
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            string(&mut out, &tensor.name)?;
            out.write_all(&(tensor.dims.len() as u32).to_le_bytes())?;
            for dim in &tensor.dims {
                out.write_all(&dim.to_le_bytes())?;
            }
            out.write_all(&(tensor.ty as u32).to_le_bytes())?;
            out.write_all(&offset.to_le_bytes())?;
            let bytes = tensor.data.len() as u64;
            offset += bytes + padding(bytes, align);
        }
        Ok(out)
    }
}

fn padding(length: u64, align: u64) -> u64 {
    length.next_multiple_of(align) - length
}

fn pad(out: &mut Vec<u8>, align: u64) -> io::Result<()> {
    let padding = padding(out.len() as u64, align);
    out.resize(out.len() + padding as usize, 0);
    Ok(())
}

fn string(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

/// Writes the number of the type, then the value.
fn write_value(out: &mut Vec<u8>, value: &Value) -> io::Result<()> {
    let mut scalar = |id: u32, bytes: &[u8]| {
        out.write_all(&id.to_le_bytes())?;
        out.write_all(bytes)
    };
    match value {
        Value::U8(n) => scalar(0, &n.to_le_bytes()),
        Value::I8(n) => scalar(1, &n.to_le_bytes()),
        Value::U16(n) => scalar(2, &n.to_le_bytes()),
        Value::I16(n) => scalar(3, &n.to_le_bytes()),
        Value::U32(n) => scalar(4, &n.to_le_bytes()),
        Value::I32(n) => scalar(5, &n.to_le_bytes()),
        Value::F32(x) => scalar(6, &x.to_le_bytes()),
        Value::Bool(flag) => scalar(7, &[u8::from(*flag)]),
        Value::String(text) => {
            scalar(8, &[])?;
            string(out, text)
        }
        Value::Array(array) => {
            scalar(9, &[])?;
            write_array(out, array)
        }
        Value::U64(n) => scalar(10, &n.to_le_bytes()),
        Value::I64(n) => scalar(11, &n.to_le_bytes()),
        Value::F64(x) => scalar(12, &x.to_le_bytes()),
    }
}

/// Writes the number of the element type, the length, then the elements.
fn write_array(out: &mut Vec<u8>, array: &Array) -> io::Result<()> {
    let mut elements = |id: u32, bytes: Vec<u8>| {
        out.write_all(&id.to_le_bytes())?;
        out.write_all(&(array.len() as u64).to_le_bytes())?;
        out.write_all(&bytes)
    };
    match array {
        Array::U8(v) => elements(0, v.clone()),
        Array::I8(v) => elements(1, v.iter().flat_map(|n| n.to_le_bytes()).collect()),
        Array::U16(v) => elements(2, v.iter().flat_map(|n| n.to_le_bytes()).collect()),
        Array::I16(v) => elements(3, v.iter().flat_map(|n| n.to_le_bytes()).collect()),
        Array::U32(v) => elements(4, v.iter().flat_map(|n| n.to_le_bytes()).collect()),
        Array::I32(v) => elements(5, v.iter().flat_map(|n| n.to_le_bytes()).collect()),
        Array::F32(v) => elements(6, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::Bool(v) => elements(7, v.iter().map(|flag| u8::from(*flag)).collect()),
        Array::String(v) => {
            elements(8, Vec::new())?;
            v.iter().try_for_each(|text| string(out, text))
        }
        Array::U64(v) => elements(10, v.iter().flat_map(|n| n.to_le_bytes()).collect()),
        Array::I64(v) => elements(11, v.iter().flat_map(|n| n.to_le_bytes()).collect()),
        Array::F64(v) => elements(12, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
    }
}
