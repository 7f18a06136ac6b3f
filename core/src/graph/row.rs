//! A token of a decode, with what the hooks need to know about it.

use std::ops::Range;

use crate::trace::Segment;

/// A token of a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub i32);

/// One token to decode: one row of every head's attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The token.
    pub token: Token,
    /// Its position in its sequence, from 0.
    pub position: usize,
    /// Its sequence, below the context's number of sequences.
    pub sequence: u32,
    /// Its segment.
    pub segment: Segment,
    /// For the first token of a thinking step but the first: the positions of the step before, in the same sequence.
    pub previous_step: Option<Range<usize>>,
    /// Whether its logits are wanted.
    pub logits: bool,
}

impl Row {
    /// A token of sequence 0 with nothing special about it: a question's, no step's first, no logits.
    pub fn plain(token: Token, position: usize) -> Self {
        Self { token, position, sequence: 0, segment: Segment::Question, previous_step: None, logits: false }
    }
}
