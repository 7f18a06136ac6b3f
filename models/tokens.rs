//! A byte-level BPE vocabulary, from the tokenizer.json of Hugging Face's tokenizers to the metadata of a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use stepflow::gguf::GgufWriter;

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Ends an answer.
const END: &str = "<|im_end|>";
/// Fills batches, and begins texts where a program insists on a token for that.
const PAD: &str = "<|endoftext|>";

#[derive(Deserialize)]
struct Tokenizer {
    model: Bpe,
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Writes the vocabulary, which must have `size` tokens.
pub fn write(path: &Path, size: u32, out: &mut GgufWriter) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let Tokenizer { model, added_tokens } =
        serde_json::from_slice(&std::fs::read(path).with_context(name)?).with_context(name)?;
    let by_id: BTreeMap<u32, &String> = model.vocab.iter().map(|(text, id)| (*id, text)).collect();
    ensure!(by_id.keys().copied().eq(0..size), "{}: expected {size} tokens, found {}", name(), by_id.len());
    let id = |text: &str| model.vocab.get(text).copied().with_context(|| format!("{}: no token {text}", name()));
    let kind = |id: u32| match added_tokens.iter().find(|token| token.id == id) {
        None => NORMAL,
        // Tags of thinking are text that a user may see.
        Some(token) if token.content.ends_with("think>") => USER_DEFINED,
        Some(_) => CONTROL,
    };
    let merges: Vec<String> = model.merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    out.metadata("tokenizer.ggml.model", "gpt2")?;
    out.metadata("tokenizer.ggml.pre", "gpt-2")?;
    out.metadata("tokenizer.ggml.tokens", by_id.values().map(|text| text.to_string()).collect::<Vec<_>>())?;
    out.metadata("tokenizer.ggml.token_type", (0..size).map(kind).collect::<Vec<_>>())?;
    out.metadata("tokenizer.ggml.merges", merges)?;
    out.metadata("tokenizer.ggml.eos_token_id", id(END)?)?;
    out.metadata("tokenizer.ggml.padding_token_id", id(PAD)?)?;
    out.metadata("tokenizer.ggml.bos_token_id", id(PAD)?)?;
    out.metadata("tokenizer.ggml.add_bos_token", false)?;
    out.metadata("tokenizer.chat_template", include_str!("chat_template.jinja"))?;
    Ok(())
}
