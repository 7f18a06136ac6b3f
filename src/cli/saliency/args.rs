//! The command line of `saliency`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use stepflow::stepflow::LayerSelection;
use stepflow::trace::Segment;

use crate::cli::flags::{EscapeArgs, FamilyArgs, ModelArgs, RepairArgs, TemplateArgs, threads};

/// Step-Saliency.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SaliencyArgs {
    /// What to do instead of measuring.
    #[command(subcommand)]
    pub command: Option<SaliencyCommand>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub input: InputArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Folder for the tables, the pictures and index.html; of several traces each gets a folder in it.
    #[arg(short, long, visible_alias = "out", value_name = "DIR", default_value = "saliency")]
    pub output: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub tables: TableArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub measure: MeasureArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub repairs: RepairArgs,
}

/// What `saliency` does instead of measuring.
#[derive(Debug, Clone, Subcommand)]
pub enum SaliencyCommand {
    /// Set two runs, or two folders of runs, side by side.
    Compare(CompareArgs),
}

/// Comparing.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// Folder of a run of `saliency`, or of several.
    pub a: PathBuf,
    /// What to compare it with.
    pub b: PathBuf,
    /// Folder for the tables and the pictures.
    #[arg(short, long, visible_alias = "out", value_name = "DIR", default_value = "comparison")]
    pub output: PathBuf,
}

/// What is to be measured.
#[derive(Debug, Clone, Args)]
pub struct InputArgs {
    /// Traces, as --save-trace writes them, or conversations as JSONL; `-` for stdin.
    #[arg(value_name = "TRACE", required_unless_present = "prompt")]
    pub files: Vec<PathBuf>,
    /// A prompt, in place of a trace; --reply is what the model said to it.
    #[arg(short, long, value_name = "PROMPT", requires = "reply", conflicts_with = "files")]
    pub prompt: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub escape: EscapeArgs,
    /// File with the reply, thinking included; `-` for stdin.
    #[arg(long, value_name = "FILE", requires = "prompt", conflicts_with = "files")]
    pub reply: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub template: TemplateArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub family: FamilyArgs,
}

/// Tables beside cells.csv.
#[derive(Debug, Clone, Default, Args)]
pub struct TableArgs {
    /// Write cells.parquet too: cells.csv in columns, to be read faster.
    #[arg(long)]
    pub parquet: bool,
    /// Write layers/NN.csv too: each layer as a matrix, query steps down, key steps across.
    #[arg(long)]
    pub wide: bool,
}

/// How it is measured.
#[derive(Debug, Clone, Args)]
pub struct MeasureArgs {
    /// How to measure.
    #[arg(long, value_enum, default_value_t = SaliencyMethod::Auto)]
    pub method: SaliencyMethod,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub probe: ProbeArgs,
    /// Memory that measuring may take, such as `8G`; what is free by default.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<u64>,
    /// Layers as `0-6,9`, or a share of the first ones; all by default.
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<LayerSelection>,
    /// What the loss is of: `all` tokens (default), `question`, `thinking`, `summary`, or `step:N`.
    #[arg(long, value_name = "WHAT")]
    pub loss: Option<LossOf>,
    /// Write heads.csv too, or with --parquet heads.parquet: the cells of each head.
    #[arg(long)]
    pub heads: bool,
    /// Threads.
    #[arg(short, long, value_name = "N", value_parser = threads)]
    pub threads: Option<i32>,
}

impl MeasureArgs {
    /// All as it is without flags.
    pub fn automatic(threads: Option<i32>) -> Self {
        let probe = ProbeArgs::default();
        Self { method: SaliencyMethod::Auto, probe, memory: None, layers: None, loss: None, heads: false, threads }
    }
}

/// How probes go.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Probes (--method probe)")]
pub struct ProbeArgs {
    /// What probes estimate; `signed` by default.
    #[arg(long, value_enum)]
    pub estimator: Option<Estimator>,
    /// Differences, of two forwards each, for every cell; 1 for `signed` and 8 for `rms` by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: Option<u32>,
    /// Forwards to spend at most; more than all cells take go where the noise is largest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub budget: Option<u32>,
    /// What probes compute with; `model` by default.
    #[arg(long, value_enum)]
    pub activations: Option<Activations>,
    /// Seed of the random signs of `--estimator rms`; 1 by default.
    #[arg(short, long, value_name = "SEED")]
    pub seed: Option<u64>,
}

impl ProbeArgs {
    /// The first flag that is given.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--estimator", self.estimator.is_some()),
            ("--pairs", self.pairs.is_some()),
            ("--budget", self.budget.is_some()),
            ("--activations", self.activations.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// What probes estimate.
    pub fn estimator(&self) -> Estimator {
        self.estimator.unwrap_or(Estimator::Signed)
    }

    /// Differences for every cell.
    pub fn pairs(&self) -> usize {
        let default = match self.estimator() {
            Estimator::Signed => 1,
            Estimator::Rms => 8,
        };
        self.pairs.map_or(default, |pairs| pairs as usize)
    }

    /// What probes compute with.
    pub fn activations(&self) -> Activations {
        self.activations.unwrap_or(Activations::Model)
    }

    /// Seed of random signs.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(1)
    }
}

/// How saliency is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SaliencyMethod {
    /// The best of the others that the model allows and that fits into memory.
    Auto,
    /// Exactly, by a backward pass: Step-Saliency and its signed sums.
    Gradient,
    /// What a step's logits hang on, by a backward pass for each step: the Jacobian by the hidden states of earlier steps.
    Jacobian,
    /// By scaling attention and watching the loss, where there is no backward pass: two forwards a cell and more.
    Probe,
    /// Attention alone, by one forward pass.
    Attention,
}

/// What probes estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Estimator {
    /// What scaling a whole block of attention does to the loss, with its sign.
    Signed,
    /// How large the parts of that are, whatever their signs, by scaling heads and tokens up and down at random.
    Rms,
}

/// What probes compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// What the model computes with; quantized products round activations to 8 bits, which is noise to a probe.
    Model,
    /// float32: weights are dequantized into a temporary file first (4 bytes each), and nothing is rounded.
    F32,
}

/// Bytes, with K, M, G or T for powers of 1024.
pub fn memory(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(format!("expected a size such as 8G or 512M, found `{text}`")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("expected a size such as 8G or 512M, found `{text}`"))?;
    match number.is_finite() && number >= 0.0 {
        true => Ok((number * 1024f64.powi(power)) as u64),
        false => Err(format!("expected a size of 0 or more, found `{text}`")),
    }
}

/// What a loss is the mean surprise of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossOf {
    /// Every token.
    All,
    /// The tokens of a segment.
    Segment(Segment),
    /// The tokens of a step.
    Step(usize),
}

impl std::fmt::Display for LossOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => write!(f, "all"),
            Self::Segment(segment) => write!(f, "{segment}"),
            Self::Step(step) => write!(f, "step:{step}"),
        }
    }
}

impl std::str::FromStr for LossOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let step = text.strip_prefix("step:").and_then(|number| number.parse().ok());
        match text {
            "all" => Ok(Self::All),
            "question" => Ok(Self::Segment(Segment::Question)),
            "thinking" => Ok(Self::Segment(Segment::Thinking)),
            "summary" => Ok(Self::Segment(Segment::Summary)),
            _ => step
                .map(Self::Step)
                .ok_or(format!("expected all, question, thinking, summary or step:N, found `{text}`")),
        }
    }
}
