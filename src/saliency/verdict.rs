//! Whether a trace shows the two failures of information flow that the paper names.

use std::ops::Range;

use super::LayerMetrics;

/// What a trace shows of both failures; `None` of one whose steps or layers it does not have.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Shallow Lock-in: in the first quarter of the layers, thinking steps see little but themselves and the step before.
    /// A layer counts where they give these more than half.
    pub shallow_lock_in: Option<Pattern>,
    /// Deep Decay: in the last quarter of the layers, the summary has lost sight of the thinking. A layer counts where it
    /// gives the thinking less than half of what it would if it looked everywhere alike.
    pub deep_decay: Option<Pattern>,
}

/// One failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    /// The share that it is about, of each layer that was looked at.
    pub shares: Vec<(usize, f64)>,
    /// What the share would be if every token were looked at alike.
    pub even: f64,
    /// The layers that show it.
    pub layers: Vec<usize>,
}

impl Pattern {
    fn new(shares: Vec<(usize, f64)>, even: Option<f64>, shows: impl Fn(f64, f64) -> bool) -> Option<Self> {
        let even = even.filter(|_| !shares.is_empty())?;
        let layers = shares.iter().filter(|(_, share)| shows(*share, even)).map(|(layer, _)| *layer).collect();
        Some(Self { shares, even, layers })
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

impl Verdict {
    /// From the metrics of layers of a model with `n_layer`, and from `even`, those of a map that is the same everywhere.
    pub fn new(metrics: &[(usize, LayerMetrics)], even: &LayerMetrics, n_layer: usize) -> Self {
        let quarter = (n_layer / 4).max(1);
        let shares = |layers: Range<usize>, share: fn(&LayerMetrics) -> Option<f64>| {
            let measured = metrics.iter().filter(|(layer, _)| layers.contains(layer));
            measured.filter_map(|(layer, metrics)| Some((*layer, share(metrics)?))).collect::<Vec<_>>()
        };
        let shallow = shares(0..quarter, |metrics| metrics.lock_in);
        let deep = shares(n_layer - quarter..n_layer, |metrics| metrics.summary_to_thinking);
        Self {
            shallow_lock_in: Pattern::new(shallow, even.lock_in, |share, _| share > 0.5),
            deep_decay: Pattern::new(deep, even.summary_to_thinking, |share, even| share < 0.5 * even),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_looked_for_where_they_belong() {
        let layer = |lock_in: f64, seen: f64| LayerMetrics {
            lock_in: Some(lock_in),
            summary_to_thinking: Some(seen),
            ..LayerMetrics::default()
        };
        let even = layer(0.2, 0.6);
        let metrics: Vec<_> =
            [(0.9, 0.1), (0.4, 0.1), (0.9, 0.1), (0.9, 0.1), (0.9, 0.1), (0.9, 0.1), (0.2, 0.2), (0.2, 0.4)]
                .iter()
                .enumerate()
                .map(|(i, &(lock_in, seen))| (i, layer(lock_in, seen)))
                .collect();
        let verdict = Verdict::new(&metrics, &even, 8);
        let (lock_in, decay) = (verdict.shallow_lock_in.unwrap(), verdict.deep_decay.unwrap());
        assert_eq!((lock_in.is_shown(), lock_in.layers.as_slice()), (true, &[0][..]));
        assert_eq!(lock_in.range(), (0.65, 0.4, 0.9));
        assert_eq!((decay.is_shown(), decay.layers.as_slice()), (true, &[6][..]));
        let verdict = Verdict::new(&metrics[2..6], &even, 8);
        assert_eq!((verdict.shallow_lock_in, verdict.deep_decay), (None, None), "no such layers were measured");
    }
}
