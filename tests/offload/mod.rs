//! Runs StepFlow in a tiny model with some of its layers on a device.

use std::collections::BTreeSet;
use std::sync::Arc;

use stepflow::engine::Repair;
use stepflow::kernels::Library;
use stepflow::llama::{Batch, CacheType, Context, ContextParams, FlashAttention, Model, ModelParams, Row, Token};
use stepflow::stepflow::{Kernels, Stats, StepFlowConfig};
use stepflow::trace::Segment;

use crate::tiny::{Arch, WeightType, tiny};

/// What a run gave: the logits of every token, and what StepFlow counted.
pub struct Run {
    logits: Vec<f32>,
    stats: Stats,
}

const QUESTION: usize = 12;
const STEP: usize = 9;

/// A question and four steps of thinking, then a summary, in two sequences side by side.
fn rows(n_vocab: usize) -> Vec<Row> {
    let row = |position: usize, sequence: u32| {
        let thinking = position.checked_sub(QUESTION).filter(|thought| *thought < 4 * STEP);
        let starts = thinking.is_some_and(|thought| thought > 0 && thought % STEP == 0);
        Row {
            token: Token(((position * 41 + sequence as usize * 7 + 5) % n_vocab) as i32),
            segment: match thinking {
                Some(_) => Segment::Thinking,
                None if position < QUESTION => Segment::Question,
                None => Segment::Summary,
            },
            previous_step: starts.then(|| position - STEP..position),
            position,
            sequence,
            logits: true,
        }
    };
    (0..QUESTION + 4 * STEP + 6).flat_map(|position| [row(position, 0), row(position, 1)]).collect()
}

/// Decodes with `n_gpu_layers` layers on the device, in micro-batches of several sizes.
pub fn run(arch: Arch, n_gpu_layers: u32, kernels: Option<(&str, Library)>) -> Run {
    // Weights that the CPU backend lays out for itself would round otherwise than the device's.
    let params = ModelParams { n_gpu_layers, ..ModelParams::default() };
    let model = Arc::new(Model::load(&tiny(arch, WeightType::F32), &params).unwrap());
    let mut repair = Repair::new(&StepFlowConfig::paper(), model.n_layer(), 2).unwrap();
    if let Some((backend, library)) = kernels {
        repair = repair.with_kernels(backend, library);
    }
    let control = repair.control();
    let params = ContextParams {
        n_ctx: 256,
        n_sequences: 2,
        n_threads: 2,
        n_threads_batch: 2,
        flash_attention: FlashAttention::Off,
        type_k: CacheType::F16,
        type_v: CacheType::F16,
        ..ContextParams::default()
    };
    let mut context = Context::new(model.clone(), &params, Some(Box::new(repair))).unwrap();
    let (mut logits, mut rows) = (Vec::new(), rows(model.n_vocab()));
    for n in [1, 30, 2, 64, 9].into_iter().cycle() {
        let batch = Batch { rows: rows.drain(..n.min(rows.len())).collect() };
        context.decode(&batch).unwrap();
        (0..batch.rows.len()).for_each(|row| logits.extend(context.logits(row)));
        if rows.is_empty() {
            break;
        }
    }
    Run { logits, stats: control.stats() }
}

/// The largest difference of two logits, after making sure that both runs repaired the same.
pub fn difference(a: &Run, b: &Run) -> f32 {
    for (layer, a) in &a.stats.layers {
        let b = &b.stats.layers[layer];
        assert_eq!((a.rows_seen, a.rows_bridged, a.injections), (b.rows_seen, b.rows_bridged, b.injections));
        let off = |a: f64, b: f64| (a - b).abs();
        // Means of F32 sums.
        assert!(off(a.mean_bridge_before(), b.mean_bridge_before()) <= 1e-6, "layer {layer}: {a:?} {b:?}");
        assert!(off(a.mean_bridge_after(), b.mean_bridge_after()) <= 1e-6, "layer {layer}: {a:?} {b:?}");
        assert!(off(a.mean_injected_norm(), b.mean_injected_norm()) <= 1e-5, "layer {layer}: {a:?} {b:?}");
    }
    assert!(a.stats.total().rows_bridged > 0 && a.stats.total().injections > 0, "there was something to repair");
    let differences = a.logits.iter().zip(&b.logits).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst: f32, d| if worst.is_nan() || d <= worst { worst } else { d })
}

/// What worked on the layers.
pub fn kernels_of(run: &Run) -> BTreeSet<&'static str> {
    run.stats.layers.values().filter_map(|layer| layer.kernels.map(Kernels::name)).collect()
}
