//! The command line: which commands there are. Each command's flags stand with it, what several share in [`super::flags`].

use clap::{Parser, Subcommand};

use super::{bench, chat, eval, inspect, plug, saliency, score, serve, tune};

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
    pub chat: chat::ChatArgs,
    /// Print the version and what llama.cpp runs on.
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Print the devices that models can run on, and what StepFlow works with there.
    #[arg(long)]
    pub list_devices: bool,
}

/// Everything but chatting.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Negative log-likelihood of every token of a text.
    Score(score::ScoreArgs),
    /// Speed with and without StepFlow, side by side.
    Bench(bench::BenchArgs),
    /// What a model is and what StepFlow would do in it.
    Inspect(inspect::InspectArgs),
    /// What StepFlow does to a model's answers: accuracy of several settings on the same problems.
    Eval(eval::EvalArgs),
    /// Choose StepFlow's settings for a model on problems that are not for the test.
    Tune(tune::TuneArgs),
    /// How much each step of a trace draws on each earlier one, layer by layer.
    Saliency(saliency::SaliencyArgs),
    /// How the loss of traces hangs on StepFlow's settings, in every layer and head.
    Sensitivity(saliency::sensitivity::SensitivityArgs),
    /// Serve the model to editors, chat pages and scripts, through the API of llama-server, OpenAI and Anthropic.
    Serve(Box<serve::ServeArgs>),
    /// Run a program that loads llama.cpp as a library, such as llama-server, with StepFlow inside it.
    Plug(plug::PlugArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    Man,
}
