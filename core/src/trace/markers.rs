//! The texts that divide a sequence into segments, and how they are found in a stream of bytes.

use serde::{Deserialize, Serialize};

/// The texts that open and close thinking. An empty text is never found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Markers {
    /// Opens thinking; `None`: thinking starts with the first generated token.
    pub think_start: Option<String>,
    /// Closes thinking and opens the summary.
    pub think_end: String,
    /// Whether an answer does so as well: the first `\boxed{`, or a sentence that begins as `Answer:` does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers: bool,
}

impl Markers {
    /// These, with the given ones in place of their own. Whoever names what closes thinking means that alone.
    pub fn with(self, think_start: Option<&str>, think_end: Option<&str>) -> Markers {
        Markers {
            think_start: think_start.map(str::to_owned).or(self.think_start),
            answers: self.answers && think_end.is_none(),
            think_end: think_end.map_or(self.think_end, str::to_owned),
        }
    }

    /// What closes thinking, in words.
    pub fn closing(&self) -> String {
        format!("{:?}{}", self.think_end, if self.answers { " or the opening of an answer" } else { "" })
    }
}

/// Finds one text in a stream of bytes, in constant amortised time a byte (Knuth, Morris, Pratt).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matcher {
    pattern: Vec<u8>,
    /// For each length matched so far: the longest proper prefix of the pattern that ends there too.
    fallback: Vec<usize>,
    matched: usize,
}

impl Matcher {
    pub(super) fn new(pattern: &str) -> Matcher {
        let pattern = pattern.as_bytes().to_vec();
        let mut matcher = Matcher { fallback: vec![0; pattern.len() + 1], pattern, matched: 0 };
        for length in 2..=matcher.pattern.len() {
            matcher.push(matcher.pattern[length - 1]);
            matcher.fallback[length] = matcher.matched;
        }
        matcher.matched = 0;
        matcher
    }

    /// Takes the next byte; true if it completes the text.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.pattern.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched];
        }
        if self.pattern.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        !self.pattern.is_empty() && self.matched == self.pattern.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(pattern: &str, text: &str) -> Vec<usize> {
        let mut matcher = Matcher::new(pattern);
        (1..=text.len()).filter(|&end| matcher.push(text.as_bytes()[end - 1])).collect()
    }

    #[test]
    fn restarts_inside_a_failed_match() {
        assert_eq!(ends("</think>", "<</think>"), [9]);
        assert_eq!(ends("aab", "aaab"), [4]);
        assert!(ends("", "abc").is_empty());
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_at_every_place(pattern in "[ab]{1,5}", text in "[ab]{0,40}") {
            let expected: Vec<usize> = (0..=text.len()).filter(|&end| text[..end].ends_with(&pattern)).collect();
            prop_assert_eq!(ends(&pattern, &text), expected);
        }
    }
}
