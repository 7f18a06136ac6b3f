//! LaTeX as a sequence of tokens.

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
        let at = self.at;
        let rest = &self.text[at..];
        let first = rest.chars().next()?;
        let length = match rest.strip_prefix('\\') {
            None => first.len_utf8(),
            Some(name) => {
                let letters = name.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(name.len());
                1 + if letters > 0 { letters } else { name.chars().next().map_or(0, char::len_utf8) }
            }
        };
        self.at += length;
        Some((at, &rest[..length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_one_token() {
        let tokens: Vec<_> = Tokens::of(r"\frac1é\,\{\").collect();
        assert_eq!(tokens, [(0, r"\frac"), (5, "1"), (6, "é"), (8, r"\,"), (10, r"\{"), (12, r"\")]);
    }
}
