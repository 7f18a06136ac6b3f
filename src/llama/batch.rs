//! The tokens of one decode.

use super::Row;

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
    use crate::graph::Token;

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
