//! Probes against what they estimate: one forward pass of its own for each loss, and the backward pass.

mod common;
mod tiny;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use common::{median, spearman};
use stepflow::backward::Pass;
use stepflow::llama::{
    Attention, Batch, CacheType, Context, ContextParams, FlashAttention, Hook, HookError, Model, ModelParams, Point,
    Row, Token,
};
use stepflow::saliency::{Estimator, Metric, Pool, Probe, Saliency, gradient};
use tiny::{Arch, WeightType};

/// A sequence in steps of several sizes, the loss of which counts every token but those of the last step.
struct Sequence {
    tokens: Vec<Token>,
    counted: Vec<bool>,
    pool: Pool,
}

impl Sequence {
    /// Tokens as good as any: the model is random too.
    fn new(n_vocab: usize) -> Self {
        let n = 48;
        let token = |i: usize| Token(((i * 7919 + i * i * 31) % n_vocab.min(250)) as i32);
        let counted = (0..n).map(|i| i < 44).collect();
        let pool = Pool::new([0..6, 6..7, 7..20, 20..26, 26..36, 36..44, 44..48]);
        Self { tokens: (0..n).map(token).collect(), counted, pool }
    }

    fn probe<'a>(&'a self, model: &Arc<Model>, params: &'a ContextParams, layers: &'a [usize]) -> Probe<'a> {
        Probe {
            model: model.clone(),
            params,
            tokens: &self.tokens,
            counted: &self.counted,
            pool: &self.pool,
            layers,
            estimator: Estimator::Signed,
            pairs: 1,
            budget: None,
            seed: 1,
        }
    }

    fn gradient(&self, path: &Path) -> Saliency {
        let pass = Pass { n_threads: 1, ..Pass::new(path, &self.tokens, &self.counted) };
        gradient(&pass, &self.pool, false, |_| true, |_, _| {}).unwrap()
    }
}

fn params(n_ubatch: u32) -> ContextParams {
    ContextParams {
        n_ubatch,
        flash_attention: FlashAttention::Off,
        type_k: CacheType::F32,
        type_v: CacheType::F32,
        n_threads: 1,
        n_threads_batch: 1,
        ..ContextParams::default()
    }
}

fn load(path: &Path) -> Arc<Model> {
    Arc::new(Model::load(path, &ModelParams::default()).unwrap())
}

/// Scales one layer's attention between two ranges of tokens.
struct Block {
    layer: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    factor: f64,
}

impl Hook for Block {
    fn begin(&mut self, _: &[Row]) {}

    fn wants(&self, point: Point, layer: usize) -> bool {
        point == Point::Attention && layer == self.layer
    }

    fn attention(&mut self, mut attention: Attention<'_>) -> Result<(), HookError> {
        for row in 0..attention.rows.len() {
            if !self.queries.contains(&attention.rows[row].position) {
                continue;
            }
            for key in self.keys.clone() {
                let cell = attention.cells.find(0, key);
                for head in 0..attention.n_head {
                    if let Some(cell) = cell {
                        attention.row_mut(head, row)[cell] *= self.factor as f32;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The loss by one forward pass over everything, in a context of its own.
fn loss(sequence: &Sequence, model: &Arc<Model>, block: Block) -> f64 {
    let params = ContextParams { n_ctx: 256, ..params(512) };
    let mut context = Context::new(model.clone(), &params, Some(Box::new(block))).unwrap();
    let row = |(position, &token)| Row { logits: true, ..Row::plain(token, position) };
    context.decode(&Batch { rows: sequence.tokens.iter().enumerate().map(row).collect() }).unwrap();
    let counted = (1..sequence.tokens.len()).filter(|&token| sequence.counted[token]);
    let surprises: Vec<f64> = counted.map(|token| context.surprise(token - 1, sequence.tokens[token])).collect();
    surprises.iter().sum::<f64>() / surprises.len() as f64
}

#[test]
fn side_by_side_they_equal_one_forward_pass_each() {
    for arch in Arch::ALL {
        let model = load(&tiny::tiny(arch, WeightType::F32));
        let sequence = Sequence::new(model.n_vocab());
        let layers = [1, model.n_layer() - 1];
        // A micro-batch of 16 rows takes a part of one sequence at a time; one of 512 many sequences.
        let (mut errors, mut all) = (0.0, 0.0);
        for n_ubatch in [16, 512] {
            let params = params(n_ubatch);
            let found = sequence.probe(&model, &params, &layers).run(&mut |_| {}).unwrap();
            for layer in &found.layers {
                let map = &layer.maps[0];
                assert_eq!(map.metric, Metric::Signed);
                for (query, key) in [(0, 0), (2, 0), (4, 2), (5, 5), (6, 1)] {
                    let eps = map.estimates.as_ref().unwrap().get(query, key).eps;
                    let block = |eps: f64| Block {
                        layer: layer.layer,
                        queries: sequence.pool.tokens(query),
                        keys: sequence.pool.tokens(key),
                        factor: 1.0 + eps,
                    };
                    let [up, down] = [eps, -eps].map(|eps| loss(&sequence, &model, block(eps)));
                    let expected = (up - down) / (2.0 * eps) / sequence.pool.n_pairs(query, key) as f64;
                    errors += (map.values.get(query, key) - expected).abs();
                    all += expected.abs();
                }
            }
        }
        // Float32 in another order: up to a quarter percent, in Gemma 3 with its large logits.
        assert!(errors <= 0.01 * all, "{arch:?}: off by {errors} of {all}");
    }
}

/// Where both can be had, two ways as different as these agree: that holds each of them to the mathematics.
#[test]
fn they_agree_with_the_backward_pass() {
    for arch in [Arch::Llama, Arch::Qwen2, Arch::Qwen3] {
        let path = tiny::tiny(arch, WeightType::F32);
        let model = load(&path);
        let sequence = Sequence::new(model.n_vocab());
        let (params, layers) = (params(512), (0..model.n_layer()).collect::<Vec<_>>());
        let found = sequence.probe(&model, &params, &layers).run(&mut |_| {}).unwrap();
        let exact = sequence.gradient(&path);
        assert!((found.loss.unwrap() - exact.loss.unwrap()).abs() <= 1e-5, "{:?} and {:?}", found.loss, exact.loss);
        let agreement = Agreement::of(&found, &exact);
        assert!(agreement.correlation >= 0.98, "{arch:?}: {agreement:?}");
        assert!(agreement.covered >= 0.95, "{arch:?}: {agreement:?}");
        assert!(agreement.wrong_sign <= 0.05, "{arch:?}: {agreement:?}");
        assert!(agreement.marked < 0.5, "float32 shows most cells: {arch:?}: {agreement:?}");
    }
}

/// How signed probes compare with exact sums.
#[derive(Debug)]
struct Agreement {
    /// Median over layers of Spearman's rank correlation.
    correlation: f64,
    /// Share of exact values within two standard errors and the curvature.
    covered: f64,
    /// Share of cells marked as below noise.
    marked: f64,
    /// Share of the others with the wrong sign.
    wrong_sign: f64,
}

impl Agreement {
    fn of(found: &Saliency, exact: &Saliency) -> Self {
        let (mut correlations, mut covered, mut marked, mut wrong, mut n) = (Vec::new(), 0, 0, 0, 0);
        for layer in &found.layers {
            let exact = exact.layers.iter().find(|other| other.layer == layer.layer).unwrap();
            let exact = exact.map(Metric::Signed).unwrap();
            let signed = &layer.maps[0];
            let estimates = signed.estimates.as_ref().unwrap();
            let mut pairs = Vec::new();
            for query in 0..exact.n_steps() {
                for key in 0..=query {
                    let (value, expected) = (signed.values.get(query, key), exact.get(query, key));
                    let estimate = estimates.get(query, key);
                    pairs.push((value, expected));
                    covered += usize::from((value - expected).abs() <= 2.0 * estimate.se + estimate.curvature);
                    marked += usize::from(estimate.below_noise(value));
                    wrong += usize::from(!estimate.below_noise(value) && value * expected < 0.0);
                    n += 1;
                }
            }
            correlations.push(spearman(&pairs));
        }
        Self {
            correlation: median(correlations),
            covered: f64::from(covered as u32) / f64::from(n),
            marked: marked as f64 / f64::from(n),
            wrong_sign: f64::from(wrong as u32) / f64::max(1.0, f64::from(n) - marked as f64),
        }
    }
}
