//! Sequences in one batch, each with settings of its own.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use stepflow::engine::Repair;
use stepflow::llama::{Batch, CacheType, Context, ContextParams, FlashAttention, Hook, Model, ModelParams, Row, Token};
use stepflow::stepflow::{LayerStats, OebConfig, SmiConfig, Stats, StepFlowConfig, Window};
use stepflow::trace::Segment;

const STEP: usize = 6;
/// Injections of a layer: steps but the first.
pub const STARTS: u64 = 3;
const POSITIONS: usize = 42;

/// What a run gave, by sequence: the logits of every token, and what StepFlow counted.
pub struct Run {
    pub logits: Vec<Vec<f32>>,
    pub stats: Vec<Stats>,
}

/// Settings, one for each sequence: one switched off, and others that differ in one thing alone.
pub fn settings() -> Vec<StepFlowConfig> {
    let oeb = |layers: &str, tau_max| Some(OebConfig { layers: layers.parse().unwrap(), tau_max });
    let smi = |layers: &str, alpha, window| Some(SmiConfig { layers: layers.parse().unwrap(), alpha, window });
    [
        (oeb("0-2", 0.15), None),
        (None, None),
        (oeb("0-2", 0.4), None),
        (None, smi("5-7", 0.06, Window::Last(4))),
        (None, smi("5-7", 0.06, Window::Step)),
        (None, smi("5-7", -0.2, Window::Last(4))),
        (oeb("1,4", 0.4), smi("3,6", 0.06, Window::Last(4))),
    ]
    .map(|(oeb, smi)| StepFlowConfig { oeb, smi })
    .into()
}

/// The sequence of [`settings`] without repairs.
pub const OFF: usize = 1;

/// Tokens of a sequence that OEB looks at.
pub fn thoughts(sequence: usize) -> u64 {
    (POSITIONS - question(sequence)) as u64
}

/// Questions differ in length, so that a batch holds rows of all kinds.
fn question(sequence: usize) -> usize {
    4 + 2 * sequence
}

/// A question and four steps of thinking, then a summary.
fn row(position: usize, sequence: usize, n_vocab: usize) -> Row {
    let thinking = position.checked_sub(question(sequence)).filter(|thought| *thought < 4 * STEP);
    let starts = thinking.is_some_and(|thought| thought > 0 && thought % STEP == 0);
    Row {
        token: Token(((position * 29 + sequence * 13 + 3) % n_vocab) as i32),
        segment: match thinking {
            Some(_) => Segment::Thinking,
            None if position < question(sequence) => Segment::Question,
            None => Segment::Summary,
        },
        previous_step: starts.then(|| position - STEP..position),
        position,
        sequence: sequence as u32,
        logits: true,
    }
}

/// The start of a sequence's second step.
pub fn start(sequence: usize, n_vocab: usize) -> Row {
    row(question(sequence) + STEP, sequence, n_vocab)
}

/// Batches of several sizes. In one stream sequences take turns token by token.
fn batches(n_vocab: usize, streams: bool) -> Vec<Batch> {
    let (mut batches, mut start) = (Vec::new(), 0);
    for n in [14, 1, 8, 2, 17] {
        let positions = start..start + n;
        start = positions.end;
        let of_sequence = |sequence| positions.clone().map(move |position| row(position, sequence, n_vocab));
        let mut rows: Vec<_> = (0..settings().len()).flat_map(of_sequence).collect();
        if !streams {
            rows.sort_by_key(|row| row.position);
        }
        batches.push(Batch { rows });
    }
    assert_eq!(start, POSITIONS);
    batches
}

/// The sequences of [`settings`] with `n_gpu_layers` layers on the device. The first ones have no settings of their own
/// but `config`, the last ones have `own`; without `config` there is no StepFlow at all.
pub fn run(
    path: &Path,
    (n_gpu_layers, streams): (u32, bool),
    config: Option<&StepFlowConfig>,
    own: &[StepFlowConfig],
) -> Run {
    let n_sequences = settings().len();
    let model = Model::load(path, &ModelParams { n_gpu_layers, ..ModelParams::default() }).unwrap();
    let repair = config.map(|config| Repair::new(config, model.n_layer(), 2).unwrap());
    let control = repair.as_ref().map(Repair::control);
    for (sequence, own) in (n_sequences - own.len()..n_sequences).zip(own) {
        control.as_ref().unwrap().configure_sequence(sequence as u32, own).unwrap();
    }
    let params = ContextParams {
        n_ctx: 256 * n_sequences as u32,
        n_sequences: n_sequences as u32,
        streams,
        n_threads: 1,
        n_threads_batch: 1,
        flash_attention: FlashAttention::Off,
        // In F16 a difference in the last bit can round a key to its neighbour, which has become 7e-4 in a logit.
        type_k: CacheType::F32,
        type_v: CacheType::F32,
        ..ContextParams::default()
    };
    let batches = batches(model.n_vocab(), streams);
    let hook = repair.map(|repair| Box::new(repair) as Box<dyn Hook>);
    let mut context = Context::new(Arc::new(model), &params, hook).unwrap();
    let mut logits = vec![Vec::new(); n_sequences];
    for batch in batches {
        context.decode(&batch).unwrap();
        for (i, row) in batch.rows.iter().enumerate() {
            logits[row.sequence as usize].extend(context.logits(i));
        }
    }
    let stats = |sequence| control.as_ref().map_or(Stats::default(), |control| control.take_stats(sequence as u32));
    Run { logits, stats: (0..n_sequences).map(stats).collect() }
}

/// Each sequence with its own of [`settings`]; the first one has them from the context.
pub fn mixed(path: &Path, case: (u32, bool)) -> Run {
    let settings = settings();
    run(path, case, Some(&settings[0]), &settings[1..])
}

/// Rows seen, rows bridged and injections, by sequence and layer.
pub fn counts(run: &Run) -> Vec<BTreeMap<usize, (u64, u64, u64)>> {
    let of_layer = |(layer, s): (&usize, &LayerStats)| (*layer, (s.rows_seen, s.rows_bridged, s.injections));
    run.stats.iter().map(|stats| stats.layers.iter().map(of_layer).collect()).collect()
}

/// Bits, not numbers: -0 is not +0 here.
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))
}

/// The largest difference of two logits of one sequence.
pub fn difference(a: &Run, b: &Run) -> f32 {
    let differences = a.logits.iter().flatten().zip(b.logits.iter().flatten()).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst: f32, d| if worst.is_nan() || d <= worst { worst } else { d })
}
