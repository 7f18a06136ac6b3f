//! The flags as typed. Names, aliases, defaults and environment variables are llama-cli's where it has them; flags of
//! one dash and several letters (`-ngl`) are spelled out by [`super::llama_flags`] before they get here.

use std::path::PathBuf;

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use stepflow::engine::SamplerKind;
use stepflow::llama::{CacheType, MAX_THREADS};
use stepflow::stepflow::{LayerSelection, Window};
use stepflow::trace::Family;

/// Run quantized reasoning models (GGUF), with StepFlow repairing how information flows between reasoning steps.
#[derive(Debug, Parser)]
#[command(
    name = "stepflow",
    disable_version_flag = true,
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    after_help = "Without a subcommand stepflow chats. Flags of llama-cli keep their names: -ngl, -hf, -fa, ..."
)]
pub struct Cli {
    /// What to do instead of chatting.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Chatting.
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Print the version and what llama.cpp runs on.
    #[arg(long)]
    pub version: bool,
    /// Print the devices that models can run on, and what StepFlow works with there.
    #[arg(long)]
    pub list_devices: bool,
}

/// Everything but chatting.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Negative log-likelihood of every token of a text.
    Score(ScoreArgs),
    /// Speed with and without StepFlow, side by side.
    Bench(BenchArgs),
    /// What a model is and what StepFlow would do in it.
    Inspect(InspectArgs),
    /// What StepFlow does to a model's answers: accuracy of several settings on the same problems.
    Eval(EvalArgs),
    /// Choose StepFlow's settings for a model on problems that are not for the test.
    Tune(TuneArgs),
    /// How much each step of a trace draws on each earlier one, layer by layer.
    Saliency(super::saliency::args::SaliencyArgs),
    /// Serve the model to editors, chat pages and scripts, through the API of llama-server, OpenAI and Anthropic.
    Serve(Box<super::serve::args::ServeArgs>),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    Man,
}

/// Which model, and where it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model file (GGUF); the embedded model by default.
    #[arg(short, long, value_name = "FNAME", env = "LLAMA_ARG_MODEL")]
    pub model: Option<PathBuf>,
    /// Hugging Face repository `org/repo[:quant]` to fetch the model from; Q4_K_M by default [-hf, -hfr].
    #[arg(long, value_name = "REPO", visible_alias = "hfr", env = "LLAMA_ARG_HF_REPO")]
    pub hf_repo: Option<String>,
    /// File in the Hugging Face repository, in place of a quant [-hff].
    #[arg(long, value_name = "FILE", env = "LLAMA_ARG_HF_FILE", requires = "hf_repo")]
    pub hf_file: Option<String>,
    /// Use only what is already downloaded.
    #[arg(long, env = "LLAMA_ARG_OFFLINE", value_parser = BoolishValueParser::new())]
    pub offline: bool,
    /// LoRA adapter to apply.
    #[arg(long, value_name = "FNAME")]
    pub lora: Option<PathBuf>,
    /// Layers to keep in GPU memory: a number, `auto` or `all`, which are all that there are [-ngl].
    #[arg(
        long,
        visible_alias = "gpu-layers",
        value_name = "N",
        default_value = "auto",
        allow_negative_numbers = true,
        env = "LLAMA_ARG_N_GPU_LAYERS"
    )]
    #[arg(value_parser = gpu_layers)]
    pub n_gpu_layers: u32,
    /// Keep the model in RAM.
    #[arg(long, env = "LLAMA_ARG_MLOCK", value_parser = BoolishValueParser::new())]
    pub mlock: bool,
    /// Read the model instead of mapping it.
    #[arg(long)]
    pub no_mmap: bool,
    /// Let llama.cpp's log through.
    #[arg(short, long, visible_alias = "log-verbose")]
    pub verbose: bool,
    /// No log of llama.cpp; it is off unless -v is given.
    #[arg(long, conflicts_with = "verbose")]
    pub log_disable: bool,
}

/// The context.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    /// Tokens of context; 0 takes what the model was trained with.
    #[arg(short, long, value_name = "N", default_value_t = 0, env = "LLAMA_ARG_CTX_SIZE")]
    pub ctx_size: u32,
    /// Threads for generation.
    #[arg(short, long, value_name = "N", env = "LLAMA_ARG_THREADS", allow_negative_numbers = true)]
    #[arg(value_parser = threads)]
    pub threads: Option<i32>,
    /// Threads for batches and prompts; as -t by default [-tb].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = threads)]
    pub threads_batch: Option<i32>,
    /// Tokens submitted at once.
    #[arg(short, long, value_name = "N", default_value_t = 2048, env = "LLAMA_ARG_BATCH")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub batch_size: u32,
    /// Tokens computed at once [-ub].
    #[arg(long, value_name = "N", default_value_t = 512, env = "LLAMA_ARG_UBATCH")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub ubatch_size: u32,
    /// Flash attention [-fa]; StepFlow does without.
    #[arg(long, value_name = "on|off|auto", num_args = 0..=1, default_value = "auto", default_missing_value = "on")]
    #[arg(env = "LLAMA_ARG_FLASH_ATTN")]
    pub flash_attn: Switch,
    /// Type of the K cache [-ctk].
    #[arg(long, value_name = "TYPE", default_value = "f16", env = "LLAMA_ARG_CACHE_TYPE_K")]
    pub cache_type_k: CacheType,
    /// Type of the V cache [-ctv].
    #[arg(long, value_name = "TYPE", default_value = "f16", env = "LLAMA_ARG_CACHE_TYPE_V")]
    pub cache_type_v: CacheType,
}

/// A three-way switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Always.
    #[value(alias = "true", alias = "1", alias = "enabled")]
    On,
    /// Never.
    #[value(alias = "false", alias = "0", alias = "disabled")]
    Off,
    /// Where it fits.
    #[value(alias = "-1")]
    Auto,
}

/// The repairs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "StepFlow")]
pub struct StepFlowArgs {
    /// Repair the flow between reasoning steps: OEB and SMI together.
    #[arg(long)]
    pub stepflow: bool,
    /// Odds-Equal Bridge: a floor under the attention to earlier context, in shallow layers.
    #[arg(long)]
    pub oeb: bool,
    /// Step Momentum Injection: hand each step a summary of the one before, in deep layers.
    #[arg(long)]
    pub smi: bool,
    /// Settings from a file (TOML), as `tune` writes them; it turns on what it sets. Flags beside it have their way.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Layers of OEB: `0-6,9`, or a share of the first ones [25%].
    #[arg(long, value_name = "LAYERS")]
    pub oeb_layers: Option<LayerSelection>,
    /// Layers of SMI: `23-29`, or a share of the last ones [25%].
    #[arg(long, value_name = "LAYERS")]
    pub smi_layers: Option<LayerSelection>,
    /// Cap of OEB's floor, a share of attention in 0..1 [0.15].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub tau_max: Option<f32>,
    /// Strength of SMI [0.06].
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    pub alpha: Option<f32>,
    /// Tokens of the previous step that SMI averages, or `step` for all of it [4].
    #[arg(long, value_name = "N|step")]
    pub smi_window: Option<Window>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub family: FamilyArgs,
}

/// How the model marks its thinking.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "StepFlow")]
pub struct FamilyArgs {
    /// How the model marks its thinking: think-tags, harmony, implicit or custom; detected by default.
    #[arg(long)]
    pub family: Option<Family>,
    /// Text that opens thinking.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub think_start: Option<String>,
    /// Text that closes thinking.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub think_end: Option<String>,
}

/// How the next token is chosen; a model's own recommendation stands in for what is not given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed; -1 takes a new one each time.
    #[arg(short, long, value_name = "SEED", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    pub seed: Option<i64>,
    /// Samplers in order, separated by `;`.
    #[arg(long, value_name = "SAMPLERS", value_parser = samplers)]
    pub samplers: Option<Samplers>,
    /// Temperature; 0 is greedy [0.8; `eval`: 0, or 0.6 with --samples].
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "N",
        env = "LLAMA_ARG_TEMPERATURE",
        allow_negative_numbers = true
    )]
    pub temp: Option<f32>,
    /// Keep the K most likely tokens; 0 keeps all [40].
    #[arg(long, value_name = "N", env = "LLAMA_ARG_TOP_K", allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// Keep the most likely tokens up to this sum of probability [0.95].
    #[arg(long, value_name = "N", env = "LLAMA_ARG_TOP_P")]
    pub top_p: Option<f32>,
    /// Keep tokens at least this likely, relative to the most likely one [0.05].
    #[arg(long, value_name = "N", env = "LLAMA_ARG_MIN_P")]
    pub min_p: Option<f32>,
    /// Tokens looked back at for penalties [64].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<i32>,
    /// Penalty on repetition; 1 is none [1.0].
    #[arg(long, value_name = "N", env = "LLAMA_ARG_REPEAT_PENALTY")]
    pub repeat_penalty: Option<f32>,
    /// Penalty on presence [0.0].
    #[arg(long, value_name = "N", env = "LLAMA_ARG_PRESENCE_PENALTY", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Penalty on frequency [0.0].
    #[arg(long, value_name = "N", env = "LLAMA_ARG_FREQUENCY_PENALTY", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// DRY: strength; 0 is off [0.0].
    #[arg(long, value_name = "N")]
    pub dry_multiplier: Option<f32>,
    /// DRY: base [1.75].
    #[arg(long, value_name = "N")]
    pub dry_base: Option<f32>,
    /// DRY: repetition that is free, in tokens [2].
    #[arg(long, value_name = "N")]
    pub dry_allowed_length: Option<i32>,
    /// DRY: tokens looked back at [64].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<i32>,
    /// DRY: text that no repetition crosses, in place of the default ones; `none` for none. Repeatable.
    #[arg(long, value_name = "STRING")]
    pub dry_sequence_breaker: Vec<String>,
}

/// A parsed sampler chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Samplers(pub Vec<SamplerKind>);

/// Chatting and completing.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub context: ContextArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stepflow: StepFlowArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub conversation: ConversationArgs,
}

/// The chat template.
#[derive(Debug, Clone, Args)]
pub struct TemplateArgs {
    /// Chat template as Jinja, or `chatml` (`serve` knows all names that llama.cpp does); the model's own by default.
    #[arg(long, value_name = "JINJA", env = "LLAMA_ARG_CHAT_TEMPLATE", conflicts_with = "chat_template_file")]
    pub chat_template: Option<String>,
    /// File with a Jinja chat template.
    #[arg(long, value_name = "FNAME", env = "LLAMA_ARG_CHAT_TEMPLATE_FILE")]
    pub chat_template_file: Option<PathBuf>,
    /// Variables for the chat template, a JSON object such as `{"enable_thinking": false}`.
    #[arg(long, value_name = "JSON", env = "LLAMA_ARG_CHAT_TEMPLATE_KWARGS")]
    pub chat_template_kwargs: Option<String>,
}

/// What is said, and how it is shown.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Conversation")]
pub struct ConversationArgs {
    /// What to say first. On a terminal the chat goes on from there unless -st is given.
    #[arg(short, long, value_name = "PROMPT", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// File with what to say first; stdin is read when it is no terminal.
    #[arg(short, long, value_name = "FNAME")]
    pub file: Option<PathBuf>,
    /// System prompt [-sys].
    #[arg(long, value_name = "PROMPT", conflicts_with = "system_prompt_file")]
    pub system_prompt: Option<String>,
    /// File with the system prompt [-sysf].
    #[arg(long, value_name = "FNAME")]
    pub system_prompt_file: Option<PathBuf>,
    /// Answer once and exit [-st].
    #[arg(long)]
    pub single_turn: bool,
    /// Chat [-cnv]; the default.
    #[arg(long, overrides_with = "no_conversation")]
    pub conversation: bool,
    /// Complete the prompt as it is, without a chat template [-no-cnv].
    #[arg(long)]
    pub no_conversation: bool,
    /// Tokens to generate; -1 for no limit, -2 until the context is full.
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N", default_value_t = -1, env = "LLAMA_ARG_N_PREDICT")]
    #[arg(allow_negative_numbers = true)]
    pub predict: i64,
    /// Stop at this text. Repeatable.
    #[arg(short, long, value_name = "PROMPT")]
    pub reverse_prompt: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub template: TemplateArgs,
    /// Jinja templates; always on.
    #[arg(long, env = "LLAMA_ARG_JINJA", value_parser = BoolishValueParser::new())]
    pub jinja: bool,
    /// `none` shows thinking as the model writes it; the others set it apart.
    #[arg(long, value_name = "FORMAT", default_value = "auto", env = "LLAMA_ARG_THINK")]
    pub reasoning_format: ReasoningFormat,
    /// Thinking tokens at most; -1 for no limit, 0 for no thinking.
    #[arg(long, value_name = "N", default_value_t = -1, env = "LLAMA_ARG_THINK_BUDGET", allow_negative_numbers = true)]
    pub reasoning_budget: i64,
    /// Skip the run that warms the model up.
    #[arg(long)]
    pub no_warmup: bool,
    /// Colours: thinking is dimmed.
    #[arg(long, value_name = "on|off|auto", num_args = 0..=1, default_value = "auto", default_missing_value = "on")]
    pub color: Switch,
    /// Plain reading and writing, for pipes and simple consoles: every line of stdin is a turn.
    #[arg(long)]
    pub simple_io: bool,
    /// Do not repeat the prompt.
    #[arg(long)]
    pub no_display_prompt: bool,
    /// Write StepFlow's statistics to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Write the conversation's tokens, segments and steps to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub save_trace: Option<PathBuf>,
    /// Measure the Step-Saliency of the conversation at its end, as `stepflow saliency` does, and leave tables and
    /// pictures in a folder.
    #[arg(long, value_name = "DIR", conflicts_with = "lora")]
    pub saliency_csv: Option<PathBuf>,
}

/// What happens to thinking on its way to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReasoningFormat {
    /// Shown as the model writes it.
    None,
    /// Set apart.
    Auto,
    /// Set apart.
    Deepseek,
    /// Set apart.
    DeepseekLegacy,
}

/// Scoring.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub context: ContextArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stepflow: StepFlowArgs,
    /// The text to score; special tokens in it count as such.
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["file", "tokens"])]
    pub prompt: Option<String>,
    /// File with the text to score; stdin by default.
    #[arg(short, long, value_name = "FNAME", conflicts_with = "tokens")]
    pub file: Option<PathBuf>,
    /// File with token numbers instead of text: a JSON array, or separated by white space.
    #[arg(long, value_name = "FNAME")]
    pub tokens: Option<PathBuf>,
    /// Tokens at the beginning that are prompt: an implicit family starts to think after them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub prompt_tokens: usize,
    /// Output format.
    #[arg(long, value_enum, default_value_t = ScoreFormat::Csv)]
    pub format: ScoreFormat,
    /// JSON output, as --format json.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Write to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Output formats of `score`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScoreFormat {
    /// One row a token.
    Csv,
    /// One object.
    Json,
}

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
    pub n_prompt: Vec<usize>,
    /// Generation lengths to time, separated by commas; 0 for none.
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<usize>,
    /// Depths to time at: tokens already in the context, separated by commas.
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
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
    /// Flash attention of the baseline [-fa]; off by default, as StepFlow needs it.
    #[arg(long, value_name = "on|off|auto", num_args = 0..=1, default_value = "off", default_missing_value = "on")]
    pub flash_attn: Switch,
    /// Type of the K cache [-ctk].
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: CacheType,
    /// Type of the V cache [-ctv].
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: CacheType,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = BenchFormat::Md)]
    pub output: BenchFormat,
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

/// Inspecting.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stepflow: StepFlowArgs,
    /// JSON output.
    #[arg(long)]
    pub json: bool,
}

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
    #[arg(long, value_name = "DIR", default_value = "stepflow-eval")]
    pub out: PathBuf,
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
    Grade(super::eval::grade::GradeArgs),
}

/// Joining.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// Folders of the parts.
    #[arg(value_name = "DIR", required = true)]
    pub folders: Vec<PathBuf>,
    /// Folder for the whole.
    #[arg(long, value_name = "DIR", default_value = "stepflow-eval")]
    pub out: PathBuf,
    /// JSON summary.
    #[arg(long)]
    pub json: bool,
}

/// A part of the problems: its number, from 0, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard(pub usize, pub usize);

/// Tuning.
#[derive(Debug, Clone, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub task: TaskArgs,
    /// File for the chosen settings (TOML), for `--config`; stdout by default.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

fn shard(text: &str) -> Result<Shard, String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    match numbers {
        Some((i, n)) if (1..=n).contains(&i) => Ok(Shard(i - 1, n)),
        _ => Err(format!("expected I/N with I from 1 to N, found `{text}`")),
    }
}

fn gpu_layers(text: &str) -> Result<u32, String> {
    match text {
        "auto" | "all" | "-1" | "-2" => Ok(u32::MAX),
        number => number.parse().map_err(|_| format!("expected a number, `auto` or `all`, found `{number}`")),
    }
}

pub fn threads(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|&n: &i32| n <= MAX_THREADS);
    number.ok_or_else(|| format!("expected a number up to {MAX_THREADS}, found `{text}`"))
}

fn samplers(text: &str) -> Result<Samplers, String> {
    SamplerKind::parse_chain(text).map(Samplers)
}
