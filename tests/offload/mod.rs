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
use stepflow::saliency::{Estimator, Pool, Probe, StepMap};
use stepflow::stepflow::{Kernels, OebConfig, Stats, StepFlowConfig};
use stepflow::trace::Segment;

use crate::tiny::{Arch, WeightType, tiny};

/// What a run gave: the logits of every token, and what StepFlow counted.
pub struct Run {
    logits: Vec<f32>,
    stats: Stats,
}

const QUESTION: usize = 12;
const STEP: usize = 9;

/// How much of a model is on the device, and whether sequences have streams of their own.
pub const CASES: [(u32, bool); 4] = [(3, false), (8, false), (99, false), (99, true)];

/// Positions that are decoded together, in turns.
const CHUNKS: [usize; 5] = [1, 15, 2, 32, 5];

/// A question and four steps of thinking, then a summary.
fn row(position: usize, sequence: u32, n_vocab: usize) -> Row {
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
}

/// Two sequences side by side, in batches of several sizes.
fn batches(n_vocab: usize) -> Vec<Batch> {
    let (mut batches, mut start) = (Vec::new(), 0);
    for n in CHUNKS.into_iter().cycle() {
        let positions = start..(start + n).min(QUESTION + 4 * STEP + 6);
        start = positions.end;
        if positions.is_empty() {
            return batches;
        }
        let rows = (0..2).flat_map(|sequence| positions.clone().map(move |position| row(position, sequence, n_vocab)));
        batches.push(Batch { rows: rows.collect() });
    }
    batches
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

/// Decodes with `n_gpu_layers` layers on the device, without flash attention; `hook` makes a hook of StepFlow.
pub fn run(path: &Path, case: (u32, bool), hook: impl FnOnce(Repair) -> Option<Box<dyn Hook>>) -> Run {
    decode(path, case, &Setup { flash_attention: FlashAttention::Off, cache: CacheType::F16, all: false }, hook)
}

/// The same with flash attention over caches of a type. With `all`, every row of every layer is repaired, so that none is left
/// to llama.cpp's own flash attention, which makes much of a last bit: it adds up in 16-bit floats.
pub fn run_fused(path: &Path, case: (u32, bool), cache: &str, all: bool) -> Run {
    let setup = Setup { flash_attention: FlashAttention::On, cache: cache.parse().unwrap(), all };
    decode(path, case, &setup, |repair| Some(Box::new(repair)))
}

struct Setup {
    flash_attention: FlashAttention,
    cache: CacheType,
    all: bool,
}

fn decode(
    path: &Path,
    (n_gpu_layers, streams): (u32, bool),
    Setup { flash_attention, cache, all }: &Setup,
    hook: impl FnOnce(Repair) -> Option<Box<dyn Hook>>,
) -> Run {
    let params = ModelParams { n_gpu_layers, ..ModelParams::default() };
    let model = Arc::new(Model::load(path, &params).unwrap());
    let mut config = StepFlowConfig::paper();
    if *all {
        config.oeb = Some(OebConfig { layers: "0-7".parse().unwrap(), tau_max: 0.7 });
    }
    let repair = Repair::new(&config, model.n_layer(), 2).unwrap();
    let control = repair.control();
    let params = ContextParams {
        n_ctx: 512,
        n_sequences: 2,
        streams,
        n_threads: 2,
        n_threads_batch: 2,
        flash_attention: *flash_attention,
        type_k: *cache,
        type_v: *cache,
        ..ContextParams::default()
    };
    let mut context = Context::new(model.clone(), &params, hook(repair)).unwrap();
    let mut logits = Vec::new();
    for mut batch in batches(model.n_vocab()) {
        if *all {
            // A short thinking and a long summary, which looks too little back at it.
            let segment = |row: &Row| if row.position < QUESTION { Segment::Thinking } else { Segment::Summary };
            batch.rows.iter_mut().for_each(|row| row.segment = segment(row));
        }
        context.decode(&batch).unwrap();
        (0..batch.rows.len()).for_each(|row| logits.extend(context.logits(row)));
    }
    Run { logits, stats: control.stats() }
}

/// StepFlow on the host.
pub fn on_host(path: &Path, streams: bool) -> Run {
    run(path, (0, streams), |repair| Some(Box::new(repair)))
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

/// What probes find in a shallow and in a deep layer, which lie on different devices: the signed sums of all cells.
pub fn probes(path: &Path, n_gpu_layers: u32) -> Vec<f64> {
    let model = Arc::new(Model::load(path, &ModelParams { n_gpu_layers, ..ModelParams::default() }).unwrap());
    let tokens: Vec<Token> = (0..30).map(|i| Token(i * 5 % 200)).collect();
    let (pool, counted) = (Pool::new([0..8, 8..19, 19..30]), vec![true; tokens.len()]);
    let params = ContextParams {
        n_threads: 2,
        n_threads_batch: 2,
        flash_attention: FlashAttention::Off,
        type_k: CacheType::F32,
        type_v: CacheType::F32,
        ..ContextParams::default()
    };
    let probe = Probe {
        model,
        params: &params,
        tokens: &tokens,
        counted: &counted,
        pool: &pool,
        layers: &[0, 6],
        estimator: Estimator::Signed,
        pairs: 1,
        budget: None,
        seed: 1,
    };
    let found = probe.run(&mut |_| {}).unwrap();
    let cells = |values: &StepMap| {
        (0..3)
            .flat_map(|query| (0..=query).map(move |key| (query, key)))
            .map(|(q, k)| values.get(q, k))
            .collect::<Vec<_>>()
    };
    found.layers.iter().flat_map(|layer| cells(&layer.maps[0].values)).collect()
}
