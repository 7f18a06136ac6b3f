//! Difference maps: how otherwise the steps of two runs, or of two groups of runs, share themselves.

use stepflow::saliency::StepMap;
use stepflow::trace::Segment;

use super::read::Run;

const SEGMENTS: [Segment; 3] = [Segment::Question, Segment::Thinking, Segment::Summary];

/// A share on either side; NaN where it is not known.
#[derive(Clone, Copy, Default)]
pub struct Pair {
    pub a: f64,
    pub b: f64,
}

impl Pair {
    /// By how much B's is larger.
    pub fn difference(self) -> f64 {
        self.b - self.a
    }
}

/// The shares of both sides, side by side, layer by layer.
pub struct Differences {
    /// Whether cells are pairs of steps; else they are pairs of segments.
    pub by_step: bool,
    /// The segment of each row and column.
    pub segments: Vec<Segment>,
    pub layers: Vec<(usize, StepMap<Pair>)>,
}

impl Differences {
    /// Step by step where both sides are one run of the same trace; else by segment, each the mean over its steps and over
    /// the runs of a side.
    pub fn new(a: &[Run], b: &[Run], layers: &[usize]) -> Self {
        let by_step =
            matches!((a, b), ([a], [b]) if a.about.trace_sha256 == b.about.trace_sha256 && a.segments == b.segments);
        let maps = |side: &[Run], layer| match by_step {
            true => side[0].shares[&layer].clone(),
            false => mean(side.iter().map(|run| by_segment(&run.shares[&layer], &run.segments))),
        };
        let segments = if by_step { a[0].segments.clone() } else { SEGMENTS.to_vec() };
        let pairs = |&layer: &usize| (layer, pairs(&maps(a, layer), &maps(b, layer)));
        Self { by_step, segments, layers: layers.iter().map(pairs).collect() }
    }

    /// What a row or a column is called.
    pub fn name(&self, index: usize) -> String {
        if self.by_step { index.to_string() } else { self.segments[index].to_string() }
    }
}

fn pairs(a: &StepMap, b: &StepMap) -> StepMap<Pair> {
    let mut pairs = StepMap::new(a.n_steps());
    for query in 0..a.n_steps() {
        for key in 0..=query {
            pairs.set(query, key, Pair { a: a.get(query, key), b: b.get(query, key) });
        }
    }
    pairs
}

/// How the steps of each segment share themselves among segments, in the mean.
fn by_segment(shares: &StepMap, segments: &[Segment]) -> StepMap {
    let mut map = StepMap::new(SEGMENTS.len());
    for (query, query_segment) in SEGMENTS.iter().enumerate() {
        for (key, key_segment) in SEGMENTS[..=query].iter().enumerate() {
            let steps = (0..segments.len()).filter(|&step| segments[step] == *query_segment);
            let known = steps.map(|step| {
                let row = shares.row(step).iter().zip(segments);
                row.filter(|(_, segment)| *segment == key_segment).map(|(share, _)| share).sum::<f64>()
            });
            map.set(query, key, mean_of_known(known));
        }
    }
    map
}

fn mean(maps: impl Iterator<Item = StepMap>) -> StepMap {
    let maps: Vec<StepMap> = maps.collect();
    let mut mean = StepMap::new(SEGMENTS.len());
    for (query, key) in (0..SEGMENTS.len()).flat_map(|query| (0..=query).map(move |key| (query, key))) {
        mean.set(query, key, mean_of_known(maps.iter().map(|map| map.get(query, key))));
    }
    mean
}

fn mean_of_known(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.filter(|value| !value.is_nan()).fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    if n > 0 { sum / f64::from(n) } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_share_as_their_steps_do_in_the_mean() {
        let segments = [Segment::Question, Segment::Thinking, Segment::Thinking];
        let mut shares = StepMap::new(3);
        for (query, row) in [&[1.0][..], &[0.25, 0.75], &[0.5, 0.25, 0.25]].into_iter().enumerate() {
            row.iter().enumerate().for_each(|(key, share)| shares.set(query, key, *share));
        }
        let map = by_segment(&shares, &segments);
        assert_eq!((map.get(0, 0), map.get(1, 0), map.get(1, 1)), (1.0, 0.375, 0.625));
        assert!(map.get(2, 0).is_nan(), "no summary");
        shares.set(2, 0, f64::NAN);
        assert_eq!(by_segment(&shares, &segments).get(1, 0), 0.25, "steps of which nothing is known do not count");
    }
}
