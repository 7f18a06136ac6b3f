//! StepFlow inside flash attention: against the softmax, on every kind of cache, and beside rows that are llama.cpp's.

mod common;
mod tiny;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use stepflow::engine::{Control, Repair};
use stepflow::kernels::attend::RowWork;
use stepflow::llama::{
    Batch, CacheType, Context, ContextParams, FlashAttention, FusedAttention, Hook, HookError, Model, ModelParams,
    Point, Row, Token,
};
use stepflow::stepflow::{OebConfig, SmiConfig, Stats, StepFlowConfig, Window};
use stepflow::trace::Segment;
use tiny::{Arch, WeightType};

/// Tokens of each segment, and of a step.
const THINKING: usize = 40;
const SUMMARY: usize = 24;
const STEP: usize = 5;

fn model(path: &Path) -> Arc<Model> {
    Arc::new(Model::load(path, &ModelParams { n_gpu_layers: 0, ..ModelParams::default() }).unwrap())
}

/// Rows that are all repaired: thinking, and a summary that has the thinking to look back at. Those of a question would be
/// llama.cpp's flash attention in 16-bit floats, which is not what is compared here.
fn rows(sequence: u32, n_vocab: usize) -> Vec<Row> {
    let row = |position: usize| {
        let starts = position < THINKING && position > 0 && position.is_multiple_of(STEP);
        Row {
            token: Token(((position * 37 + 11 * sequence as usize + 5) % n_vocab) as i32),
            position,
            sequence,
            segment: if position < THINKING { Segment::Thinking } else { Segment::Summary },
            previous_step: starts.then(|| position - STEP..position),
            logits: true,
        }
    };
    (0..THINKING + SUMMARY).map(row).collect()
}

fn config(tau_max: f32, alpha: f32) -> StepFlowConfig {
    let oeb = OebConfig { tau_max, ..OebConfig::default() };
    let smi = SmiConfig { alpha, window: Window::Step, ..SmiConfig::default() };
    StepFlowConfig { oeb: Some(oeb), smi: (alpha != 0.0).then_some(smi) }
}

fn params(flash_attention: FlashAttention, cache: CacheType, streams: bool) -> ContextParams {
    ContextParams {
        n_ctx: 512,
        n_ubatch: 32,
        n_sequences: 2,
        streams,
        n_threads: 2,
        n_threads_batch: 2,
        flash_attention,
        type_k: cache,
        type_v: cache,
        ..ContextParams::default()
    }
}

fn context(model: &Arc<Model>, params: &ContextParams, config: Option<&StepFlowConfig>) -> (Context, Option<Control>) {
    let repair = config.map(|config| Repair::new(config, model.n_layer(), 2).unwrap());
    let control = repair.as_ref().map(Repair::control);
    let hook = repair.map(|repair| Box::new(repair) as Box<dyn Hook>);
    (Context::new(model.clone(), params, hook).unwrap(), control)
}

/// Logits of all rows, `n` at a time.
fn logits(context: &mut Context, rows: &[Row], n: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for rows in rows.chunks(n) {
        context.decode(&Batch { rows: rows.to_vec() }).unwrap();
        (0..rows.len()).for_each(|row| all.extend(context.logits(row)));
    }
    all
}

fn run(model: &Arc<Model>, params: &ContextParams, config: Option<&StepFlowConfig>, n: usize) -> (Vec<f32>, Stats) {
    let (mut context, control) = context(model, params, config);
    let logits = logits(&mut context, &rows(0, model.n_vocab()), n);
    (logits, control.map_or(Stats::default(), |control| control.stats()))
}

/// The largest difference, relative to the largest number; NaN is one.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0f32, |scale, x| scale.max(x.abs()));
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs() / scale);
    worst.fold(0.0, |worst, d| if worst.is_nan() || d <= worst { worst } else { d })
}

/// The mean difference, relative to the largest number.
fn mean_difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = b.iter().fold(0f32, |scale, x| scale.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / scale).sum::<f32>() / a.len() as f32
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))
}

#[test]
fn it_is_as_on_the_softmax() {
    for arch in Arch::ALL.into_iter().chain([Arch::Deepseek2, Arch::Deepseek32]) {
        let model = model(&tiny::tiny(arch, WeightType::F32));
        for (n, streams) in [(1, false), (7, false), (16, true), (32, false)] {
            let what = format!("{arch:?}, {n} at a time, streams {streams}");
            let run = |flash| run(&model, &params(flash, CacheType::F32, streams), Some(&config(0.7, 0.2)), n);
            let ((on, on_stats), (off, off_stats)) = (run(FlashAttention::On), run(FlashAttention::Off));
            let (on_total, off_total) = (on_stats.total(), off_stats.total());
            assert!(off_total.rows_bridged > 0 && off_total.injections > 0, "{what}");
            assert_eq!(
                (on_total.rows_seen, on_total.injections),
                (off_total.rows_seen, off_total.injections),
                "{what}"
            );
            // Rounding may tip rows that meet their floor almost exactly.
            assert!(on_total.rows_bridged.abs_diff(off_total.rows_bridged) <= 2, "{what}");
            assert!((on_total.mean_bridge_after() - off_total.mean_bridge_after()).abs() <= 1e-4, "{what}");
            assert!((on_total.mean_injected_norm() - off_total.mean_injected_norm()).abs() <= 1e-4, "{what}");
            // Float32 in another order, through eight layers; from 17 rows on, and where the graph stands still, layers without
            // OEB are llama.cpp's, in 16-bit floats (5e-3).
            let allowed = if n > 16 || arch == Arch::Deepseek32 { 2e-2 } else { 5e-4 };
            let difference = difference(&on, &off);
            assert!(difference <= allowed, "{what}: {difference}");
        }
    }
}

/// A floor that is next to nothing leaves plain attention, by our kernel: on any cache it is as near to what 32-bit floats
/// give as llama.cpp's own is on the same cache.
#[test]
fn every_cache_is_read_as_llama_cpp_reads_it() {
    let Some(path) = common::smollm2() else { return };
    let model = model(&path);
    let run = |name: &str, config: Option<&StepFlowConfig>| {
        run(&model, &params(FlashAttention::On, name.parse().unwrap(), false), config, 8)
    };
    let plain = config(1e-6, 0.0);
    let (exact, _) = run("f32", Some(&plain));
    for name in ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"] {
        let ((ours, stats), (theirs, _)) = (run(name, Some(&plain)), run(name, None));
        assert!(stats.total().rows_seen > 0);
        let (ours, theirs) = (mean_difference(&ours, &exact), mean_difference(&theirs, &exact));
        println!("{name}: {ours:.2e}, llama.cpp's {theirs:.2e}");
        // What a cache loses is the same for both; half of it is for chance: thirty layers make much of a last bit, and of
        // which one is the processor's.
        assert!(ours <= 1.5 * theirs, "{name}: {ours}, llama.cpp's {theirs}");
    }
}

#[test]
fn off_is_llama_cpp_within_a_graph_that_is_used_again() {
    for arch in Arch::ALL {
        let model = model(&tiny::tiny(arch, WeightType::Q8_0));
        let params = params(FlashAttention::On, CacheType::F16, false);
        let rows = rows(0, model.n_vocab());
        let (plain, _) = run(&model, &params, None, 1);
        let (mut context, control) = context(&model, &params, Some(&config(0.7, 0.2)));
        let control = control.unwrap();
        let mut repaired = Vec::new();
        for on in [true, false, true, false] {
            control.switch(on);
            let found = logits(&mut context, &rows, 1);
            assert!(context.truncate(0, 0));
            match on {
                true => repaired.push(found),
                false => assert!(same_bits(&found, &plain), "{arch:?}"),
            }
        }
        assert!(same_bits(&repaired[0], &repaired[1]) && !same_bits(&repaired[0], &plain), "{arch:?}");
    }
}

/// Where all rows of a batch are ours, llama.cpp computes none; where some are, ours overwrite its. A row has the same bits
/// either way, and those beside it are llama.cpp's.
#[test]
fn both_ways_into_the_graph_give_the_same_bits() {
    for streams in [false, true] {
        let model = model(&tiny::tiny(Arch::GptOss, WeightType::F32));
        let params = params(FlashAttention::On, CacheType::F16, streams);
        let both = |own: Option<&StepFlowConfig>| {
            let (mut context, control) = context(&model, &params, Some(&config(0.7, 0.2)));
            if let Some(own) = own {
                control.unwrap().configure_sequence(1, own).unwrap();
            }
            let (a, b) = (rows(0, model.n_vocab()), rows(1, model.n_vocab()));
            let pairs: Vec<Row> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
            let all = logits(&mut context, &pairs, 2);
            let of = |sequence: usize| {
                all.chunks(model.n_vocab()).skip(sequence).step_by(2).flatten().copied().collect::<Vec<f32>>()
            };
            (of(0), of(1))
        };
        let off = StepFlowConfig::default();
        let ((all_0, all_1), (mixed_0, mixed_1)) = (both(None), both(Some(&off)));
        assert!(same_bits(&all_0, &mixed_0), "streams {streams}");
        let (mut plain, _) = context(&model, &params, None);
        let (a, b) = (rows(0, model.n_vocab()), rows(1, model.n_vocab()));
        let pairs: Vec<Row> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
        let plain = logits(&mut plain, &pairs, 2);
        let plain_1: Vec<f32> = plain.chunks(model.n_vocab()).skip(1).step_by(2).flatten().copied().collect();
        assert!(same_bits(&mixed_1, &plain_1) && !same_bits(&all_1, &plain_1), "streams {streams}");
    }
}

/// StepFlow, and in which layers our kernel computes rows.
struct Watched(Repair, Arc<Mutex<BTreeSet<usize>>>);

impl Hook for Watched {
    fn begin(&mut self, rows: &[Row]) {
        self.0.begin(rows);
    }

    fn wants(&self, point: Point, layer: usize) -> bool {
        self.0.wants(point, layer)
    }

    fn wants_fused(&self) -> bool {
        self.0.wants_fused()
    }

    fn fused(&mut self, attention: &FusedAttention<'_>) -> Result<Vec<RowWork>, HookError> {
        let work = self.0.fused(attention)?;
        if work.iter().any(|row| row.plan.is_some()) {
            self.1.lock().unwrap().insert(attention.layer);
        }
        Ok(work)
    }
}

#[test]
fn one_setting_keeps_our_kernel_to_the_layers_of_oeb() {
    let model = model(&tiny::tiny(Arch::Qwen3, WeightType::F32));
    for (all_layers, expected) in [(true, (0..8).collect()), (false, BTreeSet::from([0, 1]))] {
        let params = ContextParams { all_layers, ..params(FlashAttention::On, CacheType::F16, false) };
        let layers = Arc::new(Mutex::new(BTreeSet::new()));
        let repair = Repair::new(&StepFlowConfig::paper(), model.n_layer(), 2).unwrap();
        let hook = Box::new(Watched(repair, layers.clone()));
        let mut context = Context::new(model.clone(), &params, Some(hook)).unwrap();
        logits(&mut context, &rows(0, model.n_vocab()), 1);
        assert_eq!(*layers.lock().unwrap(), expected, "all layers: {all_layers}");
    }
}

/// A mask that the graph computes is known only when it is there: the graph stands still, and rows get the bits of those that
/// are computed inside it, where llama.cpp's go by all the same.
#[test]
fn where_the_graph_stands_still_bits_are_the_same() {
    let stats = |stats: &Stats| (stats.total().rows_seen, stats.total().rows_bridged, stats.total().injections);
    for (n, streams) in [(1, false), (7, false), (20, true)] {
        // With floors in all layers there are no rows that would be llama.cpp's where the graph stands still alone.
        let oeb = OebConfig { tau_max: 0.7, layers: "0-7".parse().unwrap() };
        let config = StepFlowConfig { oeb: Some(oeb), ..config(0.7, 0.2) };
        let params = params(FlashAttention::On, CacheType::F16, streams);
        let of = |arch| run(&model(&tiny::tiny(arch, WeightType::F32)), &params, Some(&config), n);
        let ((inside, inside_stats), (still, still_stats)) = (of(Arch::Deepseek2), of(Arch::Deepseek32));
        assert!(inside_stats.total().rows_bridged > 0 && inside_stats.total().injections > 0);
        assert_eq!(stats(&inside_stats), stats(&still_stats), "{n} at a time");
        assert!(same_bits(&inside, &still), "{n} at a time: {}", difference(&inside, &still));
    }
}
