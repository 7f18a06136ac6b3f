//! Scales blocks of attention while the graph runs: what a probe changes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::llama::{Attention, Hook, HookError, Point, Row};
use crate::random::SplitMix64;

/// The attention of one layer from a range of query tokens to a range of key tokens, times `1 + eps` in every head; with
/// a seed, times `1 + eps` or `1 - eps` at random for every head and query token.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    pub layer: usize,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
    pub eps: f64,
    pub seed: Option<u64>,
}

impl Scale {
    fn factor(&self, head: usize, query: usize) -> f32 {
        let minus = self.seed.is_some_and(|seed| {
            let place = (head as u64) << 32 | query as u64;
            SplitMix64::new(seed ^ SplitMix64::new(place).next()).next() & 1 == 1
        });
        (1.0 + if minus { -self.eps } else { self.eps }) as f32
    }
}

/// What to scale in each sequence: none in sequence 0, which the others begin with, the first scale in sequence 1, and
/// so on.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan(Arc<Mutex<Vec<Scale>>>);

impl Plan {
    pub fn set(&self, scales: &[Scale]) {
        scales.clone_into(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Scale>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what its plan says.
pub(super) struct Scaler(pub Plan);

impl Hook for Scaler {
    fn begin(&mut self, _: &[Row]) {}

    fn wants(&self, point: Point, layer: usize) -> bool {
        point == Point::Attention && self.0.lock().iter().any(|scale| scale.layer == layer)
    }

    fn attention(&mut self, mut attention: Attention<'_>) -> Result<(), HookError> {
        let plan = self.0.lock();
        for row in 0..attention.rows.len() {
            let Row { sequence, position, .. } = attention.rows[row];
            let Some(scale) = (sequence as usize).checked_sub(1).and_then(|index| plan.get(index)) else { continue };
            if scale.layer != attention.layer || !scale.queries.contains(&position) {
                continue;
            }
            let keys = scale.keys.start..scale.keys.end.min(position + 1);
            // What a sequence does not have of its own it shares with sequence 0; both may know cells they lost.
            let cell = |key| {
                let known = [sequence, 0].into_iter().filter_map(|sequence| attention.cells.find(sequence, key));
                known.into_iter().find(|&cell| attention.visible(row, cell))
            };
            let cells: Vec<usize> = keys.filter_map(cell).collect();
            for head in 0..attention.n_head {
                let factor = scale.factor(head, position);
                let probs = attention.row_mut(head, row);
                cells.iter().for_each(|&cell| probs[cell] *= factor);
            }
        }
        Ok(())
    }
}
