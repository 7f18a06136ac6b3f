//! StepFlow inside every architecture and weight type: what the hook does to the attention that llama.cpp computed is
//! what the oracle does to a copy of it, and the cells are what the tokens say.

mod common;
mod tiny;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use stepflow::engine::{Control, Repair};
use stepflow::llama::{
    Attention, Batch, CacheType, Context, ContextParams, FlashAttention, HeadOutput, Hook, HookError, Model,
    ModelParams, Point, Row, Token,
};
use stepflow::stepflow::oeb::{Group, bridge_row};
use stepflow::stepflow::{StepFlowConfig, smi};
use stepflow::trace::Segment;
use tiny::{Arch, WeightType};

const TAU_MAX: f64 = 0.15;
const ALPHA: f64 = 0.06;
const WINDOW: usize = 4;
const QUESTION: usize = 12;
const THINKING: usize = 36;
const STEP: usize = 9;

/// The rows of one sequence: a question, four steps of thinking, a summary.
fn rows(sequence: u32, n_vocab: usize) -> Vec<Row> {
    let row = |position: usize| {
        let thinking = position.checked_sub(QUESTION).filter(|t| *t < THINKING);
        let starts = thinking.is_some_and(|t| t > 0 && t % STEP == 0);
        Row {
            token: Token(((position * 37 + sequence as usize * 101 + 11) % n_vocab) as i32),
            position,
            sequence,
            segment: match thinking {
                Some(_) => Segment::Thinking,
                None if position < QUESTION => Segment::Question,
                None => Segment::Summary,
            },
            previous_step: starts.then(|| position - STEP..position),
            logits: true,
        }
    };
    (0..QUESTION + THINKING + 12).map(row).collect()
}

fn params(arch: Option<Arch>, n_ubatch: u32) -> ContextParams {
    // Gemma's V cache in F16 covers the other element type.
    let cache = if arch == Some(Arch::Gemma3) { CacheType::F16 } else { CacheType::F32 };
    ContextParams {
        n_ctx: 256,
        n_ubatch,
        n_sequences: 2,
        n_threads: 2,
        n_threads_batch: 2,
        flash_attention: FlashAttention::Off,
        type_k: cache,
        type_v: cache,
        ..ContextParams::default()
    }
}

/// What a checking hook saw.
#[derive(Default)]
struct Seen {
    attention_layers: BTreeSet<usize>,
    windowed_layers: BTreeSet<usize>,
    output_layers: BTreeSet<usize>,
    bridged: usize,
    injected: usize,
    with_sinks: bool,
}

/// Runs the repair and holds it against the oracle.
struct Checked {
    repair: Repair,
    seen: Arc<Mutex<Seen>>,
}

impl Checked {
    /// Positions that a row sees, checked to be the newest ones of its own sequence.
    fn check_cells(visible: &[usize], row: &Row) -> bool {
        let positions: BTreeSet<usize> = visible.iter().copied().collect();
        assert_eq!(positions.len(), visible.len(), "no position twice");
        let first = row.position + 1 - visible.len();
        assert_eq!(positions, (first..=row.position).collect(), "a row sees its own past");
        first > 0
    }
}

impl Hook for Checked {
    fn begin(&mut self, rows: &[Row]) {
        self.repair.begin(rows);
    }

    fn wants(&self, point: Point, layer: usize) -> bool {
        self.repair.wants(point, layer)
    }

    fn attention(&mut self, mut attention: Attention<'_>) -> Result<(), HookError> {
        let before = attention.probs.to_vec();
        self.repair.attention(attention.reborrow())?;
        let mut seen = self.seen.lock().unwrap();
        seen.attention_layers.insert(attention.layer);
        seen.with_sinks |= attention.sinks;
        let (n_rows, n_kv, sinks) = (attention.rows.len(), attention.n_kv, attention.sinks);
        for (r, row) in attention.rows.iter().enumerate() {
            let cells: Vec<usize> = (0..n_kv).filter(|&cell| attention.visible(r, cell)).collect();
            let of = |&cell: &usize| attention.cells.get(cell).unwrap();
            assert!(cells.iter().all(|cell| of(cell).sequence == row.sequence), "a row sees its own sequence");
            let visible: Vec<usize> = cells.iter().map(|cell| of(cell).position).collect();
            if Self::check_cells(&visible, row) {
                seen.windowed_layers.insert(attention.layer);
            }
            let segment = |position: usize| match position {
                p if p < QUESTION => Segment::Question,
                p if p < QUESTION + THINKING => Segment::Thinking,
                _ => Segment::Summary,
            };
            let mut groups = vec![None; n_kv];
            for (cell, position) in cells.iter().zip(&visible) {
                groups[*cell] = Some(match (row.segment, segment(*position)) {
                    (own, key) if own == key => Group::Same,
                    (Segment::Thinking, Segment::Question) | (Segment::Summary, Segment::Thinking) => Group::Bridge,
                    _ => Group::Other,
                });
            }
            for head in 0..attention.n_head {
                let at = (head * n_rows + r) * n_kv;
                let mut expected: Vec<f64> = before[at..at + n_kv].iter().map(|p| f64::from(*p)).collect();
                if row.segment != Segment::Question {
                    seen.bridged += usize::from(bridge_row(&mut expected, &groups, TAU_MAX, sinks));
                }
                for (actual, expected) in attention.probs[at..at + n_kv].iter().zip(&expected) {
                    // One float32 rounding of a probability, and of the factor.
                    assert!((f64::from(*actual) - expected).abs() <= 2e-6, "{actual} against {expected}");
                }
            }
        }
        Ok(())
    }

    fn head_output(&mut self, mut output: HeadOutput<'_>) -> Result<(), HookError> {
        let before = output.output.to_vec();
        self.repair.head_output(output.reborrow())?;
        let mut seen = self.seen.lock().unwrap();
        seen.output_layers.insert(output.layer);
        let (n_rows, head_dim) = (output.rows.len(), output.head_dim);
        let group_size = output.n_head / output.values.n_head_kv();
        for (r, row) in output.rows.iter().enumerate() {
            let window = row.previous_step.clone().map_or(0..0, |step| step.end - WINDOW..step.end);
            seen.injected += usize::from(!window.is_empty());
            for head in 0..output.n_head {
                let value = |position: usize| {
                    let find = |&c: &usize| {
                        output.cells.get(c).is_some_and(|c| (c.sequence, c.position) == (row.sequence, position))
                    };
                    let cell = (0..512).find(find).unwrap();
                    let mut value = vec![0f32; head_dim];
                    output.values.add_to(cell, head / group_size, &mut value);
                    value.into_iter().map(f64::from).collect::<Vec<_>>()
                };
                let values: Vec<_> = window.clone().map(value).collect();
                let at = (head * n_rows + r) * head_dim;
                let mut expected: Vec<f64> = before[at..at + head_dim].iter().map(|x| f64::from(*x)).collect();
                smi::inject(&mut expected, &values, ALPHA);
                for (actual, expected) in output.output[at..at + head_dim].iter().zip(&expected) {
                    // Float32 sums of four values of size about 1.
                    assert!((f64::from(*actual) - expected).abs() <= 1e-5, "{actual} against {expected}");
                }
            }
        }
        Ok(())
    }
}

fn load(path: &Path) -> Arc<Model> {
    Arc::new(Model::load(path, &ModelParams::default()).unwrap())
}

fn checked(model: &Arc<Model>, params: &ContextParams) -> (Context, Control, Arc<Mutex<Seen>>) {
    let repair = Repair::new(&StepFlowConfig::paper(), model.n_layer(), 2).unwrap();
    let control = repair.control();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let hook = Checked { repair, seen: seen.clone() };
    (Context::new(model.clone(), params, Some(Box::new(hook))).unwrap(), control, seen)
}

/// Logits of every row, decoded in micro-batches of `n`.
fn decode(context: &mut Context, rows: &[Row], n: usize) -> Vec<Vec<f32>> {
    let mut logits = Vec::new();
    for rows in rows.chunks(n) {
        context.decode(&Batch { rows: rows.to_vec() }).unwrap();
        logits.extend((0..rows.len()).map(|row| context.logits(row).to_vec()));
    }
    logits
}

#[test]
fn every_architecture_and_type_agrees_with_the_oracle() {
    for arch in Arch::ALL {
        for ty in WeightType::ALL {
            let model = load(&tiny::tiny(arch, ty));
            for n_ubatch in [1, 7, 64] {
                let what = format!("{arch:?} {ty:?}, micro-batch {n_ubatch}");
                let (mut context, control, seen) = checked(&model, &params(Some(arch), n_ubatch));
                decode(&mut context, &rows(0, model.n_vocab()), n_ubatch as usize);
                let seen = seen.lock().unwrap();
                let total = control.stats().total();
                assert_eq!(seen.attention_layers, [0, 1].into(), "{what}: the first quarter");
                assert_eq!(seen.output_layers, [6, 7].into(), "{what}: the last quarter");
                assert_eq!(total.injections, 2 * 3, "{what}: three steps but the first, two layers");
                assert_eq!(seen.injected, 2 * 3, "{what}");
                assert_eq!(total.rows_bridged as usize, seen.bridged, "{what}");
                assert!(seen.bridged > 0, "{what}: something is bridged");
                let windowed = matches!(arch, Arch::GptOss | Arch::Gemma3);
                assert_eq!(!seen.windowed_layers.is_empty(), windowed, "{what}: sliding windows");
                assert_eq!(seen.with_sinks, arch == Arch::GptOss, "{what}: sinks");
            }
        }
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst: f32, d| if worst.is_nan() || d <= worst { worst } else { d })
}

fn batch_noise(model: &Arc<Model>, rows: &[Row]) -> f32 {
    let [one, two] = [1, 2].map(|n| {
        let mut context = Context::new(model.clone(), &params(None, 64), None).unwrap();
        decode(&mut context, rows, n)
    });
    one.iter().zip(&two).map(|(a, b)| largest_difference(a, b)).fold(0.0, f32::max)
}

/// How many tokens later the second of two sequences begins.
const LATE: usize = 6;

fn two_sequences_give_what_each_gives_alone(streams: bool) {
    for arch in Arch::ALL {
        let model = load(&tiny::tiny(arch, WeightType::F32));
        let n_vocab = model.n_vocab();
        let (first, second) = (rows(0, n_vocab), rows(1, n_vocab));
        let alone = [&first, &second].map(|rows| {
            let (mut context, control, _) = checked(&model, &params(None, 64));
            (decode(&mut context, rows, 1), control.stats())
        });
        // What another batch size alone changes, without StepFlow: rounding, and for gemma3 llama.cpp's GELU table.
        let noise = batch_noise(&model, &first);
        // Interleaved token by token.
        let mut mixed = Vec::new();
        for i in 0..first.len() + LATE {
            mixed.extend(first.get(i).cloned());
            mixed.extend(i.checked_sub(LATE).and_then(|i| second.get(i)).cloned());
        }
        let params = ContextParams { streams, n_ctx: 512, ..params(None, 64) };
        let (mut context, control, _) = checked(&model, &params);
        let logits = decode(&mut context, &mixed, 2);
        for (row, logits) in mixed.iter().zip(&logits) {
            let what = format!("{arch:?}, sequence {}, position {}", row.sequence, row.position);
            let expected = &alone[row.sequence as usize].0[row.position];
            let worst = largest_difference(logits, expected);
            assert!(worst <= 4.0 * noise, "{what}: {worst}, batch noise {noise}");
        }
        for (sequence, (_, alone)) in alone.iter().enumerate() {
            let (mixed, alone) = (control.take_stats(sequence as u32).total(), alone.total());
            assert_eq!(mixed.rows_seen, alone.rows_seen, "{arch:?}, sequence {sequence}");
            assert_eq!(mixed.injections, alone.injections, "{arch:?}, sequence {sequence}");
        }
    }
}

#[test]
fn two_sequences_in_one_stream_give_what_each_gives_alone() {
    two_sequences_give_what_each_gives_alone(false);
}

#[test]
fn two_sequences_in_streams_of_their_own_give_what_each_gives_alone() {
    two_sequences_give_what_each_gives_alone(true);
}

#[test]
fn other_settings_take_hold_with_the_next_decode() {
    let model = load(&tiny::tiny(Arch::Qwen2, WeightType::F32));
    let rows = rows(0, model.n_vocab());
    let (mut context, control, seen) = checked(&model, &params(None, 64));
    decode(&mut context, &rows[..50], 50);
    let mut config = StepFlowConfig::paper();
    config.oeb.as_mut().unwrap().layers = "5".parse().unwrap();
    config.smi = None;
    control.configure(&config).unwrap();
    decode(&mut context, &rows[50..], 64);
    assert_eq!(seen.lock().unwrap().attention_layers, [0, 1, 5].into());
    config.oeb.as_mut().unwrap().layers = "8".parse().unwrap();
    assert!(control.configure(&config).unwrap_err().to_string().contains("0-7"));
}

/// Logits of the same tokens from llama-cpp-2 alone.
fn plain(path: &Path, rows: &[Row]) -> Vec<Vec<f32>> {
    use llama_cpp_2::context::params::LlamaContextParams;
    use llama_cpp_2::llama_backend::LlamaBackend;
    use llama_cpp_2::llama_batch::LlamaBatch;
    use llama_cpp_2::model::{LlamaModel, params::LlamaModelParams};
    use llama_cpp_2::token::LlamaToken;

    // stepflow has initialised llama.cpp by now.
    let backend = std::mem::ManuallyDrop::new(LlamaBackend {});
    let model = LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default()).unwrap();
    let params = LlamaContextParams::default()
        .with_n_ctx(std::num::NonZeroU32::new(256))
        .with_n_threads(2)
        .with_n_threads_batch(2)
        .with_n_seq_max(2)
        .with_kv_unified(true)
        .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED);
    let mut context = model.new_context(&backend, params).unwrap();
    let mut logits = Vec::new();
    for rows in rows.chunks(7) {
        let mut batch = LlamaBatch::new(rows.len(), 1);
        for row in rows {
            batch.add(LlamaToken(row.token.0), row.position as i32, &[0], true).unwrap();
        }
        context.decode(&mut batch).unwrap();
        logits.extend((0..rows.len()).map(|row| context.get_logits_ith(row as i32).to_vec()));
    }
    logits
}

#[test]
fn off_and_on_without_effect_are_bit_identical_to_plain_llama_cpp() {
    let mut paths: Vec<_> =
        Arch::ALL.into_iter().flat_map(|arch| WeightType::ALL.map(|ty| tiny::tiny(arch, ty))).collect();
    paths.extend(common::smollm2());
    for path in paths {
        let model = load(&path);
        let rows = rows(0, model.n_vocab());
        let expected = plain(&path, &rows);
        let params = ContextParams { type_k: CacheType::F16, type_v: CacheType::F16, ..params(None, 512) };
        let mut idle = StepFlowConfig::paper();
        idle.oeb.as_mut().unwrap().tau_max = 0.0;
        idle.smi.as_mut().unwrap().alpha = 0.0;
        for (what, config) in
            [("no hook", None), ("off", Some(StepFlowConfig::default())), ("without effect", Some(idle))]
        {
            let hook =
                config.map(|config| Box::new(Repair::new(&config, model.n_layer(), 2).unwrap()) as Box<dyn Hook>);
            let mut context = Context::new(model.clone(), &params, hook).unwrap();
            let logits = decode(&mut context, &rows, 7);
            // Bits, not numbers: -0 is not +0 here.
            let same = logits.iter().flatten().map(|x| x.to_bits()).eq(expected.iter().flatten().map(|x| x.to_bits()));
            assert!(same, "{}: {what}", path.display());
        }
    }
}

/// A hook that fails in its own way.
struct Failing(bool);

impl Hook for Failing {
    fn begin(&mut self, _: &[Row]) {}

    fn wants(&self, point: Point, layer: usize) -> bool {
        point == Point::Attention && layer == 3
    }

    fn attention(&mut self, _: Attention<'_>) -> Result<(), HookError> {
        assert!(!self.0, "this hook panics");
        Err("this hook fails".into())
    }
}

#[test]
fn a_failing_hook_ends_the_decode_and_leaves_the_context_usable() {
    let model = load(&tiny::tiny(Arch::Qwen2, WeightType::F32));
    for (panics, expected) in [(false, "this hook fails"), (true, "this hook panics")] {
        let mut context = Context::new(model.clone(), &params(None, 64), Some(Box::new(Failing(panics)))).unwrap();
        let batch = Batch { rows: rows(0, model.n_vocab())[..5].to_vec() };
        for _ in 0..2 {
            // The second time finds the cache as empty as the first.
            let error = context.decode(&batch).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[test]
fn a_recurrent_model_runs_plain_and_refuses_stepflow() {
    use stepflow::engine::{EngineError, Session, SessionParams};
    let model = load(&tiny::tiny(Arch::Mamba, WeightType::F32));
    let context = params(None, 64);
    let mut session =
        Session::new(model.clone(), &SessionParams { context: context.clone(), ..Default::default() }).unwrap();
    session.warm_up().unwrap();
    let params = SessionParams { context, stepflow: StepFlowConfig::paper(), ..Default::default() };
    let error = Session::new(model, &params).err().unwrap();
    assert!(matches!(&error, EngineError::NotHookable(why) if why.contains("recurrent")), "{error}");
}
