//! Whether a run fits into memory, told before anything is loaded.

use std::path::Path;

use anyhow::bail;
use stepflow::engine::{Fit, Need};
use stepflow::gguf::Gguf;
use stepflow::llama::{ContextParams, ModelParams, devices, memory_free};

/// Bytes that are as good as nothing for what a run needs beside its cache: compute buffers of a large vocabulary.
const ROOM: u64 = 2 << 30;

/// Refuses a context that memory has no room for, with the largest that it has; where the flags ask for no size, takes
/// that.
///
/// # Errors
/// When it does not fit.
pub fn check(path: &Path, metadata: &Gguf, params: &ModelParams, context: &mut ContextParams) -> anyhow::Result<()> {
    // CUDA may take memory of the host then.
    if std::env::var_os("GGML_CUDA_ENABLE_UNIFIED_MEMORY").is_some() || is_surely_small(path, metadata, params, context)
    {
        return Ok(());
    }
    // What is wrong with either is told where they are made.
    let Ok(fit) = Fit::new(path, params, context) else { return Ok(()) };
    let n_ctx = if context.n_ctx == 0 { fit.n_ctx_train() } else { context.n_ctx };
    let Ok(needs) = fit.needs(n_ctx) else { return Ok(()) };
    let Some(need) = needs.iter().find(|need| !need.fits) else { return Ok(()) };
    let why = describe(n_ctx, need);
    match (fit.largest(n_ctx)?, context.n_ctx) {
        (Some(largest), 0) => {
            say!("stepflow: {why}; taking {largest} tokens, the most that fit");
            context.n_ctx = largest;
            Ok(())
        }
        (Some(largest), _) => bail!("{why}; the largest context that fits has {largest} tokens"),
        (None, _) if need.used.device.is_some() => {
            bail!("{why}; put fewer layers there (-ngl), or take a smaller model")
        }
        (None, _) => bail!("{why}; take a smaller model"),
    }
}

fn describe(n_ctx: u32, Need { used, needed, free, .. }: &Need) -> String {
    let place = used.device.as_deref().unwrap_or("memory");
    let weights = match needed < &used.total() {
        true => "beside the model's pages: ".to_owned(),
        false => format!("weights {}, ", size(used.weights)),
    };
    let (needed, free, cache, compute) = (size(*needed), size(free.unwrap_or(0)), size(used.cache), size(used.compute));
    format!(
        "a context of {n_ctx} tokens needs {needed} of {place} ({weights}KV cache {cache}, compute buffers {compute}), and \
         {free} are free"
    )
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// Whether a bound that costs nothing shows that host memory has room: most runs are far from its end.
fn is_surely_small(path: &Path, gguf: &Gguf, params: &ModelParams, context: &ContextParams) -> bool {
    if params.n_gpu_layers > 0 && devices().iter().any(|device| device.is_gpu) {
        return false;
    }
    let Some(free) = memory_free(None) else { return false };
    let number = |name: &str, or: u64| gguf.arch_u64(name).unwrap_or(or);
    let (layers, heads) = (number("block_count", 0), gguf.at_layer("attention.head_count", 0).unwrap_or(1).max(1));
    let of_head = number("embedding_length", 0) / heads;
    let of_cell = number("attention.key_length", of_head) + number("attention.value_length", of_head);
    let n_ctx = if context.n_ctx == 0 { number("context_length", 0) } else { context.n_ctx.into() };
    let heads_kv = |layer| gguf.at_layer("attention.head_count_kv", layer).unwrap_or(heads);
    // Of 32-bit floats, in every layer as in the widest.
    let widest = (0..layers as usize).map(heads_kv).max().unwrap_or(heads);
    let cache = [layers, widest, of_cell, n_ctx].into_iter().fold(4u64, u64::saturating_mul);
    let weights = if params.mmap { 0 } else { path.metadata().map_or(u64::MAX, |file| file.len()) };
    cache.saturating_mul(2).saturating_add(weights).saturating_add(ROOM) < free
}
