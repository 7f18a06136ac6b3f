//! The flags that several commands share, as typed. Names, aliases, defaults and environment variables are llama.cpp's where
//! it has them; flags of one dash and several letters (`-ngl`) are spelled out by [`super::llama_flags`] before they get
//! here.

use std::path::{Path, PathBuf};

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Args, ValueEnum};
use stepflow::engine::SamplerKind;
use stepflow::llama::{CacheType, MAX_CONTEXT, MAX_THREADS};
use stepflow::stepflow::{LayerSelection, Window};
use stepflow::trace::Family;

use super::exit::Usage;
use super::input;

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
    /// LoRA adapter to apply; there can be one.
    #[arg(long, value_name = "FNAME")]
    lora: Vec<PathBuf>,
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

impl ModelArgs {
    /// The LoRA adapter.
    ///
    /// # Errors
    /// When there are several.
    pub fn lora(&self) -> Result<Option<&Path>, Usage> {
        match self.lora.as_slice() {
            [] => Ok(None),
            [path] => Ok(Some(path)),
            more => Err(Usage(format!(
                "--lora: expected one adapter, found {}; merge them into one, or into the model, first",
                more.len()
            ))),
        }
    }
}

/// The context.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub size: SizeArgs,
    /// Threads for generation.
    #[arg(short, long, value_name = "N", env = "LLAMA_ARG_THREADS", allow_negative_numbers = true)]
    #[arg(value_parser = threads)]
    pub threads: Option<i32>,
    /// Threads for batches and prompts; as -t by default [-tb].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = threads)]
    pub threads_batch: Option<i32>,
}

/// What decides how much memory a context takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Context")]
pub struct SizeArgs {
    /// Tokens of context; 0 takes what the model was trained with.
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 0,
        env = "LLAMA_ARG_CTX_SIZE",
        allow_negative_numbers = true
    )]
    #[arg(value_parser = context_size)]
    pub ctx_size: u32,
    /// Tokens submitted at once.
    #[arg(short, long, value_name = "N", default_value_t = 2048, env = "LLAMA_ARG_BATCH")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub batch_size: u32,
    /// Tokens computed at once [-ub].
    #[arg(long, value_name = "N", default_value_t = 512, env = "LLAMA_ARG_UBATCH")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub ubatch_size: u32,
    /// Flash attention [-fa].
    #[arg(long, value_name = "on|off|auto", num_args = 0..=1, default_value = "auto", default_missing_value = "on")]
    #[arg(env = "LLAMA_ARG_FLASH_ATTN")]
    pub flash_attn: Switch,
    /// Type of the K cache: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1 [-ctk].
    #[arg(long, value_name = "TYPE", default_value = "f16", env = "LLAMA_ARG_CACHE_TYPE_K")]
    pub cache_type_k: CacheType,
    /// Type of the V cache, of the same; a quantized one needs flash attention [-ctv].
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

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// It is on.
    #[value(alias = "true", alias = "1")]
    On,
    /// It is off.
    #[value(alias = "false", alias = "0")]
    Off,
}

/// The repairs, and what they have to know of the model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "StepFlow")]
pub struct StepFlowArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub repairs: RepairArgs,
    /// Compute the tokens that are repaired by StepFlow's own attention in all layers, which is faster on a CPU; `off` keeps it to
    /// the layers of OEB [on].
    #[arg(long, value_name = "on|off")]
    pub all_layers: Option<OnOff>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub family: FamilyArgs,
}

/// The repairs.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "StepFlow")]
pub struct RepairArgs {
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
}

impl RepairArgs {
    /// Whether any flag is given.
    pub fn any_given(&self) -> bool {
        let Self { stepflow, oeb, smi, config, oeb_layers, smi_layers, tau_max, alpha, smi_window } = self;
        let settings = oeb_layers.is_some() || smi_layers.is_some() || tau_max.is_some() || alpha.is_some();
        *stepflow || *oeb || *smi || config.is_some() || settings || smi_window.is_some()
    }
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

/// The chat template.
#[derive(Debug, Clone, Args)]
pub struct TemplateArgs {
    /// Chat template as Jinja, or the name of one that llama.cpp has built in; the model's own by default.
    #[arg(long, value_name = "JINJA", env = "LLAMA_ARG_CHAT_TEMPLATE", conflicts_with = "chat_template_file")]
    pub chat_template: Option<String>,
    /// File with a Jinja chat template.
    #[arg(long, value_name = "FNAME", env = "LLAMA_ARG_CHAT_TEMPLATE_FILE")]
    pub chat_template_file: Option<PathBuf>,
    /// Variables for the chat template, a JSON object such as `{"enable_thinking": false}`.
    #[arg(long, value_name = "JSON", env = "LLAMA_ARG_CHAT_TEMPLATE_KWARGS")]
    pub chat_template_kwargs: Option<String>,
}

/// Backslashes in text on the command line.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct EscapeArgs {
    /// Read \\n, \\t, \\" and the like in -p, -sys and -r as what they stand for; the default. Commands of LaTeX stay.
    #[arg(short, long, overrides_with = "no_escape")]
    pub escape: bool,
    /// Leave every backslash as it is.
    #[arg(long)]
    pub no_escape: bool,
}

impl EscapeArgs {
    /// What a text on the command line means.
    pub fn read(self, text: &str) -> String {
        if self.no_escape { text.to_owned() } else { input::unescape(text) }
    }
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

fn gpu_layers(text: &str) -> Result<u32, String> {
    match text {
        "auto" | "all" | "-1" | "-2" => Ok(u32::MAX),
        number => number.parse().map_err(|_| format!("expected a number, `auto` or `all`, found `{number}`")),
    }
}

fn context_size(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|&n: &u32| n <= MAX_CONTEXT);
    number.ok_or_else(|| format!("expected a number of tokens up to {MAX_CONTEXT}, found `{text}`"))
}

pub fn threads(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|&n: &i32| n <= MAX_THREADS);
    number.ok_or_else(|| format!("expected a number up to {MAX_THREADS}, found `{text}`"))
}

fn samplers(text: &str) -> Result<Samplers, String> {
    SamplerKind::parse_chain(text).map(Samplers)
}
