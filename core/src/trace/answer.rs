//! What opens the answer of a model that marks nothing: a box, or `Answer:` and its like at the head of a sentence. The
//! rules, with an example each, are a table in `docs/steps.md`, to which `tests/trace.rs` holds them.

use super::markers::Matcher;

/// More characters than the words that open an answer have.
const MAX_WORDS: usize = 48;

/// Finds the opening of an answer, character by character.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answers {
    boxed: Matcher,
    /// The sentence so far from its first letter on, in lower case, white space as one space, no longer than it matters.
    words: String,
    /// The marks of emphasis before its first letter that are not closed yet.
    emphasis: usize,
    /// It began as a heading.
    heading: bool,
}

impl Answers {
    pub(super) fn new() -> Answers {
        Answers { boxed: Matcher::new(r"\boxed{"), words: String::new(), emphasis: 0, heading: false }
    }

    /// Takes the next character, `at_head` if a sentence has ended before it; returns the number of letters of the opening
    /// that it completes. `next`, the byte after it in the same token, can show that it completes none: `\boxed{}` only
    /// speaks of the box, and "isn't" is not "is".
    pub(super) fn push(&mut self, c: char, at_head: bool, next: Option<u8>) -> Option<usize> {
        if self.boxed.push(u8::try_from(c).unwrap_or(0)) && next != Some(b'}') {
            return Some("boxed".len());
        }
        if at_head {
            self.begin();
        }
        let opens = match c {
            '\n' => self.heading && is_name(&self.words),
            ':' | '：' => is_name(&self.words),
            '*' | '_' if !self.words.is_empty() => self.closes_emphasis() && is_name(&self.words),
            _ => false,
        };
        let letters = self.words.chars().filter(|c| c.is_alphabetic()).count();
        self.read(c);
        let says = is_statement(&self.words) && !next.is_some_and(|byte| byte.is_ascii_alphabetic());
        (opens || says).then_some(letters + usize::from(says))
    }

    fn begin(&mut self) {
        self.words.clear();
        (self.emphasis, self.heading) = (0, false);
    }

    fn closes_emphasis(&mut self) -> bool {
        let was = self.emphasis;
        self.emphasis = was.saturating_sub(1);
        was == 1
    }

    fn read(&mut self, c: char) {
        match c {
            '\n' => self.begin(),
            '*' | '_' if self.words.is_empty() => self.emphasis += 1,
            '#' if self.words.is_empty() => self.heading = true,
            ',' | '*' | '_' => {}
            _ if self.words.is_empty() && !c.is_alphabetic() => {}
            _ if self.words.len() >= MAX_WORDS || c.is_whitespace() && self.words.ends_with(' ') => {}
            c if c.is_whitespace() => self.words.push(' '),
            c => self.words.extend(c.to_lowercase()),
        }
    }
}

/// Without what may lead up to it.
fn core(words: &str) -> &str {
    let leads = [["so ", "thus ", "hence ", "therefore "].as_slice(), &["the ", "my ", "our "]];
    let strip = |rest, lead: &[&str]| lead.iter().find_map(|word| str::strip_prefix(rest, word)).unwrap_or(rest);
    leads.into_iter().fold(words.trim_end(), strip)
}

fn is_name(words: &str) -> bool {
    matches!(core(words), "answer" | "final answer")
}

fn is_statement(words: &str) -> bool {
    !words.ends_with(' ') && core(words) == "final answer is"
}
