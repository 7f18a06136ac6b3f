//! What the logits of each step hang on: the Jacobian by the hidden states of earlier steps, as a secondary source of the paper
//! describes Step-Saliency.

use std::ops::Range;

use crate::backward::{LayerResult, Pass, Unwatched};
use crate::llama::LlamaError;

use super::{LayerMaps, Metric, MetricMap, Pool, Saliency, StepMap};

/// For every layer that `wanted` takes and every pair of steps, the norm of the derivatives of a step's mean logit by the rows of
/// another in the layer's input, as a share of all pairs of the layer. A backward pass for each step. `progress` is told of steps.
///
/// # Errors
/// As [`Pass::jacobian`].
pub fn jacobian(
    pass: &Pass<'_>,
    pool: &Pool,
    wanted: impl Fn(usize) -> bool + Sync,
    mut progress: impl FnMut(usize, usize) + Send,
) -> Result<Saliency, LlamaError> {
    let steps: Vec<Range<usize>> = (0..pool.n_steps()).map(|step| pool.tokens(step)).collect();
    let mut layers: Vec<LayerMaps> = Vec::new();
    let mut visit = |query: usize, result: LayerResult<Unwatched>| {
        if !wanted(result.layer) {
            return;
        }
        let place = layers.binary_search_by_key(&result.layer, |layer| layer.layer).unwrap_or_else(|place| {
            let map = MetricMap { metric: Metric::Jacobian, values: StepMap::new(pool.n_steps()), estimates: None };
            layers.insert(place, LayerMaps { layer: result.layer, maps: vec![map], heads: Vec::new() });
            place
        });
        let map = &mut layers[place].maps[0].values;
        for (key, tokens) in steps.iter().enumerate().take(query + 1) {
            map.set(query, key, result.input_squares[tokens.clone()].iter().sum::<f64>().sqrt());
        }
    };
    pass.jacobian(&steps, &mut visit, &mut progress)?;
    for layer in &mut layers {
        let map = &mut layer.maps[0].values;
        let sum: f64 = (0..map.n_steps()).flat_map(|query| map.row(query)).sum();
        *map = map.map(|norm| norm / sum);
    }
    Ok(Saliency { loss: None, layers })
}
