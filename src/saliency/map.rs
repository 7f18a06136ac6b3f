//! One number for every pair of steps, and its pooling from pairs of tokens.

use std::ops::Range;

/// A value, by default a number, for every causal pair of steps: a query step and a key step that is not after it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepMap<T = f64> {
    n_steps: usize,
    /// Row by row: query 0, key 0; query 1, keys 0 and 1; and so on.
    cells: Vec<T>,
}

impl<T: Copy + Default> StepMap<T> {
    /// All cells 0.
    pub fn new(n_steps: usize) -> Self {
        Self { n_steps, cells: vec![T::default(); n_steps * (n_steps + 1) / 2] }
    }

    /// Steps of the trace.
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// The cell of a query step and a key step, `key <= query < n_steps`.
    pub fn get(&self, query: usize, key: usize) -> T {
        self.row(query)[key]
    }

    /// A query step's cells: keys 0 to `query`.
    pub fn row(&self, query: usize) -> &[T] {
        let start = query * (query + 1) / 2;
        &self.cells[start..=start + query]
    }

    /// Changes a cell.
    pub fn set(&mut self, query: usize, key: usize, value: T) {
        self.row_mut(query)[key] = value;
    }

    pub(super) fn row_mut(&mut self, query: usize) -> &mut [T] {
        let start = query * (query + 1) / 2;
        &mut self.cells[start..=start + query]
    }

    /// The map of what `f` makes of each cell.
    pub fn map<U>(&self, f: impl Fn(T) -> U) -> StepMap<U> {
        StepMap { n_steps: self.n_steps, cells: self.cells.iter().map(|&cell| f(cell)).collect() }
    }
}

impl StepMap {
    /// Adds another's cells.
    pub fn add(&mut self, other: &Self) {
        self.cells.iter_mut().zip(&other.cells).for_each(|(to, from)| *to += from);
    }
}

/// Which tokens each step holds.
#[derive(Debug, Clone)]
pub struct Pool {
    step_of: Vec<usize>,
    steps: Vec<Range<usize>>,
}

impl Pool {
    /// Of steps that cover all tokens, in order.
    pub fn new(steps: impl IntoIterator<Item = Range<usize>>) -> Self {
        let steps: Vec<Range<usize>> = steps.into_iter().collect();
        let step_of = steps.iter().enumerate().flat_map(|(i, tokens)| std::iter::repeat_n(i, tokens.len())).collect();
        Self { step_of, steps }
    }

    /// Steps.
    pub fn n_steps(&self) -> usize {
        self.steps.len()
    }

    /// The tokens of a step.
    pub fn tokens(&self, step: usize) -> Range<usize> {
        self.steps[step].clone()
    }

    /// Tokens.
    pub fn n_tokens(&self) -> usize {
        self.step_of.len()
    }

    /// The step of a token.
    pub fn step_of(&self, token: usize) -> usize {
        self.step_of[token]
    }

    /// Pairs of tokens behind a cell, masked ones within a step included, as the authors count them.
    pub fn n_pairs(&self, query: usize, key: usize) -> usize {
        self.steps[query].len() * self.steps[key].len()
    }

    /// Adds one token's values for the keys from 0 on, none after itself, to its step's row.
    pub fn add(&self, map: &mut StepMap, query: usize, values: impl Iterator<Item = f64>) {
        let row = map.row_mut(self.step_of[query]);
        for (&step, value) in self.step_of.iter().zip(values) {
            row[step] += value;
        }
    }

    /// Turns sums over pairs of tokens, and `n` heads, into means.
    pub fn mean(&self, map: &mut StepMap, n: usize) {
        for query in 0..self.n_steps() {
            for (key, cell) in map.row_mut(query).iter_mut().enumerate() {
                *cell /= (self.n_pairs(query, key) * n) as f64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_the_mean_over_all_pairs_of_its_tokens() {
        let pool = Pool::new([0..2, 2..3]);
        let mut map = StepMap::new(2);
        // Attention of three tokens: [1], [0.25, 0.75], [0.5, 0.25, 0.25].
        pool.add(&mut map, 0, [1.0].into_iter());
        pool.add(&mut map, 1, [0.25, 0.75].into_iter());
        pool.add(&mut map, 2, [0.5, 0.25, 0.25].into_iter());
        pool.mean(&mut map, 1);
        assert_eq!([map.get(0, 0), map.get(1, 0), map.get(1, 1)], [0.5, 0.375, 0.25]);
    }
}
