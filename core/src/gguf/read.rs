//! Reading the header of a GGUF file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{
    Array, GgmlType, GgufError, MAX_KEY, MAX_TENSOR_NAME, TensorInfo, Value, alignment, header_error, metadata_error,
    shown, tensor_error,
};

/// Most metadata entries and most tensors; large models have a few thousand tensors.
const MAX_ENTRIES: u64 = 1 << 20;

/// Most elements of a metadata array; large vocabularies have about 2^18 tokens and 2^19 merges.
const MAX_ARRAY: u64 = 1 << 24;

/// Longest string in bytes; the longest in use are chat templates, of some 10 KiB.
const MAX_STRING: u64 = 1 << 26;

/// Bytes of the shortest metadata entry (empty key, one-byte value) and of the shortest tensor entry.
const MIN_METADATA: u64 = 13;
const MIN_TENSOR: u64 = 24;

/// The header of a GGUF file: all metadata and the place of every tensor. The weights themselves are not read.
#[derive(Debug, Clone)]
pub struct Gguf {
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    names: HashMap<String, usize>,
}

impl Gguf {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// Any [`GgufError`]; the file is then not one that llama.cpp can read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Self::parse(BufReader::new(file), length)
    }

    /// Reads the header from `reader`, which stands at the beginning of a file of `length` bytes.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn parse(reader: impl Read, length: u64) -> Result<Self, GgufError> {
        let mut source = Source { reader, position: 0, length };
        source.magic_and_version()?;
        let tensor_count = source.number()?;
        let metadata_count = source.number()?;
        source.plausible_count("tensors", tensor_count, MIN_TENSOR)?;
        source.plausible_count("metadata entries", metadata_count, MIN_METADATA)?;

        let mut metadata = Vec::new();
        let mut keys = HashMap::new();
        for index in 0..metadata_count as usize {
            let (key, value) = source.entry()?;
            if keys.insert(key.clone(), index).is_some() {
                return Err(metadata_error(&key, "expected the key once, found it twice"));
            }
            metadata.push((key, value));
        }

        let mut tensors = Vec::new();
        let mut names = HashMap::new();
        for index in 0..tensor_count as usize {
            let tensor = source.tensor()?;
            if names.insert(tensor.name.clone(), index).is_some() {
                return Err(tensor_error(&tensor.name, "expected the name once, found it twice"));
            }
            tensors.push(tensor);
        }

        let align = alignment(keys.get("general.alignment").map(|&index| &metadata[index].1))?;
        place(&mut tensors, source.position, align, length)?;
        Ok(Gguf { metadata, keys, tensors, names })
    }

    /// All metadata, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The metadata value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&index| &self.metadata[index].1)
    }

    /// The metadata value of `key` as an unsigned number.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// The metadata value of `key` as a floating-point number.
    pub fn f64(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// The metadata value of `key` as text.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The name of the architecture, such as `qwen3`.
    pub fn architecture(&self) -> Option<&str> {
        self.str("general.architecture")
    }

    /// A value of the architecture: `arch("block_count")` is `qwen3.block_count` for a `qwen3` model.
    pub fn arch(&self, name: &str) -> Option<&Value> {
        self.get(&format!("{}.{name}", self.architecture()?))
    }

    /// A value of the architecture as an unsigned number.
    pub fn arch_u64(&self, name: &str) -> Option<u64> {
        self.arch(name)?.as_u64()
    }

    /// The Jinja template that turns a conversation into a prompt.
    pub fn chat_template(&self) -> Option<&str> {
        self.str("tokenizer.chat_template")
    }

    /// The number of llama.cpp for the kind of quantization, such as 15 for Q4_K_M.
    pub fn file_type(&self) -> Option<u64> {
        self.u64("general.file_type")
    }

    /// The tokens of the vocabulary; the position of a token is its id.
    pub fn tokens(&self) -> Option<&[String]> {
        self.get("tokenizer.ggml.tokens")?.as_strings()
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).map(|&index| &self.tensors[index])
    }
}

/// Turns offsets into places in the file. Tensors follow each other in order, each padded to the alignment, and the
/// last must end inside the file.
fn place(tensors: &mut [TensorInfo], header_end: u64, align: u64, length: u64) -> Result<(), GgufError> {
    let too_large = || header_error("expected a size below 2^63 bytes, found more");
    let mut next = header_end.checked_next_multiple_of(align).ok_or_else(too_large)?;
    let data_start = next;
    let mut needs = header_end;
    for tensor in tensors {
        let expected = next - data_start;
        if tensor.start != expected {
            let problem = format!("expected its data at offset {expected}, found offset {}", tensor.start);
            return Err(tensor_error(&tensor.name, problem));
        }
        tensor.start = next;
        needs = next.checked_add(tensor.bytes).ok_or_else(too_large)?;
        next = needs.checked_next_multiple_of(align).ok_or_else(too_large)?;
    }
    if needs > length {
        return Err(GgufError::Truncated { needs, has: length });
    }
    Ok(())
}

/// Whether a text of the metadata is more than a remark: the vocabulary's, or what the model is.
fn is_relied_on(key: &str) -> bool {
    key == "general.architecture" || key.starts_with("tokenizer.")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A reader that knows how many bytes are left, so that no length in the file is trusted beyond them.
struct Source<R> {
    reader: R,
    position: u64,
    length: u64,
}

impl<R: Read> Source<R> {
    fn magic_and_version(&mut self) -> Result<(), GgufError> {
        if self.length == 0 {
            return Err(GgufError::Empty);
        }
        let magic = self.bytes(self.length.min(4))?;
        if magic != b"GGUF" {
            return Err(GgufError::NotGguf { found: magic });
        }
        match u32::from_le_bytes(self.array()?) {
            2 | 3 => Ok(()),
            // 1 to 65535 read with the wrong byte order has only zeros in its low half.
            swapped if swapped != 0 && swapped & 0xffff == 0 => Err(GgufError::BigEndian),
            found => Err(GgufError::Version { found }),
        }
    }

    /// Refuses a count that the rest of the file cannot hold.
    fn plausible_count(&self, what: &str, count: u64, least_bytes: u64) -> Result<(), GgufError> {
        let most = MAX_ENTRIES.min((self.length - self.position) / least_bytes);
        if count > most {
            return Err(header_error(format!("expected at most {most} {what} in this file, found {count}")));
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<(String, Value), GgufError> {
        let key = self.string("a metadata key", MAX_KEY)?;
        if key.is_empty() {
            return Err(header_error("expected a metadata key, found an empty one"));
        }
        let value = match u32::from_le_bytes(self.array()?) {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(u32::from_le_bytes(self.array()?)),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::String(self.text(&key)?),
            9 => Value::Array(self.array_value(&key)?),
            10 => Value::U64(u64::from_le_bytes(self.array()?)),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            found => return Err(metadata_error(&key, format!("expected a value type of 0 to 12, found {found}"))),
        };
        Ok((key, value))
    }

    fn array_value(&mut self, key: &str) -> Result<Array, GgufError> {
        let element = u32::from_le_bytes(self.array()?);
        let count = self.number()?;
        if count > MAX_ARRAY {
            return Err(metadata_error(key, format!("expected at most {MAX_ARRAY} elements, found {count}")));
        }
        Ok(match element {
            0 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => Array::Bool(self.numbers(count, |byte: [u8; 1]| byte != [0])?),
            8 => Array::String(self.strings(key, count)?),
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            9 => return Err(metadata_error(key, "expected an array of plain values, found an array of arrays")),
            found => return Err(metadata_error(key, format!("expected an element type of 0 to 12, found {found}"))),
        })
    }

    fn strings(&mut self, key: &str, count: u64) -> Result<Vec<String>, GgufError> {
        // Each string has at least its length, of 8 bytes.
        self.require(count * 8)?;
        let mut strings = Vec::new();
        for index in 0..count {
            let bytes = self.string_bytes(&format!("metadata \"{}\"", shown(key)), MAX_STRING)?;
            strings.push(match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) if is_relied_on(key) => {
                    let found = error.into_bytes().escape_ascii().to_string();
                    let problem = format!("expected element {index} in UTF-8, found \"{}\"", shown(&found));
                    return Err(metadata_error(key, problem));
                }
                Err(error) => lossy(error.as_bytes()),
            });
        }
        Ok(strings)
    }

    /// A text in the metadata: in UTF-8, or as near to it as it comes where nothing depends on it.
    fn text(&mut self, key: &str) -> Result<String, GgufError> {
        let what = format!("metadata \"{}\"", shown(key));
        if is_relied_on(key) {
            self.string(&what, MAX_STRING)
        } else {
            Ok(lossy(&self.string_bytes(&what, MAX_STRING)?))
        }
    }

    fn tensor(&mut self) -> Result<TensorInfo, GgufError> {
        let name = self.string("a tensor name", MAX_TENSOR_NAME)?;
        let rank = u32::from_le_bytes(self.array()?);
        if rank > 4 {
            return Err(tensor_error(&name, format!("expected 1 to 4 dimensions, found {rank}")));
        }
        let dims = self.numbers(rank.into(), u64::from_le_bytes)?;
        let id = u32::from_le_bytes(self.array()?);
        let Some(ty) = GgmlType::from_id(id) else {
            return Err(tensor_error(&name, format!("expected a known ggml type, found number {id}")));
        };
        let bytes = ty.bytes(&dims).map_err(|problem| tensor_error(&name, problem))?;
        // The file gives an offset into the data; `place` turns it into a place in the file.
        let start = self.number()?;
        Ok(TensorInfo { name, dims, ty, start, bytes })
    }

    fn number(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn numbers<T, const N: usize>(&mut self, count: u64, number: fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        // Cannot overflow: `count` is at most MAX_ARRAY.
        let bytes = self.bytes(count * N as u64)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect())
    }

    fn string(&mut self, what: &str, most: u64) -> Result<String, GgufError> {
        let bytes = self.string_bytes(what, most)?;
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            header_error(format!("expected {what} in UTF-8, found a byte that is not, at offset {at} of it"))
        })
    }

    fn string_bytes(&mut self, what: &str, most: u64) -> Result<Vec<u8>, GgufError> {
        let length = self.number()?;
        if length > most {
            return Err(header_error(format!("expected {what} of at most {most} bytes, found {length}")));
        }
        self.bytes(length)
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, GgufError> {
        self.require(count)?;
        let mut bytes = vec![0; count as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.require(N as u64)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.reader.read_exact(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn require(&self, count: u64) -> Result<(), GgufError> {
        let needs = self.position.saturating_add(count);
        if needs > self.length {
            return Err(GgufError::Truncated { needs, has: self.length });
        }
        Ok(())
    }
}
