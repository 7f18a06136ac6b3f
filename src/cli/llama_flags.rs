//! llama-cli's spelling: flags of one dash and several letters, and flags that stepflow does not take.

use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory;

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
    --context-shift --no-context-shift --perf --no-perf --show-timings --no-show-timings -e --escape --no-escape -sp \
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

/// Spells out llama-cli's short flags, so that a parser of usual flags understands them.
///
/// # Errors
/// When a flag of llama-cli is not taken: the message names it and the nearest one that is.
pub fn spell_out(args: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let mut spelled = Vec::new();
    let mut flags_end = false;
    for arg in args {
        let text = arg.to_str().unwrap_or_default();
        flags_end |= text == "--";
        let (flag, value) = text.split_once('=').unwrap_or((text, ""));
        if flags_end || spelled.is_empty() || !flag.starts_with('-') {
            spelled.push(arg);
            continue;
        }
        let long = SHORT.iter().find(|(short, _)| *short == flag).map(|(_, long)| *long);
        let name = long.unwrap_or(flag);
        if NOT_TAKEN.split_whitespace().any(|other| other == name) && !is_own(name, &spelled) {
            return Err(format!("llama.cpp's {flag} is not taken here; {}", nearest(name)));
        }
        spelled.push(match long {
            Some(long) if text.contains('=') => format!("{long}={value}").into(),
            Some(long) => long.into(),
            None => arg,
        });
    }
    Ok(spelled)
}

/// Whether the subcommand before has a flag of that name with a meaning of its own.
fn is_own(flag: &str, before: &[OsString]) -> bool {
    let cli = Cli::command();
    let Some(command) = before.get(1).and_then(|name| cli.find_subcommand(name)) else { return false };
    command.get_arguments().any(|arg| {
        arg.get_long().is_some_and(|long| flag == format!("--{long}"))
            || arg.get_short().is_some_and(|short| flag == format!("-{short}"))
    })
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
        spell_out(args).map(|args| args.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect())
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
