//! The backward pass against models written down in float64, by differences.

mod common;
mod oracle;
mod tiny;

use oracle::{Change, Oracle};
use stepflow::backward::{LayerResult, Pass, Products, Repairs, Unwatched, Watch};
use stepflow::llama::Token;
use stepflow::stepflow::{OebConfig, SmiConfig, StepFlowConfig, Window};
use stepflow::trace::{Family, Markers, Segment, Step, TraceFile, TraceToken};
use tiny::{Arch, WeightType};

const N_TOKENS: usize = 26;
const N_LAYERS: usize = 8;

fn tokens() -> Vec<usize> {
    (0..N_TOKENS).map(|i| 20 + i * 37 % 150).collect()
}

/// A question of 7 tokens, three thinking steps and a summary.
fn trace() -> TraceFile {
    let spans = [(0..7, Segment::Question), (7..12, Segment::Thinking), (12..17, Segment::Thinking)];
    let others = [(17..21, Segment::Thinking), (21..26, Segment::Summary)];
    let steps: Vec<Step> = spans.into_iter().chain(others).map(|(tokens, segment)| Step { segment, tokens }).collect();
    let segment = |token: usize| steps.iter().find(|step| step.tokens.contains(&token)).unwrap().segment;
    let token = |(i, id): (usize, &usize)| TraceToken { id: *id as i32, piece: Vec::new(), segment: segment(i) };
    TraceFile {
        model: serde_json::Map::new(),
        family: Family::ThinkTags,
        markers: Markers { think_start: None, think_end: "</think>".to_owned(), answers: false },
        tokens: tokens().iter().enumerate().map(token).collect(),
        steps,
    }
}

/// All products, by layer, head, query and key.
struct All(Vec<([usize; 3], f32)>);

impl Watch for All {
    fn see(&mut self, seen: &Products<'_>) {
        let all = seen.keys.clone().zip(seen.products);
        self.0.extend(all.map(|(key, product)| ([seen.head, seen.query, key], *product)));
    }

    fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// What a pass finds.
struct Found {
    loss: f64,
    /// By layer.
    products: Vec<Vec<([usize; 3], f32)>>,
    by_alpha: Vec<f64>,
    by_tau: Vec<f64>,
    by_token: Vec<f64>,
}

fn pass(arch: Arch, repairs: Option<&Repairs>) -> Found {
    let path = tiny::tiny(arch, WeightType::F32);
    let tokens: Vec<Token> = tokens().into_iter().map(|token| Token(token as i32)).collect();
    let counted = vec![true; tokens.len()];
    let mut products = vec![Vec::new(); N_LAYERS];
    let (mut by_alpha, mut by_tau) = (vec![0.0; N_LAYERS], vec![0.0; N_LAYERS]);
    let mut visit = |result: LayerResult<All>| {
        products[result.layer] = result.watcher.0;
        if let Some(sensitivity) = result.sensitivity {
            by_alpha[result.layer] = sensitivity.by_alpha.iter().sum();
            by_tau[result.layer] = sensitivity.by_tau.iter().sum();
        }
    };
    let outcome = Pass { n_threads: 1, repairs, ..Pass::new(&path, &tokens, &counted) }
        .run(&|_| All(Vec::new()), &mut visit, &mut |_, _| {})
        .unwrap_or_else(|error| panic!("{arch:?}: {error}"));
    Found { loss: outcome.loss, products, by_alpha, by_tau, by_token: outcome.by_token.unwrap() }
}

/// How far a cell may be off, of the largest: float32 in llama.cpp, whose sums are some thousand numbers long. Gemma looks its
/// GELU up in a table of half-precision floats, whose steps are 5e-4 of a number.
fn tolerance(arch: Arch) -> f64 {
    if matches!(arch, Arch::Gemma2 | Arch::Gemma3) { 5e-3 } else { 1e-5 }
}

/// Attention times the loss's derivative by it, of some heads and tokens, by differences of the oracle.
fn check_products(arch: Arch, oracle: &Oracle, found: &Found, change: &Change) {
    let largest = found.products.iter().flatten().map(|(_, product)| f64::from(product.abs())).fold(0.0, f64::max);
    assert!(largest > 0.0);
    for sample in 0..12 {
        let layer = sample * 5 % N_LAYERS;
        let of_layer = &found.products[layer];
        let ([head, query, key], product) = of_layer[sample * 977 % of_layer.len()];
        const STEP: f64 = 1e-4;
        let loss = |factor: f64| {
            oracle.loss(&tokens(), &Change { nudge: Some(([layer, head, query, key], factor)), ..change.clone() })
        };
        let expected = (loss(1.0 + STEP) - loss(1.0 - STEP)) / (2.0 * STEP);
        let error = (f64::from(product) - expected).abs() / largest;
        assert!(
            error <= tolerance(arch),
            "{arch:?} {layer} {head} {query} {key}: {product} for {expected}, of {largest}"
        );
    }
}

fn every_arch() -> impl Iterator<Item = Arch> {
    Arch::ALL.into_iter().chain(Arch::MORE)
}

#[test]
fn derivatives_by_attention_are_the_oracles() {
    for arch in every_arch() {
        let oracle = Oracle::open(arch, &tiny::tiny(arch, WeightType::F32));
        let found = pass(arch, None);
        let expected = oracle.loss(&tokens(), &Change::default());
        let error = (found.loss - expected).abs() / expected;
        assert!(error <= tolerance(arch), "{arch:?}: {} for {expected}", found.loss);
        check_products(arch, &oracle, &found, &Change::default());
        assert_eq!(found.by_token.len(), N_TOKENS);
    }
}

/// Both repairs in all layers.
fn repaired() -> (StepFlowConfig, Change) {
    let all = || "0-7".parse().unwrap();
    let config = StepFlowConfig {
        oeb: Some(OebConfig { layers: all(), tau_max: 0.4 }),
        smi: Some(SmiConfig { layers: all(), alpha: 0.3, window: Window::Last(4) }),
    };
    let repairs = oracle::Repairs {
        segments: trace().tokens.iter().map(|token| token.segment).collect(),
        starts: vec![(12, 8..12), (17, 13..17)],
        tau: vec![Some(f64::from(0.4f32)); N_LAYERS],
        alpha: vec![Some(f64::from(0.3f32)); N_LAYERS],
    };
    (config, Change { repairs: Some(repairs), ..Change::default() })
}

#[test]
fn derivatives_through_the_repairs_are_the_oracles() {
    let (config, change) = repaired();
    let repairs = Repairs::new(&config, N_LAYERS, &trace()).unwrap();
    for arch in [Arch::Llama, Arch::Qwen3, Arch::GptOss, Arch::Gemma3] {
        let oracle = Oracle::open(arch, &tiny::tiny(arch, WeightType::F32));
        let found = pass(arch, Some(&repairs));
        let expected = oracle.loss(&tokens(), &change);
        let error = (found.loss - expected).abs() / expected;
        assert!(error <= tolerance(arch), "{arch:?}: {} for {expected}", found.loss);
        check_products(arch, &oracle, &found, &change);
        for layer in 0..N_LAYERS {
            let with = |set: &dyn Fn(&mut oracle::Repairs)| {
                let mut change = change.clone();
                set(change.repairs.as_mut().unwrap());
                oracle.loss(&tokens(), &change)
            };
            const STEP: f64 = 1e-5;
            let by_alpha = |step: f64| with(&|repairs| *repairs.alpha[layer].as_mut().unwrap() += step);
            let by_tau = |step: f64| with(&|repairs| *repairs.tau[layer].as_mut().unwrap() += step);
            let slopes = [
                (found.by_alpha[layer], (by_alpha(STEP) - by_alpha(-STEP)) / (2.0 * STEP)),
                (found.by_tau[layer], (by_tau(STEP) - by_tau(-STEP)) / (2.0 * STEP)),
            ];
            for (found, expected) in slopes {
                // Relative to what is asked of them; sums of numbers that cancel keep fewer digits.
                let error = (found - expected).abs() / expected.abs().max(1e-2);
                assert!(error <= 10.0 * tolerance(arch), "{arch:?} layer {layer}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_where_inputs_wait() {
    let path = tiny::tiny(Arch::Qwen3, WeightType::Q8_0);
    let tokens: Vec<Token> = (0..300).map(|i| Token(20 + i * 37 % 150)).collect();
    let counted = vec![true; tokens.len()];
    let run = |n_threads: i32, inputs_in_file: bool| {
        let mut products = vec![Vec::new(); N_LAYERS];
        let mut visit = |result: LayerResult<All>| products[result.layer] = result.watcher.0;
        let outcome = Pass { n_threads, inputs_in_file, ..Pass::new(&path, &tokens, &counted) }
            .run(&|_| All(Vec::new()), &mut visit, &mut |_, _| {})
            .unwrap();
        (outcome.loss.to_bits(), products)
    };
    let one = run(1, false);
    for (n_threads, inputs_in_file) in [(2, false), (3, true)] {
        assert!(run(n_threads, inputs_in_file) == one, "{n_threads} threads, in a file: {inputs_in_file}");
    }
}

#[test]
fn a_model_without_attention_is_refused_by_name() {
    let path = tiny::tiny(Arch::Mamba, WeightType::F32);
    let error = stepflow::backward::try_out(&path, 1).unwrap_err().to_string();
    assert!(error.contains("cannot be differentiated"), "{error}");
    let path = tiny::tiny(Arch::Deepseek2, WeightType::F32);
    let error = stepflow::backward::try_out(&path, 1).unwrap_err().to_string();
    assert!(error.contains("cannot be differentiated"), "{error}");
}

#[test]
fn a_jacobians_norm_is_the_oracles() {
    let (arch, layer, steps) = (Arch::Qwen3, 3, [0..3, 3..4, 4..8]);
    let path = tiny::tiny(arch, WeightType::F32);
    let all: Vec<usize> = tokens().into_iter().take(8).collect();
    let ids: Vec<Token> = all.iter().map(|token| Token(*token as i32)).collect();
    let counted = vec![true; ids.len()];
    let mut found = 0.0;
    let mut visit = |step: usize, result: LayerResult<Unwatched>| {
        if (step, result.layer) == (2, layer) {
            found = result.input_squares[3].sqrt();
        }
    };
    Pass { n_threads: 1, ..Pass::new(&path, &ids, &counted) }.jacobian(&steps, &mut visit, &mut |_, _| {}).unwrap();
    let oracle = Oracle::open(arch, &path);
    const STEP: f64 = 1e-4;
    let logit = |element: usize, by: f64| {
        oracle.logit(&all, steps[2].clone(), &Change { shift: Some(([layer, 3, element], by)), ..Change::default() })
    };
    let slope = |element: usize| (logit(element, STEP) - logit(element, -STEP)) / (2.0 * STEP);
    let expected = (0..256).map(|element| slope(element).powi(2)).sum::<f64>().sqrt();
    assert!((found - expected).abs() <= 1e-5 * expected, "{found} for {expected}");
}
