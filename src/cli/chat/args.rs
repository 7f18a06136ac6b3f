//! The flags of a chat, as typed.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::cli::flags::{
    ContextArgs, EscapeArgs, ModelArgs, ReasoningFormat, SamplingArgs, StepFlowArgs, Switch, TemplateArgs,
};
use crate::cli::input;

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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub escape: EscapeArgs,
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
    reverse_prompt: Vec<String>,
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
    #[arg(long, visible_alias = "saliency-csv", value_name = "DIR", conflicts_with = "lora")]
    pub saliency: Option<PathBuf>,
}

impl ConversationArgs {
    /// The first thing said, if flags, a file or a redirected stdin say it.
    pub fn first_prompt(&self) -> anyhow::Result<Option<String>> {
        if self.simple_io && self.prompt.is_none() && self.file.is_none() {
            return Ok(None);
        }
        input::text(self.prompt.as_deref().map(|text| self.escape.read(text)), self.file.as_deref())
    }

    /// Texts that end an answer.
    pub fn stop_texts(&self) -> Vec<String> {
        self.reverse_prompt.iter().map(|text| self.escape.read(text)).collect()
    }

    /// The system prompt, if there is one.
    pub fn system_prompt(&self) -> anyhow::Result<Option<String>> {
        match (&self.system_prompt, &self.system_prompt_file) {
            (Some(prompt), _) => Ok(Some(self.escape.read(prompt))),
            (None, Some(path)) => input::read_text(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}
