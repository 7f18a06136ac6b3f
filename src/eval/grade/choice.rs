//! The letter that an answer to a multiple-choice question names.

use super::text::normalise;

/// The letter in upper case: `B`, `(b)`, `\text{B}`, `B) text`, `B. because ...`, `Option B`. `None` for words that only
/// begin with it and for several letters.
pub(super) fn letter(found: &str) -> Option<char> {
    let text = normalise(found);
    let text = ["option", "choice", "answer"].iter().find_map(|word| without(word, &text)).unwrap_or(&text);
    let text = text.trim_start_matches([' ', ':', '(', '[', '{', '*']);
    let letter = text.chars().next().filter(char::is_ascii_alphabetic)?;
    let rest = &text[1..];
    let stands_alone = match rest.chars().next() {
        // `A` before a word is a letter, `a` an article.
        Some(' ') => letter.is_ascii_uppercase() || is_closing(rest.trim_start().chars().next()),
        next => is_closing(next),
    };
    (stands_alone && !names_another(rest)).then(|| letter.to_ascii_uppercase())
}

/// What follows a word at the start of `text`, in any case.
fn without<'a>(word: &str, text: &'a str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(word.len())?;
    start.eq_ignore_ascii_case(word).then_some(rest)
}

fn is_closing(next: Option<char>) -> bool {
    next.is_none_or(|c| matches!(c, ')' | ']' | '}' | '.' | ':' | ',' | ';' | '-' | '—' | '/' | '&' | '*' | '\n'))
}

/// Whether a list of letters goes on after its first: `B, C`, `(A) and (B)`, `A/B`.
fn names_another(rest: &str) -> bool {
    let mut rest = rest.trim_start_matches([')', ']', '}', ' ']);
    let mut goes_on = false;
    while let Some(shorter) = [",", "/", "&", "and ", "or "].iter().find_map(|joint| rest.strip_prefix(joint)) {
        (rest, goes_on) = (shorter.trim_start(), true);
    }
    let mut chars = rest.trim_start_matches(['(', '[']).chars();
    let next = chars.next().filter(char::is_ascii_alphabetic);
    // `I` is rather a word.
    goes_on
        && next.is_some_and(|c| c.is_ascii_uppercase() && c != 'I')
        && chars.next().is_none_or(|c| !c.is_alphanumeric())
}
