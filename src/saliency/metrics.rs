//! What a layer's map says in a few numbers.
//!
//! Shares are of the row-normalised map: how each query step shares itself among the steps it can see. Intensities are of
//! the map itself, and as the authors' released code defines them.

use crate::trace::Segment;

use super::{Pool, StepMap};

/// Numbers of one layer; `None` where the trace has no such steps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LayerMetrics {
    /// Mean share that a thinking step gives to itself and the step before. Near 1, steps see only themselves: Shallow
    /// Lock-in, where it happens in shallow layers.
    pub lock_in: Option<f64>,
    /// Mean share that a thinking step gives to the question.
    pub question_share: Option<f64>,
    /// Mean share that a summary step gives to the thinking. Near 0, the thinking is out of sight: Deep Decay, where it
    /// happens in deep layers.
    pub summary_to_thinking: Option<f64>,
    /// Mean of the map over all pairs of summary steps, masked ones counted as 0, in its unit: final-block intensity.
    pub final_block: Option<f64>,
    /// The same of thinking steps: analysis-block intensity.
    pub analysis_block: Option<f64>,
    /// The first of these over the second. Far above 1, the summary turns on itself.
    pub final_to_analysis: Option<f64>,
}

impl LayerMetrics {
    /// Of a map whose steps lie in these segments.
    pub fn new(map: &StepMap, segments: &[Segment]) -> Self {
        let has = |segment| segments.contains(&segment);
        let share = |query: usize, wanted: &dyn Fn(usize) -> bool| {
            let row = map.row(query);
            let total: f64 = row.iter().sum();
            let part: f64 = row.iter().enumerate().filter(|(key, _)| wanted(*key)).map(|(_, cell)| cell).sum();
            (total > 0.0).then_some(part / total)
        };
        let of = |segment| (0..segments.len()).filter(move |&step| segments[step] == segment);
        // The first two steps of a trace see nothing but themselves and the step before.
        let lock_in = of(Segment::Thinking).filter(|&step| step >= 2);
        let block = |segment| {
            let n = of(segment).count();
            let row = |query| of(segment).take_while(move |&key| key <= query).map(move |key| map.get(query, key));
            let mean = (n > 0).then(|| of(segment).flat_map(row).sum::<f64>() / (n * n) as f64);
            // Cells that were not measured are NaN.
            mean.filter(|mean| mean.is_finite())
        };
        let (final_block, analysis_block) = (block(Segment::Summary), block(Segment::Thinking));
        let ratio = |(summary, thinking): (f64, f64)| (thinking > 0.0).then_some(summary / thinking);
        Self {
            lock_in: mean(lock_in.filter_map(|query| share(query, &|key| key + 1 >= query))),
            question_share: mean(
                of(Segment::Thinking).filter_map(|query| share(query, &|key| segments[key] == Segment::Question)),
            ),
            summary_to_thinking: mean(
                of(Segment::Summary)
                    .filter(|_| has(Segment::Thinking))
                    .filter_map(|query| share(query, &|key| segments[key] == Segment::Thinking)),
            ),
            final_block,
            analysis_block,
            final_to_analysis: final_block.zip(analysis_block).and_then(ratio),
        }
    }

    /// Of a map that is the same everywhere: what shares and ratios would be if each token looked at all before it alike.
    pub fn even(pool: &Pool, segments: &[Segment]) -> Self {
        let mut map = StepMap::new(pool.n_steps());
        for query in 0..pool.n_tokens() {
            pool.add(&mut map, query, std::iter::repeat_n(1.0, query + 1));
        }
        pool.mean(&mut map, 1);
        Self { final_block: None, analysis_block: None, ..Self::new(&map, segments) }
    }

    /// Names and values, the shares first.
    pub fn named(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("lock_in", self.lock_in),
            ("question_share", self.question_share),
            ("summary_to_thinking", self.summary_to_thinking),
            ("final_block", self.final_block),
            ("analysis_block", self.analysis_block),
            ("final_to_analysis", self.final_to_analysis),
        ]
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_what_a_step_can_see() {
        use Segment::{Question, Summary, Thinking};
        let steps: [(usize, &[f64]); 4] =
            [(0, &[2.0]), (1, &[3.0, 1.0]), (2, &[1.0, 1.0, 2.0]), (3, &[4.0, 1.0, 2.0, 1.0])];
        let (pool, mut map) = (Pool::new([0..1, 1..2, 2..3, 3..4]), StepMap::new(4));
        for (query, row) in steps {
            pool.add(&mut map, query, row.iter().copied());
        }
        let metrics = LayerMetrics::new(&map, &[Question, Thinking, Thinking, Summary]);
        assert_eq!(metrics.lock_in, Some(0.75));
        assert_eq!(metrics.question_share, Some(0.5));
        assert_eq!(metrics.summary_to_thinking, Some(0.375));
        // One of four pairs of thinking steps is masked.
        assert_eq!((metrics.final_block, metrics.analysis_block), (Some(1.0), Some(4.0 / 4.0)));
        assert_eq!(metrics.final_to_analysis, Some(1.0));
        let thoughtless = LayerMetrics::new(&map, &[Question, Question, Question, Summary]);
        assert_eq!(thoughtless, LayerMetrics { final_block: Some(1.0), ..LayerMetrics::default() });
        let none = LayerMetrics::new(&StepMap::new(2), &[Question, Thinking]);
        let nothing = LayerMetrics { analysis_block: Some(0.0), ..LayerMetrics::default() };
        assert_eq!(none, nothing, "a row of zeros has no shares");
    }
}
