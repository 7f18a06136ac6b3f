//! What a model and a context take of each device's memory.

use std::path::Path;

use serde::Serialize;
use stepflow::engine::{Fit, Need};

use crate::cli::flags::{ModelArgs, SizeArgs};
use crate::cli::{fit, setup};

/// What the model and a context of the flags' size would take.
#[derive(Serialize)]
pub(super) struct Memory {
    /// Tokens of the context.
    context: u32,
    cache_type_k: &'static str,
    cache_type_v: &'static str,
    devices: Vec<DeviceMemory>,
    /// Tokens of the largest context that fits, where this one does not; 0 where none does.
    largest_context: Option<u32>,
}

/// Bytes of one device's memory.
#[derive(Serialize)]
struct DeviceMemory {
    /// `null` for the host.
    device: Option<String>,
    weights: u64,
    kv_cache: u64,
    compute_buffers: u64,
    total: u64,
    /// What of it must be there at once: the model's pages on the host need not.
    needed: u64,
    free: Option<u64>,
    fits: bool,
}

impl Memory {
    /// Of the model in `path`, as the flags want it loaded.
    pub fn new(path: &Path, model: &ModelArgs, size: &SizeArgs) -> anyhow::Result<Self> {
        let context = setup::sized(size);
        let fit = Fit::new(path, &setup::model_params(model), &context)?;
        let of_device = |Need { used, needed, free, fits }: Need| DeviceMemory {
            weights: used.weights,
            kv_cache: used.cache,
            compute_buffers: used.compute,
            total: used.total(),
            device: used.device,
            needed,
            free,
            fits,
        };
        let n_ctx = if context.n_ctx == 0 { fit.n_ctx_train() } else { context.n_ctx };
        let devices: Vec<_> = fit.needs(n_ctx)?.into_iter().map(of_device).collect();
        let fits = devices.iter().all(|device| device.fits);
        Ok(Self {
            context: n_ctx,
            largest_context: if fits { None } else { Some(fit.largest(n_ctx)?.unwrap_or(0)) },
            cache_type_k: context.type_k.name(),
            cache_type_v: context.type_v.name(),
            devices,
        })
    }

    /// A line for each device.
    pub fn lines(&self) -> Vec<(String, String)> {
        let line = |of: &DeviceMemory| {
            let label = format!("  {}", of.device.as_deref().unwrap_or("host"));
            let [weights, cache, compute, total] =
                [of.weights, of.kv_cache, of.compute_buffers, of.total].map(fit::size);
            let free = of.free.map_or("unknown".to_owned(), fit::size);
            let short = match (of.fits, of.free) {
                (false, _) => ": too little",
                (true, Some(free)) if of.total > free => ": weights are read again and again, which is slow",
                (true, _) => "",
            };
            let text =
                format!("{total}: weights {weights}, KV cache {cache}, compute buffers {compute}; free {free}{short}");
            (label, text)
        };
        let Self { context, cache_type_k, cache_type_v, .. } = self;
        let of_what = format!("of a context of {context} tokens, K in {cache_type_k}, V in {cache_type_v}:");
        let mut lines = vec![("memory".to_owned(), of_what)];
        lines.extend(self.devices.iter().map(line));
        let largest = self.largest_context.map(|n| match n {
            0 => "no context fits".to_owned(),
            n => format!("the largest context that fits has {n} tokens"),
        });
        lines.extend(largest.map(|text| (String::new(), text)));
        lines
    }
}
