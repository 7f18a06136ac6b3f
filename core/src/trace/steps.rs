//! Where a step of text ends: sentences and list items in thinking, paragraphs in a summary. The rules, with an example
//! each, are a table in `docs/steps.md`, to which `tests/trace.rs` holds them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Segment;
use super::ends::{Ending, begins_letter, is_closer, is_digit};
use super::lines::{Line, Lines};

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

/// Cuts thinking into steps, character by character.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sentences {
    lines: Lines,
    ending: Ending,
    /// The last character and the one before it.
    last: [char; 2],
    text: StepText,
}

impl Sentences {
    /// Takes the next character and says whether it shows that a step has ended.
    pub(super) fn push(&mut self, c: char) -> Option<Cut> {
        let step_ended = self.step_ends_before(c);
        let line_was = self.lines.current();
        self.lines.push(c);
        self.ending = self.ending_after(c, line_was);
        self.last = [c, self.last[0]];
        if step_ended {
            self.text = StepText::default();
        }
        self.text.push(c, self.lines.current());
        if step_ended {
            return Some(Cut::Before);
        }
        let blank_line = c == '\n' && line_was == Line::Blank;
        (blank_line && self.text.is_step()).then(|| {
            self.text = StepText::default();
            Cut::After
        })
    }

    /// Takes the first bytes of a character, of which a token has no more, and says whether they show that a step has ended.
    pub(super) fn push_beginning(&mut self, bytes: &[u8]) -> bool {
        let step_ended = self.step_ends_before('a') && begins_letter(bytes);
        if step_ended {
            self.ending = Ending::None;
            self.text = StepText::default();
        }
        step_ended
    }

    /// Whether a sentence has ended before `c`, be it long enough for a step or not.
    pub(super) fn sentence_ends_before(&self, c: char) -> bool {
        self.ending.ends_before(c)
    }

    /// Whether the step so far is nothing but markup that closes thinking: control tokens, or `marker`, which has just been
    /// completed.
    pub(super) fn is_closing(&self, marker: Completed) -> bool {
        self.text.is_control()
            || match marker {
                Completed::Marker { chars } => self.text.chars <= chars,
                Completed::Answer { letters } => self.text.letters <= letters,
            }
    }

    fn step_ends_before(&self, c: char) -> bool {
        self.text.is_step() && (self.sentence_ends_before(c) || self.lines.starts_before(c))
    }

    fn ending_after(&self, c: char, line: Line) -> Ending {
        let [last, before] = self.last;
        let is_point = |c| matches!(c, '.' | '．');
        let abbreviation = last.is_alphabetic() && is_point(before);
        match c {
            _ if line == Line::Table => Ending::None,
            '.' | '．' if last == c || abbreviation || line == Line::Number => Ending::None,
            '．' if is_digit(last) => Ending::Point,
            '…' if last == c => self.ending,
            '…' if !last.is_alphanumeric() && !is_closer(last) && self.ending == Ending::None => Ending::None,
            ';' if self.text.is_greek() => Ending::Narrow,
            c if is_closer(c) || self.ending == Ending::Wide && Ending::of(c) != Ending::None => self.ending,
            c => Ending::of(c),
        }
    }
}

/// What has closed thinking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Completed {
    /// An end marker of so many characters.
    Marker { chars: usize },
    /// The opening of an answer, of so many letters.
    Answer { letters: usize },
}

/// What counts of the text of one thinking step.
#[derive(Clone, Debug, Default, PartialEq)]
struct StepText {
    /// Characters from the first to the last that is no white space.
    chars: usize,
    /// White space since then.
    gap: usize,
    /// Letters outside of tables.
    letters: usize,
    /// Greek ones among them.
    greek: usize,
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
        if c.is_alphabetic() && line != Line::Table {
            self.letters += 1;
            self.greek += usize::from(matches!(c, '\u{370}'..='\u{3FF}' | '\u{1F00}'..='\u{1FFF}'));
        }
        if let Some(head) = self.head.get_mut(self.chars - 1) {
            *head = c;
        }
    }

    fn is_step(&self) -> bool {
        self.chars >= MIN_CHARS && self.letters > 0
    }

    /// Greek, in which `;` is the question mark, rather than a text with Greek letters as symbols.
    fn is_greek(&self) -> bool {
        2 * self.greek > self.letters
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
            "These are the points\n12. twelve of them",
            "The rows of it are:\n| a thing. | b |",
            "See example.com/a.b for it",
        ] {
            assert_eq!(cut(text), text);
        }
    }

    #[test]
    fn items_start_steps_in_a_list_and_after_a_colon() {
        assert_eq!(cut("These are the points:\n1. one\n12. twelve"), "These are the points:\n¦1. one\n12. twelve");
        assert_eq!(cut("- The farm has ducks\n- They lay eggs"), "- The farm has ducks\n¦- They lay eggs");
        assert_eq!(cut("Let it be equal to\n-3x + 5\n12 less y"), "Let it be equal to\n-3x + 5\n12 less y");
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
