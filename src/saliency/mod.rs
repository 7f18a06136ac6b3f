//! Step-Saliency: how much each step of a trace draws on each earlier one, layer by layer, measured on the model as it runs
//! (paper section 3).
//!
//! For a loss L (mean surprise of the next token, in nats) and the attention A after the softmax, the saliency of a query
//! token and a key token is the mean over heads of |A dL/dA|; that of two steps is its mean over their pairs of tokens.

mod attention;
mod cells;
mod compare;
mod gradient;
mod jacobian;
mod map;
mod metrics;
mod noise;
mod probe;
mod scale;
mod verdict;

pub use attention::attention;
pub use cells::{Cell, HeadCell, Run};
pub use compare::{RankTest, holm};
pub use gradient::{free_memory, gradient, no_gradient};
pub use jacobian::jacobian;
pub use map::{Pool, StepMap};
pub use metrics::LayerMetrics;
pub use probe::{Estimator, Probe};
pub use verdict::{MIN_THINKING_STEPS, Pattern, Spread, Untold, Verdict};

/// What a map's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Mean attention over heads and pairs of tokens: a share.
    Attention,
    /// Step-Saliency: mean of |A dL/dA| over heads and pairs of tokens, in nats.
    Saliency,
    /// Sum over heads of the mean of A dL/dA over pairs of tokens, in nats: with its sign, so that what helps and what
    /// hurts cancel. It is the derivative of the loss by the weight of the whole cell, over its pairs.
    Signed,
    /// Root mean square over heads and query tokens of the sums of A dL/dA over key tokens, by the number of key tokens,
    /// in nats: what can be estimated of Step-Saliency without a backward pass.
    Rms,
    /// Norm of the derivatives of the query step's mean logit by the key step's rows of the layer's input, as a share of all pairs
    /// of the layer.
    Jacobian,
}

impl Metric {
    /// All of them, the most telling first: what to look at of a run that measured several.
    pub const ALL: [Self; 5] = [Self::Saliency, Self::Rms, Self::Signed, Self::Jacobian, Self::Attention];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Saliency => "saliency",
            Self::Signed => "signed",
            Self::Rms => "rms",
            Self::Jacobian => "jacobian",
        }
    }

    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Attention | Self::Jacobian => "share",
            Self::Saliency | Self::Signed | Self::Rms => "nats",
        }
    }
}

/// The maps of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerMaps {
    /// The layer, from 0.
    pub layer: usize,
    /// What was measured.
    pub maps: Vec<MetricMap>,
    /// The same of each head, where that was asked for.
    pub heads: Vec<HeadMaps>,
}

/// The maps of one head: its part of the layer's.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadMaps {
    /// Mean of |A dL/dA| over pairs of tokens, in nats; the layer's is the mean over its heads.
    pub saliency: StepMap,
    /// Mean of A dL/dA over pairs of tokens, in nats; the layer's is the sum over its heads.
    pub signed: StepMap,
}

/// A metric's values for one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricMap {
    /// What they are.
    pub metric: Metric,
    /// The values; NaN where none was measured.
    pub values: StepMap,
    /// How sure they are, where they are estimates.
    pub estimates: Option<StepMap<Estimate>>,
}

/// How an estimated value came about.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimate {
    /// Standard error of the value, by noise alone, in its unit.
    pub se: f64,
    /// How far the slopes to either side are from the value, in its unit: by so much a finite step may err. 0 for
    /// [`Metric::Rms`].
    pub curvature: f64,
    /// Relative change of the attention; the largest of several.
    pub eps: f64,
    /// Forwards that it took.
    pub n_probes: usize,
}

impl Estimate {
    /// Whether the value's sign is not established: 0 is within five standard errors, widened by the curvature.
    ///
    /// Most cells of a quantized run have no effect that shows, so few of these may pass. A standard error from two tables of
    /// nine values has some twelve degrees of freedom, by which one such cell in 3,000 passes at five (Student's t).
    pub fn below_noise(&self, value: f64) -> bool {
        value.abs() <= 5.0 * self.se + self.curvature
    }
}

impl HeadMaps {
    /// All cells 0.
    fn new(n_steps: usize) -> Self {
        Self { saliency: StepMap::new(n_steps), signed: StepMap::new(n_steps) }
    }

    /// Adds another's cells.
    fn add(&mut self, other: &Self) {
        self.saliency.add(&other.saliency);
        self.signed.add(&other.signed);
    }
}

impl LayerMaps {
    /// Which of a metric's cells are below noise, if they are estimates.
    pub fn below_noise(&self, metric: Metric) -> Option<StepMap<bool>> {
        let map = self.maps.iter().find(|map| map.metric == metric)?;
        let estimates = map.estimates.as_ref()?;
        let mut below = StepMap::new(map.values.n_steps());
        for query in 0..below.n_steps() {
            for (key, cell) in below.row_mut(query).iter_mut().enumerate() {
                *cell = estimates.get(query, key).below_noise(map.values.get(query, key));
            }
        }
        Some(below)
    }

    /// What to look at first: Step-Saliency, or the nearest thing that was measured, all 0 or more; signed sums without
    /// their signs.
    pub fn magnitudes(&self) -> (Metric, StepMap) {
        self.most_telling().map_or((Metric::Saliency, StepMap::new(0)), |(metric, map)| (metric, map.map(f64::abs)))
    }

    /// The map to look at first, as it was measured.
    pub fn most_telling(&self) -> Option<(Metric, &StepMap)> {
        Metric::ALL.into_iter().find_map(|metric| Some((metric, self.map(metric)?)))
    }

    /// Whether any cell was measured.
    pub fn is_measured(&self) -> bool {
        let known = |map: &StepMap| (0..map.n_steps()).any(|query| map.row(query).iter().any(|value| !value.is_nan()));
        self.maps.iter().any(|map| known(&map.values))
    }

    /// The map of a metric, if it was measured.
    pub fn map(&self, metric: Metric) -> Option<&StepMap> {
        self.maps.iter().find(|map| map.metric == metric).map(|map| &map.values)
    }
}

/// A trace's maps.
#[derive(Debug, Clone, PartialEq)]
pub struct Saliency {
    /// The loss that was differentiated, in nats, if one was.
    pub loss: Option<f64>,
    /// The layers, in order.
    pub layers: Vec<LayerMaps>,
}
