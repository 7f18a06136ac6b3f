//! The three parts of a reasoning trace.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The part of a trace that a token belongs to. The order is the one in which the parts follow each other, and
/// `as u8` gives 0, 1, 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Segment {
    /// The prompt, and every earlier turn of a conversation.
    Question = 0,
    /// The reasoning before the answer.
    Thinking = 1,
    /// The answer.
    Summary = 2,
}

impl Segment {
    /// The segment that OEB keeps in view of this one's tokens: question for thinking, thinking for summary.
    pub fn bridged(self) -> Option<Segment> {
        match self {
            Segment::Question => None,
            Segment::Thinking => Some(Segment::Question),
            Segment::Summary => Some(Segment::Thinking),
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Segment::Question => "question",
            Segment::Thinking => "thinking",
            Segment::Summary => "summary",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (number, segment) in [Segment::Question, Segment::Thinking, Segment::Summary].into_iter().enumerate() {
            assert_eq!(segment as usize, number);
            assert_eq!(serde_json::to_string(&segment).unwrap(), format!("\"{segment}\""));
        }
    }
}
