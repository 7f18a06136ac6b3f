//! The program: its commands ([`command`]) and the flags that they share as typed ([`flags`]), what these mean
//! ([`setup`]), and one command a file or folder.

#[macro_use]
mod say;
mod bench;
mod chat;
mod command;
mod complete;
mod config_file;
mod devices;
mod download;
mod environment;
mod eval;
mod exit;
mod fit;
mod flags;
mod input;
mod inspect;
mod llama_flags;
mod output;
mod plug;
mod printer;
mod progress;
mod report;
mod saliency;
mod score;
mod serve;
mod setup;
mod shell;
mod steps;
mod tune;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches};

use command::{Cli, Command};
use llama_flags::Spelled;

/// Runs the program.
pub fn main() -> ExitCode {
    stepflow::llama::exit_on_abort();
    let args = match llama_flags::spell_out(llama_flags::serve_if_named_so(std::env::args_os()).into_iter()) {
        Ok(Spelled { args, idle }) => {
            idle.iter().for_each(|flag| say!("stepflow: llama-server's {flag} changes nothing here"));
            args
        }
        Err(message) => {
            say!("stepflow: {message}");
            return ExitCode::from(exit::USAGE);
        }
    };
    let command = environment::settle(llama_flags::with_text_values(Cli::command()), &args);
    let cli = command.try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match cli {
        Ok(cli) => cli,
        // Help goes to stdout and is no error; clap knows which is which.
        Err(error) if !error.use_stderr() => {
            return ExitCode::from(if error.print().is_ok() { exit::OK } else { exit::FAILURE });
        }
        Err(error) => {
            say!("stepflow: {}; see --help", what_is_wrong(&error));
            return ExitCode::from(exit::USAGE);
        }
    };
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say!("stepflow: {}", one_line(&error));
            ExitCode::from(exit::code_of(&error))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<u8> {
    if cli.version {
        return shell::version();
    }
    if cli.list_devices {
        return devices::list(cli.chat.model.verbose);
    }
    match cli.command {
        None if cli.chat.conversation.no_conversation => complete::run(&cli.chat),
        None => chat::run(&cli.chat),
        Some(Command::Score(args)) => score::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Tune(args)) => tune::run(&args),
        Some(Command::Saliency(args)) => saliency::run(&args),
        Some(Command::Sensitivity(args)) => saliency::sensitivity::run(&args),
        Some(Command::Serve(args)) => serve::run(&args),
        Some(Command::Plug(args)) => plug::run(&args),
        Some(Command::Completions { shell }) => shell::completions(shell),
        Some(Command::Man) => shell::man(),
    }
}

/// What clap has to say of a command line, in one line: without the usage, with its tips.
fn what_is_wrong(error: &clap::Error) -> String {
    let found = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand].into_iter().find_map(|kind| error.get(kind));
    if let Some(ContextValue::String(found)) = found
        && found.to_lowercase().ends_with(".gguf")
        && !found.starts_with('-')
    {
        return format!("unexpected `{found}`; a model is named with -m {found}");
    }
    let plugs = std::env::args().nth(1).is_some_and(|command| command == "plug");
    if let Some(ContextValue::String(found)) = found
        && plugs
        && !found.starts_with('-')
    {
        return format!("unexpected `{found}`; the program to plug into stands behind --: plug -- {found}");
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    // Flags are no values here, and none is meant to be one.
    let said: Vec<&str> = said.filter(|line| !(line.starts_with("tip: to pass") && line.contains("'-- "))).collect();
    said.join("; ").trim_start_matches("error: ").replace(":; ", ": ")
}

/// An error and its causes, in one line.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace('\n', " ");
        // Wrappers often repeat what they wrap.
        if !line.contains(&cause) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&cause);
        }
    }
    line
}
