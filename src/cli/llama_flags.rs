//! llama-cli's spelling: flags of one dash and several letters, and flags that stepflow does not take.

use std::ffi::OsString;
use std::path::Path;

use clap::builder::ValueParser;
use clap::{Arg, Command, CommandFactory};

use super::command::Cli;

/// Flags of one dash and several letters, and what they stand for.
const SHORT: [(&str, &str); 21] = [
    ("-ngl", "--n-gpu-layers"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
    ("-hff", "--hf-file"),
    ("-tb", "--threads-batch"),
    ("-ub", "--ubatch-size"),
    ("-fa", "--flash-attn"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-st", "--single-turn"),
    ("-cnv", "--conversation"),
    ("-no-cnv", "--no-conversation"),
    ("-co", "--color"),
    ("-np", "--parallel"),
    ("-cb", "--cont-batching"),
    ("-kvu", "--kv-unified"),
    ("-to", "--timeout"),
    ("-rea", "--reasoning"),
    ("--usage", "--help"),
];

/// Flags of llama-cli that stepflow does not take.
const NOT_TAKEN: &str = "-cl --cache-list --completion-bash --server-base --verbose-prompt -C --cpu-mask -Cr \
    --cpu-range --cpu-strict --prio --poll -Cb --cpu-mask-batch -Crb --cpu-range-batch --cpu-strict-batch \
    --prio-batch --poll-batch --keep --swa-full -ctxcp --ctx-checkpoints --swa-checkpoints -cram --cache-ram \
    --context-shift --no-context-shift --perf --no-perf --show-timings --no-show-timings -sp \
    --special -mli --multiline-input --sampler-seq --sampling-seq --ignore-eos --top-nsigma --top-n-sigma \
    --xtc-probability --xtc-threshold --typical --typical-p --adaptive-target --adaptive-decay --dynatemp-range \
    --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent -l --logit-bias --grammar --grammar-file -j --json-schema \
    -jf --json-schema-file -bs --backend-sampling --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale \
    --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -kvo --kv-offload -nkvo \
    --no-kv-offload --repack -nr --no-repack --no-host -dt --defrag-thold -mm --mmproj -mmu --mmproj-url --mmproj-auto \
    --no-mmproj --image --audio --video --rpc --numa -dev --device -ot --override-tensor -cmoe --cpu-moe \
    -ncmoe --n-cpu-moe -sm --split-mode -ts --tensor-split -mg --main-gpu -fit --fit -fitt --fit-target -fitc --fit-ctx \
    --check-tensors --override-kv --op-offload --no-op-offload --lora-scaled --control-vector --control-vector-scaled \
    --control-vector-layer-range -mu --model-url -dr --docker-repo -hft --hf-token --reasoning --reasoning-effort \
    --reasoning-budget-message --log-file --log-colors --log-prefix --log-timestamps -lv --verbosity --log-verbosity \
    -td --threads-draft -md --model-draft -ngld --draft --draft-max --draft-min --no-warm-up -i --interactive -if \
    --interactive-first --in-prefix --in-suffix --prompt-cache -gan -gaw -ld --lookup-cache-static";

/// What to use in place of a flag that is not taken, where no name is near.
const INSTEAD: [(&str, &str); 15] = [
    ("--mirostat", "--samplers"),
    ("--xtc-probability", "--samplers"),
    ("--xtc-threshold", "--samplers"),
    ("--typical", "--samplers"),
    ("-mu", "--hf-repo"),
    ("--model-url", "--hf-repo"),
    ("-hft", "the variable HF_TOKEN"),
    ("--hf-token", "the variable HF_TOKEN"),
    ("-sm", "the variable CUDA_VISIBLE_DEVICES"),
    ("-ts", "the variable CUDA_VISIBLE_DEVICES"),
    ("-mg", "the variable CUDA_VISIBLE_DEVICES"),
    ("-dev", "the variable CUDA_VISIBLE_DEVICES"),
    ("--reasoning", "--reasoning-budget"),
    ("-i", "--conversation"),
    ("-lv", "--verbose"),
];

/// Flags of llama-server that change nothing here, and whether a value follows.
const IDLE_IN_SERVER: [(&str, bool); 44] = [
    ("--threads-http", true),
    ("--cache-ram", true),
    ("-cram", true),
    ("--cache-reuse", true),
    ("--context-shift", false),
    ("--no-context-shift", false),
    ("--ctx-checkpoints", true),
    ("-ctxcp", true),
    ("--swa-checkpoints", true),
    ("--swa-full", false),
    ("--slot-prompt-similarity", true),
    ("-sps", true),
    ("--no-cont-batching", false),
    ("-nocb", false),
    ("--warmup", false),
    ("--no-warmup", false),
    ("--perf", false),
    ("--no-perf", false),
    ("--log-colors", true),
    ("--log-prefix", false),
    ("--log-timestamps", false),
    ("-lv", true),
    ("--verbosity", true),
    ("--log-verbosity", true),
    ("--prio", true),
    ("--prio-batch", true),
    ("--poll", true),
    ("--poll-batch", true),
    ("--cpu-strict", true),
    ("--cpu-strict-batch", true),
    ("--repack", false),
    ("-nr", false),
    ("--no-repack", false),
    ("--no-host", false),
    ("--op-offload", false),
    ("--no-op-offload", false),
    ("--check-tensors", false),
    ("-dt", true),
    ("--defrag-thold", true),
    ("--props", false),
    ("--webui", false),
    ("--ui", false),
    ("--backend-sampling", false),
    ("-bs", false),
];

/// Names less alike than this (Jaro-Winkler, 0 to 1) have nothing to do with each other.
const NEAR: f64 = 0.8;

/// Called through a link named `llama-server`, the program serves.
///
/// What asks about the program itself stays as it is.
pub fn serve_if_named_so(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.collect();
    let name = args.first().map(Path::new).and_then(Path::file_stem);
    let asks = |arg: &OsString| ["--version", "--list-devices"].iter().any(|flag| arg == flag);
    if name.is_some_and(|name| name == "llama-server") && !args.iter().any(asks) {
        args.insert(1, "serve".into());
    }
    args
}

/// A command line that a parser of usual flags understands.
#[derive(Debug, Default)]
pub struct Spelled {
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Flags that change nothing and were left out.
    pub idle: Vec<String>,
}

/// Spells out llama-cli's short flags. What follows a flag that takes a value is that value, whatever it looks like.
///
/// # Errors
/// When a flag of llama-cli is not taken: the message names it and the nearest one that is.
pub fn spell_out(args: impl Iterator<Item = OsString>) -> Result<Spelled, String> {
    let cli = Cli::command();
    let mut spelled = Spelled::default();
    let (mut flags_end, mut value_follows, mut idle_value_follows) = (false, false, false);
    for arg in args {
        let text = arg.to_str().unwrap_or_default();
        if std::mem::take(&mut idle_value_follows) {
            continue;
        }
        flags_end |= text == "--" && !value_follows;
        let (flag, value) = text.split_once('=').unwrap_or((text, ""));
        if std::mem::take(&mut value_follows) || flags_end || spelled.args.is_empty() || !flag.starts_with('-') {
            spelled.args.push(arg);
            continue;
        }
        let long = SHORT.iter().find(|(short, _)| *short == flag).map(|(_, long)| *long);
        let name = long.unwrap_or(flag);
        let serves = spelled.args.get(1).is_some_and(|command| command == "serve");
        if let Some((_, has_value)) = IDLE_IN_SERVER.iter().find(|(idle, _)| serves && *idle == name) {
            idle_value_follows = *has_value && !text.contains('=');
            spelled.idle.push(flag.to_owned());
            continue;
        }
        if NOT_TAKEN.split_whitespace().any(|other| other == name) && !is_own(&cli, name, &spelled.args) {
            return Err(format!("llama.cpp's {flag} is not taken here; {}", nearest(name)));
        }
        value_follows = !text.contains('=') && takes_value(&cli, name, &spelled.args);
        spelled.args.push(match long {
            Some(long) if text.contains('=') => format!("{long}={value}").into(),
            Some(long) => long.into(),
            None => arg,
        });
    }
    Ok(spelled)
}

/// The command that `before` leads to.
fn command_of<'a>(cli: &'a Command, before: &[OsString]) -> &'a Command {
    before.iter().skip(1).fold(cli, |command, name| command.find_subcommand(name).unwrap_or(command))
}

/// Whether a value must follow a flag.
fn takes_value(cli: &Command, flag: &str, before: &[OsString]) -> bool {
    let one = |arg: &Arg| arg.get_num_args().map_or(1, |range| range.min_values()) > 0;
    let found = command_of(cli, before).get_arguments().find(|arg| is_named(arg, flag));
    found.is_some_and(|arg| arg.get_action().takes_values() && one(arg))
}

fn is_named(arg: &Arg, flag: &str) -> bool {
    let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
    let short = || arg.get_short().is_some_and(|short| flag == format!("-{short}"));
    longs.into_iter().any(|long| flag.strip_prefix("--") == Some(long)) || short()
}

/// The same command line, in which a text may begin with a dash.
pub fn with_text_values(command: Command) -> Command {
    let may = |arg: Arg| {
        let is_text = arg.get_value_parser().type_id() == ValueParser::string().type_id();
        let is_flag = arg.get_action().takes_values() && !arg.is_positional();
        if is_text && is_flag { arg.allow_hyphen_values(true) } else { arg }
    };
    command.mut_args(may).mut_subcommands(with_text_values)
}

/// Whether the subcommand before has a flag of that name with a meaning of its own.
fn is_own(cli: &Command, flag: &str, before: &[OsString]) -> bool {
    let command = command_of(cli, before);
    command.get_name() != cli.get_name() && command.get_arguments().any(|arg| is_named(arg, flag))
}

/// What to say of the flag nearest to one that is not taken.
fn nearest(flag: &str) -> String {
    if let Some((_, instead)) = INSTEAD.iter().find(|(name, _)| *name == flag) {
        return format!("the nearest is {instead}");
    }
    let cli = Cli::command();
    let longs = cli.get_arguments().filter_map(|arg| arg.get_long());
    let similarity = |long: &str| strsim::jaro_winkler(flag.trim_start_matches('-'), long);
    let best = longs.max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    match best.filter(|long| similarity(long) >= NEAR) {
        Some(long) => format!("the nearest is --{long}"),
        None => "nothing comes near it, see --help".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spell(args: &[&str]) -> Result<Vec<String>, String> {
        let args = std::iter::once("stepflow").chain(args.iter().copied()).map(OsString::from);
        spell_out(args).map(|spelled| spelled.args.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn llama_clis_spelling_is_understood() {
        assert_eq!(
            spell(&["-ngl", "99", "-fa=on", "-m", "x"]).unwrap(),
            ["--n-gpu-layers", "99", "--flash-attn=on", "-m", "x"]
        );
        assert_eq!(spell(&["--", "-ngl"]).unwrap(), ["--", "-ngl"]);
        assert_eq!(spell(&["-n", "-1"]).unwrap(), ["-n", "-1"]);
    }

    #[test]
    fn a_value_is_a_value_whatever_it_looks_like() {
        for args in [
            ["-p", "-st"],
            ["-p", "-3x + 5 = 20"],
            ["-p", "--mirostat"],
            ["-r", "---"],
            ["-r", "--"],
            ["--system-prompt", "- be brief"],
            ["--think-start", "-ngl"],
            ["--dry-sequence-breaker", "-"],
        ] {
            assert_eq!(spell(&args).unwrap(), args);
            let args = ["stepflow"].iter().chain(&args);
            let parsed = with_text_values(Cli::command()).try_get_matches_from(args);
            assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
        }
        assert_eq!(
            spell(&["score", "-p", "-ngl", "-ngl", "3"]).unwrap(),
            ["score", "-p", "-ngl", "--n-gpu-layers", "3"]
        );
        assert_eq!(spell(&["-sys", "-fa", "-fa", "on"]).unwrap(), ["--system-prompt", "-fa", "--flash-attn", "on"]);
    }

    #[test]
    fn idle_flags_of_llama_server_are_left_out_with_their_values() {
        let args = ["stepflow", "serve", "--threads-http", "4", "--no-context-shift", "-cram=5", "--port", "1"];
        let spelled = spell_out(args.iter().map(OsString::from)).unwrap();
        assert_eq!(spelled.args, ["stepflow", "serve", "--port", "1"].map(OsString::from));
        assert_eq!(spelled.idle, ["--threads-http", "--no-context-shift", "-cram"]);
        assert!(spell(&["--cache-ram", "1"]).is_err(), "a chat does not take it");
    }

    #[test]
    fn a_link_named_llama_server_serves() {
        let named = |args: &[&str]| {
            let args = serve_if_named_so(args.iter().map(OsString::from));
            args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(named(&["/opt/llama-server", "--port", "1"]), ["/opt/llama-server", "serve", "--port", "1"]);
        assert_eq!(named(&["llama-server.exe"]), ["llama-server.exe", "serve"]);
        assert_eq!(named(&["llama-server", "--version"]), ["llama-server", "--version"]);
        assert_eq!(named(&["stepflow", "-p", "x"]), ["stepflow", "-p", "x"]);
    }

    #[test]
    fn a_flag_not_taken_is_named_with_the_nearest() {
        assert_eq!(
            spell(&["--mirostat", "1"]).unwrap_err(),
            "llama.cpp's --mirostat is not taken here; the nearest is --samplers"
        );
        assert!(spell(&["--reasoning-budget-message", "x"]).unwrap_err().ends_with("--reasoning-budget"));
    }

    #[test]
    fn every_flag_is_taken_or_refused_but_not_both() {
        let cli = Cli::command();
        for flag in NOT_TAKEN.split_whitespace() {
            let name = flag.trim_start_matches('-');
            assert!(!SHORT.iter().any(|(short, _)| *short == flag), "{flag}");
            assert!(cli.get_arguments().all(|arg| !flag.starts_with("--") || arg.get_long() != Some(name)), "{flag}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
