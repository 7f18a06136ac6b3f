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

impl Row {
    /// A token of sequence 0 with nothing special about it: a question's, no step's first, no logits.
    pub fn plain(token: Token, position: usize) -> Self {
        Self { token, position, sequence: 0, segment: Segment::Question, previous_step: None, logits: false }
    }
}

/// Tokens to decode together, in order; any mix of sequences.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// One row a token.
    pub rows: Vec<Row>,
}

impl Batch {
    /// Whether it holds consecutive sequences in ascending order, each with equally many tokens.
    pub(super) fn is_even(&self) -> bool {
        let sequences: Vec<_> = self.rows.chunk_by(|a, b| a.sequence == b.sequence).collect();
        let follows =
            |pair: &[&[Row]]| pair[0][0].sequence + 1 == pair[1][0].sequence && pair[0].len() == pair[1].len();
        sequences.windows(2).all(follows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_batches_are_rectangles_of_neighbouring_sequences() {
        let batch = |sequences: &[u32]| Batch {
            rows: sequences.iter().map(|&sequence| Row { sequence, ..Row::plain(Token(0), 0) }).collect(),
        };
        for even in [&[][..], &[3], &[2, 2, 2], &[0, 1, 2], &[1, 1, 2, 2]] {
            assert!(batch(even).is_even(), "{even:?}");
        }
        for uneven in [&[0, 2][..], &[1, 0], &[0, 0, 1], &[0, 1, 0, 1]] {
            assert!(!batch(uneven).is_even(), "{uneven:?}");
        }
    }
}
