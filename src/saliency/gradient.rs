//! Exact Step-Saliency, by a backward pass.

use std::collections::BTreeMap;

use crate::backward::{self, LayerResult, Pass, Products, Watch, sums};
use crate::llama::{LlamaError, Model};

use super::{HeadMaps, LayerMaps, Metric, MetricMap, Pool, Saliency};

/// Step-Saliency and its signed sums, for the layers that `wanted` takes, and with `heads` of each of their heads. What is known
/// of pairs of tokens is pooled as soon as it is there and never kept. `progress` is told how many layers were gone through,
/// forward and backward, and of how many.
///
/// # Errors
/// As [`Pass::run`].
pub fn gradient(
    pass: &Pass<'_>,
    pool: &Pool,
    heads: bool,
    wanted: impl Fn(usize) -> bool + Sync,
    mut progress: impl FnMut(usize, usize) + Send,
) -> Result<Saliency, LlamaError> {
    let mut layers = Vec::new();
    let watch = |layer| Pooled { pool, wanted: wanted(layer), heads: BTreeMap::new() };
    let mut visit = |result: LayerResult<Pooled<'_>>| {
        if wanted(result.layer) {
            layers.push(maps(pool, result, heads));
        }
    };
    let outcome = pass.run(&watch, &mut visit, &mut progress)?;
    layers.sort_by_key(|layer| layer.layer);
    Ok(Saliency { loss: Some(outcome.loss), layers })
}

/// A layer's maps of what was seen.
fn maps(pool: &Pool, result: LayerResult<Pooled<'_>>, with_heads: bool) -> LayerMaps {
    let n_steps = pool.n_steps();
    let heads: Vec<HeadMaps> = result.watcher.heads.into_values().collect();
    let mut all = HeadMaps::new(n_steps);
    heads.iter().for_each(|head| all.add(head));
    let HeadMaps { mut saliency, mut signed } = all;
    pool.mean(&mut saliency, result.n_head);
    pool.mean(&mut signed, 1);
    let exact = |metric, values| MetricMap { metric, values, estimates: None };
    let maps = vec![exact(Metric::Saliency, saliency), exact(Metric::Signed, signed)];
    let mean = |mut maps: HeadMaps| {
        pool.mean(&mut maps.saliency, 1);
        pool.mean(&mut maps.signed, 1);
        maps
    };
    let heads = if with_heads { heads.into_iter().map(mean).collect() } else { Vec::new() };
    LayerMaps { layer: result.layer, maps, heads }
}

/// Sums over pairs of tokens, of some of a layer's rows, for each head.
struct Pooled<'p> {
    pool: &'p Pool,
    wanted: bool,
    heads: BTreeMap<usize, HeadMaps>,
}

impl Watch for Pooled<'_> {
    fn see(&mut self, seen: &Products<'_>) {
        if !self.wanted {
            return;
        }
        let query = self.pool.step_of(seen.query);
        let maps = self.heads.entry(seen.head).or_insert_with(|| HeadMaps::new(self.pool.n_steps()));
        let (saliency, signed) = (maps.saliency.row_mut(query), maps.signed.row_mut(query));
        let mut products = seen.products;
        let mut key = seen.keys.start;
        while !products.is_empty() {
            let step = self.pool.step_of(key);
            let n = (self.pool.tokens(step).end - key).min(products.len());
            let (of_step, rest) = products.split_at(n);
            let (sum, absolute) = sums(of_step);
            signed[step] += f64::from(sum);
            saliency[step] += f64::from(absolute);
            (products, key) = (rest, key + n);
        }
    }

    fn merge(&mut self, other: Self) {
        for (head, seen) in other.heads {
            self.heads.entry(head).or_insert_with(|| HeadMaps::new(self.pool.n_steps())).add(&seen);
        }
    }
}

/// Why a model's layers cannot be differentiated, if they cannot: a few tokens are run through it.
pub fn no_gradient(model: &Model, n_threads: i32) -> Option<String> {
    backward::try_out(model.path(), n_threads).err().map(|error| error.to_string())
}

/// Memory that is free, in bytes, where the system says so.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
