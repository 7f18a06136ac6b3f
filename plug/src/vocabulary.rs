//! What tokens say, from a model file: llama.cpp's `token_to_piece`, special tokens included.

use std::collections::HashMap;

use stepflow_core::gguf::{Gguf, Value};

/// Token types of a GGUF, as llama.cpp numbers them.
const NORMAL: u64 = 1;
const BYTE: u64 = 6;

/// The texts of a model's tokens.
pub struct Vocabulary {
    pieces: Vec<Vec<u8>>,
}

impl Vocabulary {
    /// Of the model whose file this is; `None` where it has no vocabulary.
    pub fn new(gguf: &Gguf) -> Option<Self> {
        let Some(Value::Array(types)) = gguf.get("tokenizer.ggml.token_type") else { return None };
        let kind = |token: usize| types.u64_at(token).unwrap_or(NORMAL);
        let spaces = gguf.str("tokenizer.ggml.model") == Some("llama");
        let bytes = byte_of_char();
        let piece = |(token, text): (usize, &String)| match (kind(token), spaces) {
            (BYTE, true) => byte_token(text).map_or_else(|| text.as_bytes().to_vec(), |byte| vec![byte]),
            (NORMAL, true) => text.replace('\u{2581}', " ").into_bytes(),
            (NORMAL, false) => {
                let decoded: Option<Vec<u8>> = text.chars().map(|c| bytes.get(&c).copied()).collect();
                decoded.unwrap_or_else(|| text.as_bytes().to_vec())
            }
            // As they are written: markers of a prompt.
            _ => text.as_bytes().to_vec(),
        };
        Some(Self { pieces: gguf.tokens()?.iter().enumerate().map(piece).collect() })
    }

    /// What a token says; nothing where there is none of this number.
    pub fn piece(&self, token: i32) -> Vec<u8> {
        usize::try_from(token).ok().and_then(|token| self.pieces.get(token)).cloned().unwrap_or_default()
    }

    /// Whether one token says this and nothing else.
    pub fn has(&self, text: &str) -> bool {
        self.pieces.iter().any(|piece| piece == text.as_bytes())
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(text: &str) -> Option<u8> {
    u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// The characters that stand for bytes in vocabularies after GPT-2's: printable ones for themselves, the others from 256 on.
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable(*byte)).zip(256u32..);
    let own = (0..=255u8).filter(|byte| printable(*byte)).map(|byte| (byte, u32::from(byte)));
    own.chain(others).filter_map(|(byte, c)| Some((char::from_u32(c)?, byte))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_characters() {
        let bytes = byte_of_char();
        assert_eq!(bytes.len(), 256);
        assert_eq!((bytes[&'Ġ'], bytes[&'Ċ'], bytes[&'a'], bytes[&'Ã']), (b' ', b'\n', b'a', 0xc3));
        assert_eq!((byte_token("<0x0A>"), byte_token("<s>")), (Some(b'\n'), None));
    }
}
