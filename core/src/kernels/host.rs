//! The host kernels: OEB as three group sums and one scaled write per row, SMI as one scaled add per head.
//!
//! Data is F32; sums run in 16 lanes of f32 over blocks of 1,024 keys and in f64 across blocks, so that they vectorise
//! and long rows lose nothing.

use std::ops::Range;

use crate::stepflow::oeb::{Factors, Group, Mass, factors};

/// Neighbouring cells of one group. Masked cells may lie inside: their probability is 0.
pub type Span = (Range<usize>, Group);

/// The visible keys of one row, as OEB sees them; the same for every head and every layer of a cache.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowKeys {
    /// The groups, in order of cells.
    pub spans: Vec<Span>,
    /// Visible keys of the row's own segment.
    pub n_same: usize,
    /// Visible keys of the bridged segment.
    pub n_bridge: usize,
}

impl RowKeys {
    /// Collects a row's keys: `groups` yields the group of each cell in turn, `None` where it is masked.
    pub fn collect(groups: impl Iterator<Item = Option<Group>>) -> Self {
        let mut keys = Self::default();
        for (cell, group) in groups.enumerate() {
            let Some(group) = group else { continue };
            match group {
                Group::Same => keys.n_same += 1,
                Group::Bridge => keys.n_bridge += 1,
                Group::Other => {}
            }
            match keys.spans.last_mut() {
                Some((span, last)) if *last == group => span.end = cell + 1,
                _ => keys.spans.push((cell..cell + 1, group)),
            }
        }
        keys
    }
}

/// What OEB found and did in one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bridged {
    /// Share of attention on the bridged segment before.
    pub before: f64,
    /// The same after.
    pub after: f64,
    /// Whether the row was changed.
    pub changed: bool,
}

impl Bridged {
    /// What `factors` do to a row of these masses.
    pub(super) fn of(mass: Mass, factors: Option<Factors>) -> Self {
        let before = mass.bridge_share();
        let Some(Factors { same, bridge, other }) = factors else {
            return Self { before, after: before, changed: false };
        };
        let after = Mass { same: mass.same * same, bridge: mass.bridge * bridge, other: mass.other * other };
        Self { before, after: after.bridge_share(), changed: true }
    }
}

/// Bridges one row in place. `row` is `[n_kv]` after the softmax; see [`factors`] for the formula.
pub fn bridge_row(row: &mut [f32], keys: &RowKeys, tau_max: f32, sinks: bool) -> Bridged {
    let mut mass = Mass::default();
    for (span, group) in &keys.spans {
        *mass.of_mut(*group) += sum(&row[span.clone()]);
    }
    let factors = factors(mass, keys.n_same, keys.n_bridge, f64::from(tau_max), sinks);
    for (span, group) in keys.spans.iter().filter(|_| factors.is_some()) {
        let factor = factors.map_or(1.0, |factors| factors.of(*group)) as f32;
        row[span.clone()].iter_mut().for_each(|p| *p *= factor);
    }
    Bridged::of(mass, factors)
}

/// Adds `alpha` times the mean of the window to one head's output. `sum` is the sum over `n_cells` values, `[head_dim]`.
/// Returns the squared norms of what was added and of the output before.
pub fn inject_row(output: &mut [f32], sum: &[f32], n_cells: usize, alpha: f32) -> (f64, f64) {
    let scale = alpha / n_cells as f32;
    let (mut added, mut total) = (0.0, 0.0);
    for (out, sum) in output.iter_mut().zip(sum) {
        let delta = scale * sum;
        added += f64::from(delta) * f64::from(delta);
        total += f64::from(*out) * f64::from(*out);
        *out += delta;
    }
    (added, total)
}

fn sum(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let block = |block: &[f32]| {
        let mut lanes = [0f32; LANES];
        let chunks = block.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value;
            }
        }
        f64::from(lanes.iter().sum::<f32>()) + f64::from(rest)
    };
    values.chunks(1024).map(block).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stepflow::{oeb, smi};
    use proptest::prelude::*;

    /// A softmax row with masked cells, long enough to cross lanes and blocks.
    fn rows() -> impl Strategy<Value = (Vec<(f64, Option<Group>)>, Option<f64>)> {
        let group = prop::option::weighted(0.9, prop::sample::select(vec![Group::Same, Group::Bridge, Group::Other]));
        let run = (group, 1..700usize, -6.0..6.0f64);
        let rows = prop::collection::vec(run, 1..8).prop_map(|runs| {
            let mut row = Vec::new();
            for (group, n, logit) in runs {
                row.extend((0..n).map(|i| (logit + (i as f64 * 0.7).sin(), group)));
            }
            row
        });
        (rows, prop::option::of(-4.0..8.0f64))
    }

    fn softmax(row: &[(f64, Option<Group>)], sink: Option<f64>) -> Vec<f64> {
        let weight = |(x, g): &(f64, Option<Group>)| if g.is_some() { x.exp() } else { 0.0 };
        let total: f64 = row.iter().map(weight).sum::<f64>() + sink.map_or(0.0, f64::exp);
        row.iter().map(|k| if total > 0.0 { weight(k) / total } else { 0.0 }).collect()
    }

    proptest! {
        #[test]
        fn bridges_as_the_oracle((row, sink) in rows(), tau_max in 0.0..=1.0f32) {
            let groups: Vec<_> = row.iter().map(|k| k.1).collect();
            let mut expected = softmax(&row, sink);
            let mut actual: Vec<f32> = expected.iter().map(|p| *p as f32).collect();
            let changed = oeb::bridge_row(&mut expected, &groups, f64::from(tau_max), sink.is_some());
            let keys = RowKeys::collect(groups.iter().copied());
            let outcome = bridge_row(&mut actual, &keys, tau_max, sink.is_some());
            // Rounding may tip a row that meets its floor almost exactly; everywhere else both agree.
            prop_assume!(outcome.changed == changed);
            for (a, e) in actual.iter().zip(&expected) {
                // F32 rounding of the inputs (6e-8) times factors; both sides are probabilities.
                prop_assert!((f64::from(*a) - e).abs() <= 2e-6, "{a} against {e}");
            }
        }

        #[test]
        fn injects_as_the_oracle(values in prop::collection::vec(prop::collection::vec(-2.0..2.0f64, 8), 1..20),
                                 alpha in -1.0..1.0f32) {
            let mut expected: Vec<f64> = (0..8).map(f64::from).collect();
            let mut actual: Vec<f32> = expected.iter().map(|x| *x as f32).collect();
            let sum: Vec<f32> = (0..8).map(|i| values.iter().map(|v| v[i] as f32).sum()).collect();
            smi::inject(&mut expected, &values, f64::from(alpha));
            inject_row(&mut actual, &sum, values.len(), alpha);
            for (a, e) in actual.iter().zip(&expected) {
                // F32 sums of at most 20 values below 2.
                prop_assert!((f64::from(*a) - e).abs() <= 1e-5, "{a} against {e}");
            }
        }
    }

    #[test]
    fn masked_cells_split_no_span() {
        let same = Some(Group::Same);
        let keys =
            RowKeys::collect([Some(Group::Bridge), None, Some(Group::Bridge), same, None, same, None].into_iter());
        assert_eq!(keys.spans, [(0..3, Group::Bridge), (3..6, Group::Same)]);
        assert_eq!((keys.n_same, keys.n_bridge), (2, 2));
    }
}
