//! Attention alone: one forward pass, no loss.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{LayerMaps, Metric, MetricMap, Pool, Saliency, StepMap};
use crate::llama::{Attention, Batch, Context, ContextParams, Hook, HookError, LlamaError, Model, Point, Row, Token};

/// Mean attention between steps, for the layers that `wanted` takes, from one forward pass over `tokens` in a context of
/// its own. `progress` is told how many tokens are done.
///
/// # Errors
/// When llama.cpp fails, or the model has no attention to see.
pub fn attention(
    model: Arc<Model>,
    params: &ContextParams,
    tokens: &[Token],
    pool: &Pool,
    wanted: impl Fn(usize) -> bool + Send + 'static,
    mut progress: impl FnMut(usize),
) -> Result<Saliency, LlamaError> {
    let sums = Arc::new(Mutex::new(Sums::default()));
    let watcher = Watcher { pool: pool.clone(), wanted: Box::new(wanted), sums: sums.clone() };
    let mut context = Context::new(model, params, Some(Box::new(watcher)))?;
    let rows: Vec<Row> = tokens.iter().enumerate().map(|(position, &token)| Row::plain(token, position)).collect();
    let mut done = 0;
    for rows in rows.chunks(context.max_batch()) {
        context.decode(&Batch { rows: rows.to_vec() })?;
        done += rows.len();
        progress(done);
    }
    drop(context);
    let Sums { n_head, layers } = std::mem::take(&mut *sums.lock().unwrap_or_else(PoisonError::into_inner));
    if layers.is_empty() {
        return Err(LlamaError::Hook("this model shows no attention".to_owned()));
    }
    let layers = layers.into_iter().map(|(layer, mut map)| {
        pool.mean(&mut map, n_head);
        LayerMaps {
            layer,
            maps: vec![MetricMap { metric: Metric::Attention, values: map, estimates: None }],
            heads: Vec::new(),
        }
    });
    Ok(Saliency { loss: None, layers: layers.collect() })
}

#[derive(Default)]
struct Sums {
    n_head: usize,
    layers: BTreeMap<usize, StepMap>,
}

/// Adds up what rows attend to.
struct Watcher {
    pool: Pool,
    wanted: Box<dyn Fn(usize) -> bool + Send>,
    sums: Arc<Mutex<Sums>>,
}

impl Hook for Watcher {
    fn begin(&mut self, _: &[Row]) {}

    fn wants(&self, point: Point, layer: usize) -> bool {
        point == Point::Attention && (self.wanted)(layer)
    }

    fn attention(&mut self, mut attention: Attention<'_>) -> Result<(), HookError> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.n_head = attention.n_head;
        let map = sums.layers.entry(attention.layer).or_insert_with(|| StepMap::new(self.pool.n_steps()));
        let cell_of: Vec<Option<usize>> =
            (0..self.pool.n_tokens()).map(|position| attention.cells.find(0, position)).collect();
        for row in 0..attention.rows.len() {
            let query = attention.rows[row].position;
            for head in 0..attention.n_head {
                let probs = attention.row_mut(head, row);
                let keys = cell_of[..=query].iter();
                self.pool.add(map, query, keys.map(|cell| cell.map_or(0.0, |cell| f64::from(probs[cell]))));
            }
        }
        Ok(())
    }
}
