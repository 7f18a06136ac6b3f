//! Step-Saliency of SmolLM2 against maps from PyTorch's autograd on the same weights in float32.

mod common;
mod tiny;

use std::path::Path;
use std::sync::Arc;

use common::{median, spearman};
use serde::Deserialize;
use stepflow::backward::Pass;
use stepflow::llama::{CacheType, ContextParams, FlashAttention, Model, ModelParams, Token};
use stepflow::saliency::{Metric, Pool, Saliency, StepMap, attention, gradient};

#[derive(Deserialize)]
struct File {
    ids: Vec<i32>,
    steps: Vec<(String, usize, usize, String)>,
    token_nll: Vec<f64>,
    exact: Vec<Vec<Vec<f64>>>,
    signed_sum_all_heads: Vec<Vec<Vec<f64>>>,
    attention: Vec<Vec<Vec<f64>>>,
}

impl File {
    fn tokens(&self) -> Vec<Token> {
        self.ids.iter().map(|&id| Token(id)).collect()
    }

    fn pool(&self) -> Pool {
        Pool::new(self.steps.iter().map(|step| step.1..step.2))
    }

    fn gradient(&self, model: &Path) -> Saliency {
        let tokens = self.tokens();
        let counted = vec![true; tokens.len()];
        let pass = Pass { n_threads: 2, ..Pass::new(model, &tokens, &counted) };
        gradient(&pass, &self.pool(), false, |_| true, |_, _| {}).unwrap()
    }

    fn mean_nll(&self) -> f64 {
        self.token_nll.iter().sum::<f64>() / self.token_nll.len() as f64
    }
}

/// Cells of a map and of the expected one, causal pairs alone.
fn pairs(map: &StepMap, expected: &[Vec<f64>]) -> Vec<(f64, f64)> {
    assert_eq!(map.n_steps(), expected.len());
    let cells = |query: usize| (0..=query).map(move |key| (map.get(query, key), expected[query][key]));
    (0..map.n_steps()).flat_map(cells).collect()
}

/// For every layer, the metric's cells with the expected ones.
fn layers<'a>(saliency: &'a Saliency, metric: Metric, expected: &'a [Vec<Vec<f64>>]) -> Vec<Vec<(f64, f64)>> {
    assert_eq!(saliency.layers.len(), expected.len());
    let layers = saliency.layers.iter().zip(expected);
    layers.map(|(layer, expected)| pairs(layer.map(metric).expect("measured"), expected)).collect()
}

fn correlations(layers: &[Vec<(f64, f64)>]) -> (f64, f64) {
    let all: Vec<f64> = layers.iter().map(|pairs| spearman(pairs)).collect();
    assert!(all.iter().all(|r| r.is_finite()));
    (median(all.clone()), all.into_iter().fold(1.0, f64::min))
}

/// Relative errors of all cells whose expected value is not 0.
fn relative_errors(layers: &[Vec<(f64, f64)>]) -> Vec<f64> {
    let cells = layers.iter().flatten().filter(|(_, expected)| *expected != 0.0);
    cells.map(|(found, expected)| (found - expected).abs() / expected.abs()).collect()
}

#[test]
fn saliency_vectors_gradient_quantized() {
    let Some(path) = common::smollm2() else { return };
    for file in common::vectors::<File>("saliency") {
        let found = file.gradient(&path);
        let (median, minimum) = correlations(&layers(&found, Metric::Saliency, &file.exact));
        // What quantized matrix products leave of the order of cells: they round activations to 8 bits.
        assert!(median >= 0.995 && minimum >= 0.98, "median {median}, minimum {minimum}");
        let error = (found.loss.unwrap() - file.mean_nll()).abs();
        // The same rounding moves the loss by a thousandth of a nat or two.
        assert!(error <= 0.02, "loss {:?}, expected {}", found.loss, file.mean_nll());
    }
}

#[test]
fn saliency_vectors_gradient_f32() {
    let Some(path) = common::smollm2() else { return };
    let f32s = tiny::dequantize::dequantized(&path);
    for file in common::vectors::<File>("saliency") {
        let found = file.gradient(&f32s);
        let error = (found.loss.unwrap() - file.mean_nll()).abs();
        // Token losses are given to six digits; float32 arithmetic in another order does the rest.
        assert!(error <= 1e-4, "loss {:?}, expected {}", found.loss, file.mean_nll());
        let saliency = layers(&found, Metric::Saliency, &file.exact);
        let errors = median(relative_errors(&saliency));
        assert!(errors <= 1e-2, "median relative error {errors}");
        let signed = layers(&found, Metric::Signed, &file.signed_sum_all_heads);
        let signed: Vec<Vec<_>> = signed.iter().map(|l| l.iter().map(|(a, b)| (a.abs(), *b)).collect()).collect();
        let errors = median(relative_errors(&signed));
        // Sums that cancel lose digits, so it is the median that is held to the same.
        assert!(errors <= 1e-2, "median relative error of signed sums {errors}");
    }
}

#[test]
fn saliency_vectors_attention() {
    let Some(path) = common::smollm2() else { return };
    let model = Arc::new(Model::load(&tiny::dequantize::dequantized(&path), &ModelParams::default()).unwrap());
    for file in common::vectors::<File>("saliency") {
        for n_ubatch in [64, 512] {
            let params = ContextParams {
                n_ctx: 512,
                n_ubatch,
                flash_attention: FlashAttention::Off,
                type_k: CacheType::F32,
                type_v: CacheType::F32,
                ..ContextParams::default()
            };
            let found = attention(model.clone(), &params, &file.tokens(), &file.pool(), |_| true, |_| {}).unwrap();
            let cells = layers(&found, Metric::Attention, &file.attention);
            let worst = cells.iter().flatten().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            // Shares are given to six decimals; exponentials of float32 logits in another order do the rest.
            assert!(worst <= 5e-6, "worst cell is off by {worst}, micro-batch {n_ubatch}");
        }
    }
}
