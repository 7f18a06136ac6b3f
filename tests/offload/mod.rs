//! Runs StepFlow in a model with some of its layers on a device.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stepflow::engine::Repair;
use stepflow::llama::{
    Attention, Batch, CacheType, Context, ContextParams, FlashAttention, HeadOutput, Hook, HookError, Model,
    ModelParams, Point, Row, Token,
};
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

/// StepFlow without its kernels: on a device the data is read back.
pub struct ReadBack(pub Repair);

impl Hook for ReadBack {
    fn begin(&mut self, rows: &[Row]) {
        self.0.begin(rows);
    }

    fn wants(&self, point: Point, layer: usize) -> bool {
        self.0.wants(point, layer)
    }

    fn attention(&mut self, attention: Attention<'_>) -> Result<(), HookError> {
        self.0.attention(attention)
    }

    fn head_output(&mut self, output: HeadOutput<'_>) -> Result<(), HookError> {
        self.0.head_output(output)
    }
}

/// The tiny model of an architecture. Weights that the CPU backend lays out for itself would round otherwise than a
/// device's, so they are F32.
pub fn model(arch: Arch) -> PathBuf {
    tiny(arch, WeightType::F32)
}

/// Decodes with `n_gpu_layers` layers on the device, in micro-batches of several sizes; `hook` makes a hook of StepFlow.
pub fn run(path: &Path, n_gpu_layers: u32, hook: impl FnOnce(Repair) -> Option<Box<dyn Hook>>) -> Run {
    let params = ModelParams { n_gpu_layers, ..ModelParams::default() };
    let model = Arc::new(Model::load(path, &params).unwrap());
    let repair = Repair::new(&StepFlowConfig::paper(), model.n_layer(), 2).unwrap();
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
    let mut context = Context::new(model.clone(), &params, hook(repair)).unwrap();
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

/// StepFlow on the host.
pub fn on_host(path: &Path) -> Run {
    run(path, 0, |repair| Some(Box::new(repair)))
}

/// The largest difference of two logits.
pub fn difference(a: &Run, b: &Run) -> f32 {
    assert_eq!(a.logits.len(), b.logits.len());
    let differences = a.logits.iter().zip(&b.logits).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst: f32, d| if worst.is_nan() || d <= worst { worst } else { d })
}

/// Makes sure that both runs repaired something, and the same; `share` of the bridged rows may differ.
pub fn assert_same_repairs(a: &Run, b: &Run, share: f64) {
    assert!(a.stats.total().rows_bridged > 0 && a.stats.total().injections > 0, "there was something to repair");
    for (layer, a) in &a.stats.layers {
        let b = &b.stats.layers[layer];
        assert_eq!((a.rows_seen, a.injections), (b.rows_seen, b.injections), "layer {layer}");
        let (more, fewer) = (a.rows_bridged.max(b.rows_bridged), a.rows_bridged.min(b.rows_bridged));
        assert!((more - fewer) as f64 <= share * more as f64, "layer {layer}: {a:?} {b:?}");
        // Means of F32 sums, and what a row bridged in one run alone adds to them.
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 + share;
        assert!(near(a.mean_bridge_before(), b.mean_bridge_before()), "layer {layer}: {a:?} {b:?}");
        assert!(near(a.mean_bridge_after(), b.mean_bridge_after()), "layer {layer}: {a:?} {b:?}");
        assert!(near(a.mean_injected_norm(), b.mean_injected_norm()), "layer {layer}: {a:?} {b:?}");
    }
}

/// What worked on the layers.
pub fn kernels_of(run: &Run) -> BTreeSet<&'static str> {
    run.stats.layers.values().filter_map(|layer| layer.kernels.map(Kernels::name)).collect()
}
