//! The plain oracle of fused attention with OEB: one query row of one head, in float64.

use super::oeb::{Group, bridge_row};

/// What one query row of one head attends over. `keys`, `values`, `groups` and `bias` have one entry a cell.
pub struct Query<'a> {
    /// The query, `[dim]`.
    pub query: &'a [f64],
    /// Keys, each `[dim]`.
    pub keys: &'a [Vec<f64>],
    /// Values, each `[value_dim]`.
    pub values: &'a [Vec<f64>],
    /// How the row sees each cell; `None` where it is masked.
    pub groups: &'a [Option<Group>],
    /// What is added to each score: the mask times the head's slope (ALiBi).
    pub bias: &'a [f64],
    /// What products of queries and keys are multiplied by.
    pub scale: f64,
    /// Scores are held within this by `tanh`; 0 for none.
    pub softcap: f64,
    /// The score of an attention sink.
    pub sink: Option<f64>,
    /// OEB's cap on its floor; `None` for plain attention.
    pub tau_max: Option<f64>,
}

impl Query<'_> {
    /// The head's output, `[value_dim]`, and whether OEB changed the row. A row that sees nothing has zeros.
    pub fn attend(&self) -> (Vec<f64>, bool) {
        let mut probs = self.softmax();
        let changed = self.tau_max.is_some_and(|tau| bridge_row(&mut probs, self.groups, tau, self.sink.is_some()));
        let mut output = vec![0.0; self.values.first().map_or(0, Vec::len)];
        for ((p, value), _) in probs.iter().zip(self.values).zip(self.groups).filter(|(_, group)| group.is_some()) {
            output.iter_mut().zip(value).for_each(|(out, v)| *out += p * v);
        }
        (output, changed)
    }

    fn score(&self, cell: usize) -> f64 {
        let dot: f64 = self.query.iter().zip(&self.keys[cell]).map(|(q, k)| q * k).sum();
        let score = match self.softcap {
            0.0 => dot * self.scale,
            cap => cap * (dot * self.scale / cap).tanh(),
        };
        score + self.bias[cell]
    }

    fn softmax(&self) -> Vec<f64> {
        let score = |(cell, group): (usize, &Option<Group>)| group.map_or(f64::NEG_INFINITY, |_| self.score(cell));
        let scores: Vec<f64> = self.groups.iter().enumerate().map(score).collect();
        let max = scores.iter().copied().chain(self.sink).fold(f64::NEG_INFINITY, f64::max);
        let weight = |score: f64| if score > f64::NEG_INFINITY { (score - max).exp() } else { 0.0 };
        let total = scores.iter().copied().chain(self.sink).map(weight).sum::<f64>();
        scores.iter().map(|score| if total > 0.0 { weight(*score) / total } else { 0.0 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query<'a>(keys: &'a [Vec<f64>], values: &'a [Vec<f64>], groups: &'a [Option<Group>]) -> Query<'a> {
        let (query, bias) = (&[1.0], &[0.0; 3]);
        Query { query, keys, values, groups, bias, scale: 1.0, softcap: 0.0, sink: None, tau_max: None }
    }

    #[test]
    fn equal_keys_share_alike_and_masked_ones_not_at_all() {
        let (keys, values) = (vec![vec![0.5]; 3], [vec![1.0, 0.0], vec![3.0, 4.0], vec![9.0, 9.0]]);
        let groups = [Some(Group::Same), Some(Group::Bridge), None];
        let plain = query(&keys, &values, &groups);
        assert_eq!(plain.attend(), (vec![2.0, 2.0], false));
        // A sink with a key's score takes a third.
        let with_sink = Query { sink: Some(0.5), ..query(&keys, &values, &groups) };
        assert!((with_sink.attend().0[1] - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!(query(&keys, &values, &[None; 3]).attend().0, [0.0, 0.0]);
    }

    #[test]
    fn the_bridge_gets_its_floor() {
        let (keys, values) = ([vec![9.0], vec![0.0], vec![0.0]], [vec![0.0], vec![1.0], vec![0.0]]);
        let groups = [Some(Group::Same), Some(Group::Bridge), Some(Group::Other)];
        let (output, changed) = Query { tau_max: Some(0.5), ..query(&keys, &values, &groups) }.attend();
        // Short of 0.5 by what epsilon keeps back.
        assert!(changed && (output[0] - 0.5).abs() < 0.01, "{output:?}");
    }

    #[test]
    fn softcap_and_bias_move_scores() {
        let (keys, values) = (vec![vec![100.0], vec![0.0]], [vec![1.0], vec![0.0]]);
        let groups = [Some(Group::Same); 2];
        let bias = [0.0, 1.0, 0.0];
        let capped = Query { softcap: 1.0, bias: &bias, ..query(&keys, &values, &groups) };
        // The cap makes 1 of 100, and the bias 1 of 0.
        assert!((capped.attend().0[0] - 0.5).abs() < 1e-12);
    }
}
