//! Exact Step-Saliency, by a backward pass.

use crate::llama::{Backward, CONTEXT_STEP, LlamaError, Model};

use super::{LayerMaps, Metric, MetricMap, Pool, Saliency, StepMap};

/// Step-Saliency and its signed sums, for the layers that `wanted` takes. Every layer's token-level map is pooled as soon
/// as it is there and never kept.
///
/// # Errors
/// As [`Backward::run`].
pub fn gradient(
    pass: &Backward<'_>,
    pool: &Pool,
    wanted: impl Fn(usize) -> bool,
    mut progress: impl FnMut(usize),
) -> Result<Saliency, LlamaError> {
    let mut layers = Vec::new();
    let loss = pass.run(&mut |attention| {
        progress(attention.layer);
        if !wanted(attention.layer) {
            return Ok(());
        }
        let (mut saliency, mut signed) = (StepMap::new(pool.n_steps()), StepMap::new(pool.n_steps()));
        for head in 0..attention.n_head {
            for query in 0..pool.n_tokens() {
                let (probs, gradient) = attention.row(head, query);
                let product = || probs.iter().zip(gradient).map(|(a, d)| f64::from(*a) * f64::from(*d));
                pool.add(&mut saliency, query, product().map(f64::abs));
                pool.add(&mut signed, query, product());
            }
        }
        pool.mean(&mut saliency, attention.n_head);
        pool.mean(&mut signed, 1);
        let exact = |metric, values| MetricMap { metric, values, estimates: None };
        let maps = vec![exact(Metric::Saliency, saliency), exact(Metric::Signed, signed)];
        layers.push(LayerMaps { layer: attention.layer, maps });
        Ok(())
    })?;
    layers.sort_by_key(|layer| layer.layer);
    Ok(Saliency { loss: Some(loss), layers })
}

/// About how many bytes a backward pass over `n_tokens` takes at most, beside what the model's file takes where it is
/// mapped: the weights once more, the logits and what becomes of them, every layer's attention, and its other activations.
pub fn gradient_memory(model: &Model, n_tokens: usize) -> u64 {
    let gguf = model.metadata();
    let size = |name: &str| gguf.arch_u64(name).unwrap_or(0);
    let (n, layers) = (n_tokens.next_multiple_of(CONTEXT_STEP) as u64, model.n_layer() as u64);
    let logits = LOGITS_KEPT * n * model.n_vocab() as u64;
    // Two layers' worth beside those kept are in work at a time.
    let attention = (layers + 2) * size("attention.head_count") * n * n;
    let activations =
        layers * n * (ACTIVATIONS_KEPT * size("embedding_length") + FFN_KEPT * size("feed_forward_length"));
    model.size() + PRODUCTS + 4 * (logits + attention + activations)
}

// Fitted to peaks of 733, 1,293 and 2,874 MiB for 256, 512 and 1,024 tokens of SmolLM2-135M, and a little above.
/// Weights and results of a product at work, and what does not depend on the tokens.
const PRODUCTS: u64 = 64 << 20;
/// Tensors of the logits' size that live at once: logits, labels and gradient.
const LOGITS_KEPT: u64 = 3;
/// Tensors of the embedding's and of the feed-forward network's width that a layer keeps for its backward pass.
const ACTIVATIONS_KEPT: u64 = 7;
const FFN_KEPT: u64 = 3;

/// Architectures whose every operation llama.cpp can differentiate.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Why llama.cpp has no backward pass for a model, if it has none.
pub fn no_gradient(model: &Model) -> Option<String> {
    let architecture = model.metadata().architecture().unwrap_or("?");
    if !ARCHITECTURES.contains(&architecture) {
        let known = ARCHITECTURES.join(", ");
        return Some(format!("llama.cpp has a backward pass for {known}, but not for {architecture}"));
    }
    let experts = model.metadata().arch_u64("expert_count").unwrap_or(0);
    (experts > 0).then(|| "llama.cpp has no backward pass for experts".to_owned())
}

/// Memory that is free, in bytes, where the system says so.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
