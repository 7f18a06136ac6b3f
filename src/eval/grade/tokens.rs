//! LaTeX as a sequence of tokens.

/// Commands that stand for themselves even after two backslashes, as text holds them that was escaped once too often. After
/// a line break, which two backslashes are otherwise, none of these words begins a row.
const ESCAPED_TWICE: [&str; 28] = [
    "begin", "boxed", "cap", "cdot", "circ", "cup", "dfrac", "end", "fbox", "frac", "ge", "geq", "in", "infty", "le",
    "left", "leq", "mathrm", "neq", "pi", "pm", "quad", "right", "sqrt", "text", "tfrac", "theta", "times",
];

/// Spaces that are told from a word that follows without one: `\quadx`.
const SPACES: [&str; 2] = ["qquad", "quad"];

/// Tokens with their byte offsets: a control sequence with its backslash, or one character.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { text, at: 0 }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.text[self.at..].strip_prefix("\\\\").is_some_and(|name| ESCAPED_TWICE.contains(&&name[..letters(name)]))
        {
            self.at += 1;
        }
        let at = self.at;
        let rest = &self.text[at..];
        let first = rest.chars().next()?;
        let length = match rest.strip_prefix('\\') {
            None => first.len_utf8(),
            Some(name) => match letters(name) {
                0 => 1 + name.chars().next().map_or(0, char::len_utf8),
                all => 1 + SPACES.iter().find(|space| name.starts_with(**space)).map_or(all, |space| space.len()),
            },
        };
        self.at += length;
        Some((at, &rest[..length]))
    }
}

/// How many letters `text` begins with.
fn letters(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_one_token() {
        let tokens: Vec<_> = Tokens::of(r"\frac1é\,\{\").collect();
        assert_eq!(tokens, [(0, r"\frac"), (5, "1"), (6, "é"), (8, r"\,"), (10, r"\{"), (12, r"\")]);
        let tokens: Vec<_> = Tokens::of(r"\\pi\\x\quadx").collect();
        assert_eq!(tokens, [(1, r"\pi"), (4, r"\\"), (6, "x"), (7, r"\quad"), (12, "x")]);
    }
}
