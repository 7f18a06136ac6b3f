//! The tokens of one decode, each with what the hooks need to know about it.

use std::ops::Range;

use crate::trace::Segment;

use super::Token;

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

/// Tokens to decode together, in order; any mix of sequences.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// One row a token.
    pub rows: Vec<Row>,
}
