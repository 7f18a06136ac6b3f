//! The flags of `serve`, as typed. Names, aliases and environment variables are llama-server's where it has them.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};

use crate::cli::flags::{ContextArgs, ModelArgs, ReasoningFormat, SamplingArgs, StepFlowArgs, Switch, TemplateArgs};

/// Serving.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
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
    pub answers: AnswerArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub server: ServerArgs,
}

/// What answers are like where a request says nothing.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Answers, where a request says nothing")]
pub struct AnswerArgs {
    /// Tokens to generate at most; -1 for no limit.
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N", default_value_t = -1, env = "LLAMA_ARG_N_PREDICT")]
    #[arg(allow_negative_numbers = true)]
    pub predict: i64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub template: TemplateArgs,
    /// Runs the chat template as Jinja, as it does by default.
    #[arg(long, overrides_with = "no_jinja")]
    pub jinja: bool,
    /// Takes the template that llama.cpp has built in and that the chat template resembles: no tools, no thinking.
    #[arg(long)]
    pub no_jinja: bool,
    /// `none` leaves thinking in the content; the others set it apart as `reasoning_content`.
    #[arg(long, value_name = "FORMAT", default_value = "auto", env = "LLAMA_ARG_THINK")]
    pub reasoning_format: ReasoningFormat,
    /// Whether the model thinks, where its template leaves the choice [-rea].
    #[arg(long, value_name = "on|off|auto", default_value = "auto", env = "LLAMA_ARG_REASONING")]
    pub reasoning: Switch,
    /// Thinking tokens at most; -1 for no limit, 0 for no thinking.
    #[arg(long, value_name = "N", default_value_t = -1, env = "LLAMA_ARG_THINK_BUDGET", allow_negative_numbers = true)]
    pub reasoning_budget: i64,
    /// Do not go on with a last message of the assistant's, but answer it.
    #[arg(long, env = "LLAMA_ARG_NO_PREFILL_ASSISTANT", value_parser = BoolishValueParser::new())]
    pub no_prefill_assistant: bool,
}

/// Where and for whom.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Addresses or names to listen on, separated by commas.
    #[arg(long, value_name = "HOST,..", default_value = "127.0.0.1", value_delimiter = ',', env = "LLAMA_ARG_HOST")]
    pub host: Vec<String>,
    /// Port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8080, env = "LLAMA_ARG_PORT")]
    pub port: u16,
    /// Answers generated side by side [-np]. Each has an equal share of the context; by default there are 4, which share it
    /// as they come.
    #[arg(long, value_name = "N", env = "LLAMA_ARG_N_PARALLEL", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1..=256))]
    pub parallel: Option<i64>,
    /// Let answers share the context as they come, also with -np [-kvu].
    #[arg(long, env = "LLAMA_ARG_KV_UNIFIED", value_parser = BoolishValueParser::new())]
    pub kv_unified: bool,
    /// Answers that can wait for a slot; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub queue: u32,
    /// Batch answers as they come; always on [-cb].
    #[arg(long)]
    pub cont_batching: bool,
    /// Keys of which a request must have one, separated by commas.
    #[arg(long, value_name = "KEY,..", value_delimiter = ',', env = "LLAMA_API_KEY", hide_env_values = true)]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub api_key: Vec<String>,
    /// File with a key on each line.
    #[arg(long, value_name = "FNAME", env = "LLAMA_ARG_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Private key for TLS (PEM).
    #[arg(long, value_name = "FNAME", env = "LLAMA_ARG_SSL_KEY_FILE", requires = "ssl_cert_file")]
    pub ssl_key_file: Option<PathBuf>,
    /// Certificates for TLS (PEM).
    #[arg(long, value_name = "FNAME", env = "LLAMA_ARG_SSL_CERT_FILE", requires = "ssl_key_file")]
    pub ssl_cert_file: Option<PathBuf>,
    /// Origins whose pages may use the server, separated by commas; `*` for all, `localhost` for this machine's.
    #[arg(long, value_name = "ORIGIN,..", value_delimiter = ',', env = "LLAMA_ARG_CORS_ORIGINS")]
    pub cors_origins: Vec<String>,
    /// Seconds that a client has to send a request [-to].
    #[arg(long, value_name = "N", default_value_t = 30, env = "LLAMA_ARG_TIMEOUT", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
    /// Bytes that a request's body can have.
    #[arg(long, value_name = "N", default_value_t = 4 << 20)]
    pub max_body: usize,
    /// Connections that are open at a time.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_connections: u32,
    /// Names that the model goes by, separated by commas; its file's name by default.
    #[arg(short, long, value_name = "NAME,..", value_delimiter = ',', env = "LLAMA_ARG_ALIAS")]
    pub alias: Vec<String>,
    /// Tags that the model is listed with, separated by commas.
    #[arg(long, value_name = "TAG,..", value_delimiter = ',', env = "LLAMA_ARG_TAGS")]
    pub tags: Vec<String>,
    /// Show measurements for Prometheus at /metrics.
    #[arg(long, env = "LLAMA_ARG_ENDPOINT_METRICS", value_parser = BoolishValueParser::new())]
    pub metrics: bool,
    /// Show slots at /slots; the default.
    #[arg(long, overrides_with = "no_slots")]
    pub slots: bool,
    /// Show no slots.
    #[arg(long, env = "LLAMA_ARG_NO_ENDPOINT_SLOTS", value_parser = BoolishValueParser::new())]
    pub no_slots: bool,
    /// No page to chat on.
    #[arg(long, visible_aliases = ["no-webui", "no-ui"], env = "LLAMA_ARG_NO_WEBUI", value_parser = BoolishValueParser::new())]
    pub no_page: bool,
}
