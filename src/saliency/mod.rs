//! Step-Saliency: how much each step of a trace draws on each earlier one, layer by layer, measured on the model as it runs
//! (paper section 3).
//!
//! For a loss L (mean surprise of the next token, in nats) and the attention A after the softmax, the saliency of a query
//! token and a key token is the mean over heads of |A dL/dA|; that of two steps is its mean over their pairs of tokens.

mod attention;
mod gradient;
mod map;
mod metrics;

pub use attention::attention;
pub use gradient::{gradient, gradient_memory, no_gradient};
pub use map::{Pool, StepMap};
pub use metrics::LayerMetrics;

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
}

impl Metric {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Saliency => "saliency",
            Self::Signed => "signed",
        }
    }
}

/// The maps of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerMaps {
    /// The layer, from 0.
    pub layer: usize,
    /// What was measured.
    pub maps: Vec<(Metric, StepMap)>,
}

impl LayerMaps {
    /// The map of a metric, if it was measured.
    pub fn map(&self, metric: Metric) -> Option<&StepMap> {
        self.maps.iter().find(|(other, _)| *other == metric).map(|(_, map)| map)
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
