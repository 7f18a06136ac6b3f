//! A vocabulary of the right size in no language: a token for each byte, words of syllables, and the special tokens
//! of thinking models.

use stepflow::gguf::{GgufError, GgufWriter};

use super::shape::Shape;

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Special tokens; the first begins a text and the second ends an answer.
const CHATML_TOKENS: [&str; 5] = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"];
const HARMONY_TOKENS: [&str; 8] = [
    "<|startoftext|>",
    "<|return|>",
    "<|start|>",
    "<|end|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    "<|call|>",
];

const CHATML: &str = include_str!("chatml.jinja");
const HARMONY: &str = include_str!("harmony.jinja");

/// A space, as byte-level vocabularies write it.
const SPACE: char = 'Ġ';

/// What ends a sentence. Words that end in them are frequent enough for sentences of some thirty tokens, so that
/// thinking falls into steps.
const STOPS: [char; 3] = ['.', '!', '?'];

/// Writes tokens, merges and chat template.
pub fn write(shape: &Shape, out: &mut GgufWriter) -> Result<(), GgufError> {
    let (special, pre, template) = match shape.experts {
        None => (&CHATML_TOKENS[..], "qwen2", CHATML),
        Some(_) => (&HARMONY_TOKENS[..], "gpt-4o", HARMONY),
    };
    let plain = shape.vocabulary - special.len();
    let merges = merges(plain - 256);
    let words = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let bytes = (0..=255).map(|byte| visible(byte).to_string());
    let tokens: Vec<String> = bytes.chain(words).chain(special.iter().map(|text| text.to_string())).collect();
    let kind = |text: &&str| if text.ends_with("think>") { USER_DEFINED } else { CONTROL };
    let kinds: Vec<i32> = std::iter::repeat_n(NORMAL, plain).chain(special.iter().map(kind)).collect();
    let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    out.metadata("tokenizer.ggml.model", "gpt2")?;
    out.metadata("tokenizer.ggml.pre", pre)?;
    out.metadata("tokenizer.ggml.tokens", tokens)?;
    out.metadata("tokenizer.ggml.token_type", kinds)?;
    out.metadata("tokenizer.ggml.merges", merges)?;
    out.metadata("tokenizer.ggml.bos_token_id", plain as u32)?;
    out.metadata("tokenizer.ggml.eos_token_id", plain as u32 + 1)?;
    out.metadata("tokenizer.ggml.add_bos_token", false)?;
    out.metadata("tokenizer.chat_template", template)
}

/// Merges, each of which makes one new word: syllables with and without a space before, then every word grown by every
/// syllable and stop, the shortest words first.
fn merges(count: usize) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    let mut endings = STOPS.map(String::from).to_vec();
    for consonant in "bdfgklmnrt".chars() {
        for vowel in "aeiou".chars() {
            let syllable = format!("{consonant}{vowel}");
            merges.push((consonant.to_string(), vowel.to_string()));
            merges.push((SPACE.to_string(), syllable.clone()));
            endings.push(syllable);
        }
    }
    let mut grown = 0;
    while merges.len() < count {
        let word = format!("{}{}", merges[grown].0, merges[grown].1);
        grown += 1;
        if !word.ends_with(STOPS) {
            merges.extend(endings.iter().map(|ending| (word.clone(), ending.clone())));
        }
    }
    merges.truncate(count);
    merges
}

/// The character that byte-level vocabularies have for a byte: its own if that is printable, else the next one from
/// U+0100 on.
fn visible(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(&byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|earlier| !printable(earlier)).count();
    char::from_u32(0x100 + before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}
