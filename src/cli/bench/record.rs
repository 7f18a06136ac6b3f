//! One result: an arm in a test, with llama-bench's field names.

use serde::Serialize;
use stepflow::llama::{ContextParams, FlashAttention, Model};

use super::machine;
use super::measure::{Arm, Samples, median};
use super::plan::Test;

/// What all results have in common.
#[derive(Clone, Serialize)]
#[allow(missing_docs, reason = "the names are those of llama-bench's fields")]
pub struct Setting {
    pub build_commit: &'static str,
    pub cpu_info: String,
    pub backends: String,
    pub model_filename: String,
    pub model_type: String,
    pub model_size: u64,
    pub model_n_params: u64,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_threads: i32,
    pub type_k: &'static str,
    pub type_v: &'static str,
    pub n_gpu_layers: i32,
    /// Whether StepFlow's own attention was for all layers.
    pub all_layers: bool,
}

impl Setting {
    /// The setting of contexts made of `params`.
    pub fn new(model: &Model, params: &ContextParams, n_gpu_layers: u32) -> Self {
        Self {
            build_commit: env!("CARGO_PKG_VERSION"),
            cpu_info: machine::cpu_info(),
            backends: machine::backends(),
            model_filename: model.path().display().to_string(),
            model_type: model.description(),
            model_size: model.size(),
            model_n_params: model.n_params(),
            n_batch: params.n_batch,
            n_ubatch: params.n_ubatch,
            n_threads: params.n_threads,
            type_k: params.type_k.name(),
            type_v: params.type_v.name(),
            // llama-bench's number for all of them.
            n_gpu_layers: i32::try_from(n_gpu_layers).unwrap_or(-1),
            all_layers: params.all_layers,
        }
    }
}

/// The result of one arm in one test. Times are in nanoseconds, speeds in tokens per second.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the names are those of llama-bench's fields")]
pub struct Record {
    #[serde(flatten)]
    pub setting: Setting,
    pub flash_attn: i32,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub n_depth: usize,
    pub test_time: String,
    pub avg_ns: u64,
    pub stddev_ns: u64,
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub samples_ns: Vec<u64>,
    pub samples_ts: Vec<f64>,
    pub arm: &'static str,
    /// Speed over the baseline's; `None` for the baseline.
    pub ratio_median: Option<f64>,
    pub ratio_min: Option<f64>,
    pub ratio_max: Option<f64>,
    pub stepflow_memory_bytes: Option<u64>,
    #[serde(skip)]
    pub test: Test,
}

impl Record {
    /// The result of `arm`, which is the `index`th; the baseline is 0. `memory` is what StepFlow holds, in bytes.
    pub fn new(
        setting: &Setting,
        test: &Test,
        test_time: &str,
        arm: &Arm,
        index: usize,
        samples: &Samples,
        memory: Option<u64>,
    ) -> Self {
        let ns: Vec<f64> = samples.times[index].iter().map(|time| time.as_nanos() as f64).collect();
        let n_tokens = (test.n_prompt + test.n_gen) as f64;
        let ts: Vec<f64> = ns.iter().map(|ns| n_tokens * 1e9 / ns.max(1.0)).collect();
        let compared = |of: fn(&[f64]) -> f64| (index > 0).then(|| of(&samples.ratios));
        Self {
            setting: setting.clone(),
            flash_attn: match arm.flash_attention() {
                FlashAttention::Auto => -1,
                FlashAttention::Off => 0,
                FlashAttention::On => 1,
            },
            n_prompt: test.n_prompt,
            n_gen: test.n_gen,
            n_depth: test.n_depth,
            test_time: test_time.to_owned(),
            avg_ns: mean(&ns) as u64,
            stddev_ns: deviation(&ns) as u64,
            avg_ts: mean(&ts),
            stddev_ts: deviation(&ts),
            samples_ns: ns.iter().map(|&ns| ns as u64).collect(),
            samples_ts: ts,
            arm: arm.name,
            ratio_median: compared(|ratios| median(ratios.to_vec())),
            ratio_min: compared(|ratios| ratios.iter().copied().fold(f64::INFINITY, f64::min)),
            ratio_max: compared(|ratios| ratios.iter().copied().fold(0.0, f64::max)),
            stepflow_memory_bytes: memory.filter(|_| index > 0),
            test: *test,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation of a sample; 0 of one value.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if values.len() < 2 { 0.0 } else { (squares / (values.len() - 1) as f64).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_of_a_sample() {
        assert_eq!(deviation(&[5.0]), 0.0);
        // The deviations of 1 and 3 from 2 are 1 each; their squares over one degree of freedom give 2.
        assert!((deviation(&[1.0, 3.0]) - 2f64.sqrt()).abs() <= 1e-12);
    }
}
