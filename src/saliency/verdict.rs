//! Whether a trace shows the two failures of information flow that the paper names. The paper gives no thresholds: those here
//! are ours.

use std::ops::Range;

use super::LayerMetrics;
use crate::trace::Segment;

/// The fewest thinking steps that a verdict is given of: with fewer, most of what a step can look at is the step before.
pub const MIN_THINKING_STEPS: usize = 4;

/// By how much a shallow layer must be above the mean of the deeper ones at least, a share.
const MARGIN: f64 = 0.05;

/// What a trace shows of both failures, or why it cannot be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Shallow Lock-in: in the first quarter of the layers, thinking steps see little but themselves and the step before.
    /// A layer counts where they give these more than half, and more than in the deeper layers: by more than those spread
    /// (their standard deviation), and five points at least, above their mean.
    pub shallow_lock_in: Result<Pattern, Untold>,
    /// Deep Decay: in the last quarter of the layers, the summary has lost sight of the thinking. A layer counts where it
    /// gives the thinking less than half of what it would if it looked everywhere alike.
    pub deep_decay: Result<Pattern, Untold>,
}

/// One failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    /// The share that it is about, of each layer that was looked at.
    pub shares: Vec<(usize, f64)>,
    /// What the share would be if every token were looked at alike.
    pub even: f64,
    /// The same share in the layers that these are to stand out from, where the failure is that they do.
    pub others: Option<Spread>,
    /// The layers that show it.
    pub layers: Vec<usize>,
}

/// Shares of several layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, over these layers.
    pub deviation: f64,
}

/// Why there is no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// The trace has too few steps of thinking.
    #[error("too short to tell: a verdict takes {MIN_THINKING_STEPS} steps of thinking, and the trace has {0}")]
    TooShort(usize),
    /// The trace has no summary.
    #[error("cannot be told: the trace has no summary")]
    NoSummary,
    /// None of the layers that the failure is of.
    #[error("cannot be told: none of its layers were measured, or noise hides them")]
    NotMeasured,
    /// None of the layers that these would have to stand out from.
    #[error("cannot be told: fewer than two deeper layers were measured to compare with, or noise hides them")]
    NoDeeperLayers,
}

impl Pattern {
    fn new(shares: Vec<(usize, f64)>, even: f64, others: Option<Spread>, shows: impl Fn(f64) -> bool) -> Self {
        let layers = shares.iter().filter(|(_, share)| shows(*share)).map(|(layer, _)| *layer).collect();
        Self { shares, even, others, layers }
    }

    /// Whether at least half of the layers show it.
    pub fn is_shown(&self) -> bool {
        2 * self.layers.len() >= self.shares.len()
    }

    /// Mean, least and largest share.
    pub fn range(&self) -> (f64, f64, f64) {
        let shares = || self.shares.iter().map(|(_, share)| *share);
        let mean = shares().sum::<f64>() / self.shares.len() as f64;
        (mean, shares().fold(f64::INFINITY, f64::min), shares().fold(f64::NEG_INFINITY, f64::max))
    }
}

impl Spread {
    /// Of two shares at least.
    fn of(shares: &[(usize, f64)]) -> Option<Self> {
        let n = shares.len() as f64;
        let mean = shares.iter().map(|(_, share)| share).sum::<f64>() / n;
        let variance = shares.iter().map(|(_, share)| (share - mean).powi(2)).sum::<f64>() / n;
        (shares.len() > 1).then_some(Self { mean, deviation: variance.sqrt() })
    }

    /// Above this a share stands out.
    fn limit(&self) -> f64 {
        self.mean + self.deviation.max(MARGIN)
    }
}

impl Verdict {
    /// From the metrics of layers of a model with `n_layer`, from `even`, those of a map that is the same everywhere, and from
    /// the segments of the trace's steps.
    pub fn new(metrics: &[(usize, LayerMetrics)], even: &LayerMetrics, n_layer: usize, segments: &[Segment]) -> Self {
        let n_thinking = segments.iter().filter(|&&segment| segment == Segment::Thinking).count();
        if n_thinking < MIN_THINKING_STEPS {
            let untold = Untold::TooShort(n_thinking);
            return Self { shallow_lock_in: Err(untold), deep_decay: Err(untold) };
        }
        let has_summary = segments.contains(&Segment::Summary);
        Self {
            shallow_lock_in: shallow_lock_in(metrics, even, n_layer),
            deep_decay: if has_summary { deep_decay(metrics, even, n_layer) } else { Err(Untold::NoSummary) },
        }
    }
}

fn shallow_lock_in(metrics: &[(usize, LayerMetrics)], even: &LayerMetrics, n_layer: usize) -> Result<Pattern, Untold> {
    let quarter = quarter(n_layer);
    let shallow = shares(metrics, 0..quarter, |metrics| metrics.lock_in);
    let even = even.lock_in.filter(|_| !shallow.is_empty()).ok_or(Untold::NotMeasured)?;
    let deeper = Spread::of(&shares(metrics, quarter..n_layer, |metrics| metrics.lock_in));
    let deeper = deeper.ok_or(Untold::NoDeeperLayers)?;
    Ok(Pattern::new(shallow, even, Some(deeper), |share| share > 0.5 && share > deeper.limit()))
}

fn deep_decay(metrics: &[(usize, LayerMetrics)], even: &LayerMetrics, n_layer: usize) -> Result<Pattern, Untold> {
    let deep = shares(metrics, n_layer - quarter(n_layer)..n_layer, |metrics| metrics.summary_to_thinking);
    let even = even.summary_to_thinking.filter(|_| !deep.is_empty()).ok_or(Untold::NotMeasured)?;
    Ok(Pattern::new(deep, even, None, |share| share < 0.5 * even))
}

fn quarter(n_layer: usize) -> usize {
    (n_layer / 4).max(1)
}

/// The shares of those of the layers that have one.
fn shares(
    metrics: &[(usize, LayerMetrics)],
    layers: Range<usize>,
    share: fn(&LayerMetrics) -> Option<f64>,
) -> Vec<(usize, f64)> {
    let measured = metrics.iter().filter(|(layer, _)| layers.contains(layer));
    measured.filter_map(|(layer, metrics)| Some((*layer, share(metrics)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: [Segment; 6] = {
        use Segment::{Question, Summary, Thinking};
        [Question, Thinking, Thinking, Thinking, Thinking, Summary]
    };

    /// A verdict of layers with these lock-in and summary-to-thinking shares.
    fn verdict(shares: &[(f64, f64)], layers: Range<usize>, segments: &[Segment]) -> Verdict {
        let layer = |(lock_in, seen): (f64, f64)| LayerMetrics {
            lock_in: Some(lock_in),
            summary_to_thinking: Some(seen),
            ..LayerMetrics::default()
        };
        let metrics: Vec<_> = shares.iter().copied().map(layer).enumerate().collect();
        Verdict::new(&metrics[layers], &layer((0.2, 0.6)), shares.len(), segments)
    }

    const SHARES: [(f64, f64); 8] =
        [(0.9, 0.1), (0.4, 0.1), (0.6, 0.1), (0.5, 0.1), (0.4, 0.1), (0.3, 0.1), (0.2, 0.2), (0.2, 0.4)];

    #[test]
    fn failures_are_looked_for_where_they_belong() {
        let found = verdict(&SHARES, 0..8, &SEGMENTS);
        let (lock_in, decay) = (found.shallow_lock_in.unwrap(), found.deep_decay.unwrap());
        assert_eq!((lock_in.is_shown(), lock_in.layers.as_slice()), (true, &[0][..]));
        assert_eq!(lock_in.range(), (0.65, 0.4, 0.9));
        assert_eq!((decay.is_shown(), decay.layers.as_slice()), (true, &[6][..]));
    }

    #[test]
    fn shallow_layers_must_stand_out_from_the_deeper_ones() {
        let shown = |shallow: f64, deeper: [f64; 6]| {
            let shares: Vec<_> = [shallow, shallow].into_iter().chain(deeper).map(|share| (share, 0.5)).collect();
            verdict(&shares, 0..8, &SEGMENTS).shallow_lock_in.unwrap().is_shown()
        };
        assert!(shown(0.9, [0.6, 0.6, 0.6, 0.6, 0.6, 0.6]));
        assert!(!shown(0.9, [0.9, 0.9, 0.9, 0.9, 0.9, 0.9]), "all layers alike");
        assert!(!shown(0.9, [0.86, 0.86, 0.86, 0.86, 0.86, 0.86]), "hardly more");
        assert!(!shown(0.7, [0.9, 0.9, 0.9, 0.5, 0.5, 0.5]), "no more than deeper layers differ");
        assert!(!shown(0.7, [0.8, 0.9, 0.8, 0.9, 0.8, 0.9]), "less");
        assert!(!shown(0.45, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]), "less than half");
    }

    #[test]
    fn what_cannot_be_told_is_not_told() {
        let told = |layers, segments: &[Segment]| {
            let found = verdict(&SHARES, layers, segments);
            (found.shallow_lock_in.err(), found.deep_decay.err())
        };
        assert_eq!(told(0..8, &SEGMENTS), (None, None));
        for n in 0..MIN_THINKING_STEPS {
            let short = [&SEGMENTS[..=n], &[Segment::Summary]].concat();
            assert_eq!(told(0..8, &short), (Some(Untold::TooShort(n)), Some(Untold::TooShort(n))), "{n} steps");
        }
        assert_eq!(told(0..8, &SEGMENTS[..5]), (None, Some(Untold::NoSummary)));
        assert_eq!(told(2..6, &SEGMENTS), (Some(Untold::NotMeasured), Some(Untold::NotMeasured)));
        assert_eq!(told(0..2, &SEGMENTS), (Some(Untold::NoDeeperLayers), Some(Untold::NotMeasured)));
        assert_eq!(told(0..3, &SEGMENTS).0, Some(Untold::NoDeeperLayers));
        assert_eq!(told(0..4, &SEGMENTS).0, None);
    }
}
