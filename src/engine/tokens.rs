//! From text to tokens: prompts with text in them that must not read as tokens, and texts that go on from others.

use crate::llama::{Model, Token};

use super::Prompt;

/// Tokens of a rendered prompt, and how many of them come before its opening.
pub fn prompt_tokens(model: &Model, prompt: &Prompt) -> (Vec<Token>, usize) {
    let text = format!("{}{}", prompt.conversation, prompt.opening);
    let mut pieces = pieces(&text, &prompt.cuts).into_iter();
    let (mut tokens, added) = tokenize(model, pieces.next().unwrap_or_default());
    pieces.for_each(|piece| tokens.extend(tokenize_on(model, piece, true)));
    let mut bytes = 0;
    let before_opening = tokens.iter().skip(added).take_while(|&&token| {
        bytes += model.piece(token).len();
        bytes <= prompt.conversation.len()
    });
    let question = if prompt.conversation.is_empty() { 0 } else { before_opening.count() + added };
    (tokens, question)
}

/// The parts of a text between `cuts`.
fn pieces<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    starts.zip(cuts.iter().copied().chain([text.len()])).map(|(start, end)| &text[start..end]).collect()
}

/// Tokens of a text that goes on from another. `special` as for [`Model::tokenize`].
pub(super) fn tokenize_on(model: &Model, text: &str, special: bool) -> Vec<Token> {
    // Some vocabularies put a space in front of every text; after a line break there is none.
    const BEFORE: &str = "\n";
    let before = model.tokenize(BEFORE, false, special);
    let tokens = model.tokenize(&format!("{BEFORE}{text}"), false, special);
    match tokens.strip_prefix(before.as_slice()) {
        Some(tokens) => tokens.to_vec(),
        None => model.tokenize(text, false, special),
    }
}

/// Tokens of a text in which special tokens count as such, and how many of them were put in front: the model's first
/// token, where it wants one and the text does not begin with it.
pub fn tokenize(model: &Model, text: &str) -> (Vec<Token>, usize) {
    // A template writes the first token itself; adding it again would double it.
    let bos = model.bos().map(|bos| model.piece(bos)).unwrap_or_default();
    let written = !bos.is_empty() && text.as_bytes().starts_with(&bos);
    let tokens = model.tokenize(text, !written, true);
    let added = usize::from(!written && model.adds_bos() && tokens.first().copied() == model.bos());
    (tokens, added)
}
