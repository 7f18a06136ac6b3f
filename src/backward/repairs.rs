//! StepFlow in a model whose layers are run again.

use std::collections::BTreeSet;
use std::ops::Range;

use super::bridge::{Bridge, Segments};
use crate::llama::replay::Attention;
use crate::stepflow::{ConfigError, LayerSelection, Side, StepFlowConfig, Window};
use crate::trace::{Segment, Step, TraceFile};

/// The repairs that a model runs with, and what they have to know of the sequence.
#[derive(Debug, Clone)]
pub struct Repairs {
    segments: Segments,
    /// The first token of each step that is injected into, and the tokens whose values are averaged for it.
    starts: Vec<(usize, Range<usize>)>,
    /// Layers with OEB.
    oeb_layers: BTreeSet<usize>,
    /// The most that OEB's floor may be.
    tau_max: f64,
    /// Layers with SMI.
    smi_layers: BTreeSet<usize>,
    /// The weight of what SMI injects.
    alpha: f32,
}

impl Repairs {
    /// Those that `config` asks for, in a model of `n_layer` layers, on a trace.
    ///
    /// # Errors
    /// When a setting is out of range or a layer is outside the model.
    pub fn new(config: &StepFlowConfig, n_layer: usize, trace: &TraceFile) -> Result<Self, ConfigError> {
        config.validate_for(n_layer)?;
        let layers = |selection: Option<&LayerSelection>, side| {
            selection.map_or(Ok(BTreeSet::new()), |selection| selection.resolve(n_layer, side))
        };
        let (oeb, smi) = (config.oeb.as_ref(), config.smi.as_ref());
        Ok(Self {
            segments: segments(trace),
            starts: starts(&trace.steps, smi.map_or(Window::Step, |smi| smi.window)),
            oeb_layers: layers(oeb.map(|oeb| &oeb.layers), Side::Shallow)?,
            tau_max: oeb.map_or(0.0, |oeb| f64::from(oeb.tau_max)),
            smi_layers: layers(smi.map(|smi| &smi.layers), Side::Deep)?,
            alpha: smi.map_or(0.0, |smi| smi.alpha),
        })
    }

    /// None that has an effect, but all layers looked at: what a pass tells of them is of the plain model.
    pub fn none(n_layer: usize, trace: &TraceFile, window: Window) -> Self {
        let all: BTreeSet<usize> = (0..n_layer).collect();
        Self {
            segments: segments(trace),
            starts: starts(&trace.steps, window),
            oeb_layers: all.clone(),
            tau_max: 0.0,
            smi_layers: all,
            alpha: 0.0,
        }
    }

    /// Those of a layer.
    pub(super) fn of_layer(&self, layer: usize) -> LayerRepair<'_> {
        let bridge = Bridge { segments: &self.segments, tau_max: self.tau_max };
        LayerRepair {
            bridge: self.oeb_layers.contains(&layer).then_some(bridge),
            starts: if self.smi_layers.contains(&layer) { &self.starts } else { &[] },
            alpha: self.alpha,
        }
    }
}

fn segments(trace: &TraceFile) -> Segments {
    Segments::new(trace.tokens.iter().map(|token| token.segment).collect())
}

/// Thinking steps that follow another, and the last tokens of that.
fn starts(steps: &[Step], window: Window) -> Vec<(usize, Range<usize>)> {
    let thinking = |step: &Step| step.segment == Segment::Thinking;
    let pairs = steps.windows(2).filter(|pair| pair.iter().all(thinking));
    let of_pair = |pair: &[Step]| {
        let before = pair[0].tokens.clone();
        let first = match window {
            Window::Last(n) => before.start.max(before.end.saturating_sub(n)),
            Window::Step => before.start,
        };
        (pair[1].tokens.start, first..before.end)
    };
    pairs.map(of_pair).collect()
}

/// The repairs of one layer.
pub(super) struct LayerRepair<'a> {
    pub bridge: Option<Bridge<'a>>,
    starts: &'a [(usize, Range<usize>)],
    alpha: f32,
}

impl LayerRepair<'_> {
    /// The first tokens and windows of steps that begin before a token.
    fn starts(&self, end: usize) -> impl Iterator<Item = &(usize, Range<usize>)> {
        self.starts.iter().filter(move |(start, window)| *start < end && !window.is_empty())
    }

    /// What SMI adds to the outputs of all heads.
    pub fn inject(&self, outputs: &mut [f32], values: &[f32], attention: &Attention) {
        let Attention { n_head, n_head_kv, value_dim, .. } = *attention;
        for (start, window) in self.starts(outputs.len() / (n_head * value_dim)) {
            let scale = self.alpha / window.len() as f32;
            for head in 0..n_head {
                let shared = head / (n_head / n_head_kv);
                let output = &mut outputs[(start * n_head + head) * value_dim..][..value_dim];
                for token in window.clone() {
                    let value = &values[(token * n_head_kv + shared) * value_dim..][..value_dim];
                    output.iter_mut().zip(value).for_each(|(to, from)| *to += scale * from);
                }
            }
        }
    }

    /// The other way round: from the loss's derivative by outputs to that by values.
    pub fn inject_back(&self, by_outputs: &[f32], by_values: &mut [f32], attention: &Attention) {
        let Attention { n_head, n_head_kv, value_dim, .. } = *attention;
        for (start, window) in self.starts(by_outputs.len() / (n_head * value_dim)) {
            let scale = self.alpha / window.len() as f32;
            for head in 0..n_head {
                let shared = head / (n_head / n_head_kv);
                let by_output = &by_outputs[(start * n_head + head) * value_dim..][..value_dim];
                for token in window.clone() {
                    let to = &mut by_values[(token * n_head_kv + shared) * value_dim..][..value_dim];
                    to.iter_mut().zip(by_output).for_each(|(to, from)| *to += scale * from);
                }
            }
        }
    }

    /// The loss's derivative by alpha through each head.
    pub fn by_alpha(&self, by_outputs: &[f32], values: &[f32], attention: &Attention) -> Vec<f64> {
        let Attention { n_head, n_head_kv, value_dim, .. } = *attention;
        let of_head = |head: usize| {
            let shared = head / (n_head / n_head_kv);
            let starts = self.starts(by_outputs.len() / (n_head * value_dim));
            let of_start = |(start, window): &(usize, Range<usize>)| {
                let by_output = &by_outputs[(start * n_head + head) * value_dim..][..value_dim];
                let of_token = |token: usize| {
                    let value = &values[(token * n_head_kv + shared) * value_dim..][..value_dim];
                    by_output.iter().zip(value).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                };
                window.clone().map(of_token).sum::<f64>() / window.len() as f64
            };
            starts.map(of_start).sum()
        };
        (0..n_head).map(of_head).collect()
    }
}
