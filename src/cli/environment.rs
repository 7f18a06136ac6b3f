//! Which environment variables count: none that is empty, and none that a flag on the line goes against.

use std::ffi::OsString;

use clap::{Arg, Command};

/// Flags, by clap's names, and the flags whose variables they overrule beside their own.
const OVERRULED: [(&str, &[&str]); 4] = [
    ("model", &["hf_repo", "hf_file"]),
    ("hf_repo", &["model"]),
    ("chat_template", &["chat_template_file"]),
    ("chat_template_file", &["chat_template"]),
];

/// The command line with the variables alone that count beside `args`.
pub fn settle(command: Command, args: &[OsString]) -> Command {
    let given: Vec<&str> =
        OVERRULED.iter().map(|(flag, _)| *flag).filter(|flag| is_given(&command, flag, args)).collect();
    let overruled = |name: &str| {
        OVERRULED.iter().any(|(flag, others)| given.contains(flag) && others.contains(&name) && !given.contains(&name))
    };
    settle_all(command, &|arg: &Arg| {
        let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
        arg.get_env().is_some_and(|name| is_empty(name) || overruled(arg.get_id().as_str()))
    })
}

fn settle_all(command: Command, is_unset: &dyn Fn(&Arg) -> bool) -> Command {
    // No variable has an empty name, so none is read.
    let without = |arg: Arg| if is_unset(&arg) { arg.env("").hide_env(true) } else { arg };
    command.mut_args(without).mut_subcommands(|command| settle_all(command, is_unset))
}

/// Whether one of `args` is the flag, which all commands that have it spell alike.
fn is_given(command: &Command, flag: &str, args: &[OsString]) -> bool {
    let Some(arg) = command.get_arguments().find(|arg| arg.get_id() == flag) else { return false };
    let long = arg.get_long().map(|long| format!("--{long}"));
    let short = arg.get_short().map(|short| format!("-{short}"));
    args.iter().filter_map(|arg| arg.to_str()).take_while(|arg| *arg != "--").any(|text| {
        let name = text.split_once('=').map_or(text, |(name, _)| name);
        let attached = short.as_deref().is_some_and(|short| text.starts_with(short) && !text.starts_with("--"));
        attached || long.as_deref() == Some(name)
    })
}
