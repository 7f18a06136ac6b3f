//! The flags of `eval`, as typed, and what `tune` shares with it: problems and how they are answered.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::flags::{ContextArgs, EscapeArgs, FamilyArgs, ModelArgs, SamplingArgs, TemplateArgs};

/// Problems, and how a model is to answer them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Problems")]
pub struct TaskArgs {
    /// Problems and their answers: JSONL (MATH-500, AIME, GSM8K), or multiple choice as CSV or JSONL (GPQA); the
    /// embedded model's own problems by default.
    #[arg(value_name = "PROBLEMS")]
    pub problems: Option<PathBuf>,
    /// Only the first N problems.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub first: Option<u32>,
    /// Sequences that run side by side [-np].
    #[arg(long, value_name = "N", default_value_t = 8, env = "LLAMA_ARG_N_PARALLEL")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    pub parallel: u32,
    /// Tokens to generate for an answer at most. A context (-c) holds one answer; by default the longest prompt and this.
    #[arg(
        short = 'n',
        long,
        visible_alias = "n-predict",
        value_name = "N",
        default_value_t = 4096,
        env = "LLAMA_ARG_N_PREDICT"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub predict: u32,
    /// System prompt [-sys].
    #[arg(long, value_name = "PROMPT")]
    pub system_prompt: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub escape: EscapeArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub template: TemplateArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub context: ContextArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub family: FamilyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,
}

/// Evaluating.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct EvalArgs {
    /// What to do instead of generating.
    #[command(subcommand)]
    pub command: Option<EvalCommand>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub task: TaskArgs,
    /// baseline, oeb, smi, stepflow, name:tau_max=0.3,alpha=0.1 or name:settings.toml; the others are compared with the
    /// first. Repeatable; those four by default.
    #[arg(long = "arm", value_name = "ARM")]
    pub arms: Vec<String>,
    /// Answers to each problem by each arm; several vote. More than one are sampled, at temperature 0.6 and top-p 0.95
    /// unless given.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub samples: u32,
    /// Folder of the run: samples as they finish, then the summary.
    #[arg(short, long, visible_alias = "out", value_name = "DIR", default_value = "stepflow-eval")]
    pub output: PathBuf,
    /// Go on with the run in that folder.
    #[arg(long)]
    pub resume: bool,
    /// Only part I of N of the problems, counted from 1; `eval merge` joins the parts.
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = shard)]
    pub shard: Shard,
    /// JSON summary.
    #[arg(long)]
    pub json: bool,
}

/// What `eval` does instead of generating.
#[derive(Debug, Clone, Subcommand)]
pub enum EvalCommand {
    /// Join the parts of a run into one folder and sum it up.
    Merge(MergeArgs),
    /// Grade replies that were made anywhere.
    Grade(super::grade::GradeArgs),
}

/// Joining.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// Folders of the parts.
    #[arg(value_name = "DIR", required = true)]
    pub folders: Vec<PathBuf>,
    /// Folder for the whole.
    #[arg(short, long, visible_alias = "out", value_name = "DIR", default_value = "stepflow-eval")]
    pub output: PathBuf,
    /// JSON summary.
    #[arg(long)]
    pub json: bool,
}

/// A part of the problems: its number, from 0, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard(pub usize, pub usize);

fn shard(text: &str) -> Result<Shard, String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    match numbers {
        Some((i, n)) if (1..=n).contains(&i) => Ok(Shard(i - 1, n)),
        _ => Err(format!("expected I/N with I from 1 to N, found `{text}`")),
    }
}
