//! Where a step of text ends: sentences in thinking, paragraphs in a summary.
//!
//! A thinking step ends before the white space that follows a sentence end, or after a blank line, once it has at least
//! [`MIN_CHARS`] characters, a letter, and is not only table rows; else it merges with what follows. A sentence end is
//! `.`, `!` or `?` with any closing quotes, brackets or Markdown emphasis. Three things beyond that:
//!
//! - `<` counts as the white space: tags and control tokens (`</think>`, `<|end|>`) are no part of a sentence, and a
//!   reasoning model often sets them straight after it.
//! - The full-width 。！？ need no white space after them, for their scripts set none.
//! - These full stops end nothing: one of several (`...`), one after a dotted abbreviation (`e.g.`), one after the
//!   number that opens a list item (`1.`), and any in a table row.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Segment;

/// The fewest characters of a thinking step, white space around it not counted.
const MIN_CHARS: usize = 15;

/// A run of tokens inside one segment: the question, a sentence of thinking or a paragraph of the summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Span", into = "Span")]
pub struct Step {
    /// The segment of the step's first token.
    pub segment: Segment,
    /// The positions of its tokens.
    pub tokens: Range<usize>,
}

/// How a trace file writes a step.
#[derive(Serialize, Deserialize)]
struct Span {
    segment: Segment,
    start: usize,
    end: usize,
}

impl From<Span> for Step {
    fn from(Span { segment, start, end }: Span) -> Step {
        Step { segment, tokens: start..end }
    }
}

impl From<Step> for Span {
    fn from(Step { segment, tokens }: Step) -> Span {
        Span { segment, start: tokens.start, end: tokens.end }
    }
}

/// Where a step ends, in relation to the character that shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cut {
    Before,
    After,
}

/// What the current line is, as far as it has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Line {
    #[default]
    Blank,
    /// Digits: perhaps the number of a list item.
    Number,
    /// A bar: perhaps a table row, perhaps an absolute value.
    Bar,
    Table,
    Text,
}

impl Line {
    fn after(self, c: char) -> Line {
        match (self, c) {
            (_, '\n') => Line::Blank,
            (Line::Blank, c) if c.is_whitespace() => Line::Blank,
            (Line::Blank | Line::Number, '0'..='9') => Line::Number,
            (Line::Blank, '|') => Line::Bar,
            (Line::Bar, c) if c.is_whitespace() || c == '-' || c == ':' => Line::Table,
            (Line::Table, _) => Line::Table,
            _ => Line::Text,
        }
    }
}

/// What has been seen of a sentence end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Ending {
    #[default]
    None,
    /// Ends the sentence if white space or a tag follows.
    Narrow,
    /// Full-width: ends the sentence whatever follows.
    Wide,
}

impl Ending {
    fn ends_before(self, c: char) -> bool {
        match self {
            Ending::None => false,
            Ending::Narrow => c.is_whitespace() || c == '<',
            Ending::Wide => !is_closer(c) && !is_wide_end(c),
        }
    }
}

fn is_wide_end(c: char) -> bool {
    matches!(c, '。' | '｡' | '！' | '？')
}

fn is_closer(c: char) -> bool {
    matches!(c, ')' | ']' | '}' | '"' | '\'' | '*' | '_' | '`')
        || matches!(c, '”' | '’' | '»' | '）' | '】' | '」' | '』' | '》' | '〉')
}

/// Cuts thinking into steps, character by character.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sentences {
    line: Line,
    ending: Ending,
    /// The last character and the one before it.
    last: [char; 2],
    text: StepText,
}

impl Sentences {
    /// Takes the next character and says whether it shows that a step has ended.
    pub(super) fn push(&mut self, c: char) -> Option<Cut> {
        let sentence_ended = self.ending.ends_before(c) && self.text.is_step();
        let line_was = self.line;
        self.line = line_was.after(c);
        self.ending = self.ending_after(c, line_was);
        self.last = [c, self.last[0]];
        if sentence_ended {
            self.text = StepText::default();
        }
        self.text.push(c, self.line);
        if sentence_ended {
            return Some(Cut::Before);
        }
        let blank_line = c == '\n' && line_was == Line::Blank;
        (blank_line && self.text.is_step()).then(|| {
            self.text = StepText::default();
            Cut::After
        })
    }

    /// Whether the step so far is nothing but markup that closes thinking: control tokens, or an end marker of
    /// `marker_chars` characters that has just been completed.
    pub(super) fn is_closing(&self, marker_chars: usize) -> bool {
        self.text.is_control() || self.text.chars <= marker_chars
    }

    fn ending_after(&self, c: char, line: Line) -> Ending {
        let [last, before] = self.last;
        let abbreviation = last.is_alphabetic() && before == '.';
        match c {
            _ if line == Line::Table => Ending::None,
            '.' if last == '.' || abbreviation || line == Line::Number => Ending::None,
            '.' | '!' | '?' | '．' => Ending::Narrow,
            c if is_wide_end(c) => Ending::Wide,
            c if is_closer(c) => self.ending,
            _ => Ending::None,
        }
    }
}

/// What counts of the text of one thinking step.
#[derive(Clone, Debug, Default, PartialEq)]
struct StepText {
    /// Characters from the first to the last that is no white space.
    chars: usize,
    /// White space since then.
    gap: usize,
    /// A letter outside of tables.
    letter: bool,
    /// The first two characters.
    head: [char; 2],
}

impl StepText {
    fn push(&mut self, c: char, line: Line) {
        if c.is_whitespace() {
            self.gap += usize::from(self.chars > 0);
            return;
        }
        self.chars += 1 + std::mem::take(&mut self.gap);
        self.letter |= c.is_alphabetic() && line != Line::Table;
        if let Some(head) = self.head.get_mut(self.chars - 1) {
            *head = c;
        }
    }

    fn is_step(&self) -> bool {
        self.chars >= MIN_CHARS && self.letter
    }

    fn is_control(&self) -> bool {
        self.head == ['<', '|']
    }
}

/// Cuts a summary into paragraphs, character by character.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Paragraphs {
    has_text: bool,
    line: Line,
}

impl Paragraphs {
    /// Takes the next character and says whether it shows that a paragraph has ended.
    pub(super) fn push(&mut self, c: char) -> Option<Cut> {
        let blank_line = c == '\n' && self.line == Line::Blank;
        self.line = self.line.after(c);
        self.has_text |= !c.is_whitespace();
        (blank_line && std::mem::take(&mut self.has_text)).then_some(Cut::After)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of thinking with a bar at every cut.
    fn cut(text: &str) -> String {
        let mut sentences = Sentences::default();
        text.chars().fold(String::new(), |mut out, c| {
            match sentences.push(c) {
                Some(Cut::Before) => out.extend(['¦', c]),
                Some(Cut::After) => out.extend([c, '¦']),
                None => out.push(c),
            }
            out
        })
    }

    #[test]
    fn sentences_end_before_white_space() {
        assert_eq!(cut("The first is here. Is this second? Yes it really is! Then"), {
            "The first is here.¦ Is this second?¦ Yes it really is!¦ Then"
        });
        assert_eq!(cut("He said it is \"forty-two.\" Then (as it was so.) And"), {
            "He said it is \"forty-two.\"¦ Then (as it was so.)¦ And"
        });
        assert_eq!(cut("**The total is 410 dollars.** Then"), "**The total is 410 dollars.**¦ Then");
        assert_eq!(cut("The first is here.<|end|>"), "The first is here.¦<|end|>");
    }

    #[test]
    fn full_stops_that_end_nothing() {
        for text in [
            "So pi is about 3.14 or so",
            "Well, let me see... what next",
            "Take a small one, e.g. seven",
            "These are the points:\n1. one\n12. twelve",
            "The rows of it are:\n| a thing. | b |",
            "See example.com/a.b for it",
        ] {
            assert_eq!(cut(text), text);
        }
    }

    #[test]
    fn full_width_ends_need_no_white_space() {
        assert_eq!(cut("我们先来计算一下鸭子每天下的蛋数。然后再说"), "我们先来计算一下鸭子每天下的蛋数。¦然后再说");
        assert_eq!(cut("他说「我们先来计算一下鸭子下的蛋。」\n好"), "他说「我们先来计算一下鸭子下的蛋。」¦\n好");
    }

    #[test]
    fn blank_lines_end_a_step_without_a_sentence_end() {
        assert_eq!(cut("The equation is this:\n\nx = 5\n"), "The equation is this:\n\n¦x = 5\n");
        assert_eq!(cut("The equation is this:\r\n \r\nx"), "The equation is this:\r\n \r\n¦x");
    }

    #[test]
    fn what_is_no_step_merges_with_what_follows() {
        assert_eq!(cut("Wait. Let me see. Fine"), "Wait. Let me see.¦ Fine");
        assert_eq!(cut("16 * 3 = 48 + 0 + 0. So it is\n"), "16 * 3 = 48 + 0 + 0. So it is\n");
        assert_eq!(cut("--------------------\n\nSo it is"), "--------------------\n\nSo it is");
        assert_eq!(cut("| day | eggs |\n|---|---|\n\nSo it is"), "| day | eggs |\n|---|---|\n\nSo it is");
        assert_eq!(cut("|x - 2| = 3 has two roots. So"), "|x - 2| = 3 has two roots.¦ So");
    }

    #[test]
    fn paragraphs_end_at_blank_lines() {
        let mut paragraphs = Paragraphs::default();
        let cuts: Vec<usize> = "\n\nOne.\nStill one.\n \n\nTwo"
            .chars()
            .enumerate()
            .filter_map(|(i, c)| paragraphs.push(c).map(|_| i))
            .collect();
        assert_eq!(cuts, [19]);
    }
}
