//! The flags of `bench`, as typed; llama-bench's where it has them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stepflow::llama::CacheType;

use crate::cli::flags::{ModelArgs, StepFlowArgs, Switch, threads};

/// Benchmarking.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stepflow: StepFlowArgs,
    /// Prompt lengths to time, separated by commas; 0 for none.
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    #[arg(value_parser = count)]
    pub n_prompt: Vec<usize>,
    /// Generation lengths to time, separated by commas; 0 for none.
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_value = "128")]
    #[arg(value_parser = count)]
    pub n_gen: Vec<usize>,
    /// Depths to time at: tokens already in the context, separated by commas.
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    #[arg(value_parser = count)]
    pub n_depth: Vec<usize>,
    /// Repetitions of each test.
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repetitions: u32,
    /// Threads.
    #[arg(short, long, value_name = "N", value_parser = threads)]
    pub threads: Option<i32>,
    /// Tokens submitted at once.
    #[arg(short, long, value_name = "N", default_value_t = 2048)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub batch_size: u32,
    /// Tokens computed at once [-ub].
    #[arg(long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub ubatch_size: u32,
    /// Flash attention of both arms [-fa]; auto as in llama-bench.
    #[arg(long, value_name = "on|off|auto", num_args = 0..=1, default_value = "auto", default_missing_value = "on")]
    pub flash_attn: Switch,
    /// Type of the K cache: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1 [-ctk].
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: CacheType,
    /// Type of the V cache, of the same; a quantized one needs flash attention [-ctv].
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: CacheType,
    /// Output format.
    #[arg(long, value_enum, default_value_t = BenchFormat::Md)]
    pub format: BenchFormat,
    /// JSON output, as --format json.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Write to a file instead of stdout.
    #[arg(short, long, value_name = "FILE", value_parser = output_file)]
    pub output: Option<PathBuf>,
}

/// Output formats of `bench`, as llama-bench's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchFormat {
    /// Markdown table.
    Md,
    /// Comma-separated values.
    Csv,
    /// One array.
    Json,
    /// One object a line.
    Jsonl,
}

impl BenchArgs {
    /// The format that the flags mean.
    pub fn format(&self) -> BenchFormat {
        if self.json { BenchFormat::Json } else { self.format }
    }
}

fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("expected numbers of tokens separated by commas, found `{text}`"))
}

/// llama-bench's -o names a format.
fn output_file(text: &str) -> Result<PathBuf, String> {
    match BenchFormat::from_str(text, true) {
        Ok(_) => Err(format!("expected a file; --format {text} chooses the format")),
        Err(_) => Ok(PathBuf::from(text)),
    }
}
