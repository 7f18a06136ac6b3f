//! `plug`: runs another program that loads llama.cpp as a library, with StepFlow inside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Args;
use stepflow::stepflow::StepFlowConfig;

use super::exit::Usage;
use super::flags::{OnOff, StepFlowArgs};
use super::{exit, output, setup};

/// Plugging in.
#[derive(Debug, Clone, Args)]
pub struct PlugArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stepflow: StepFlowArgs,
    /// The program's model file, where it does not map it.
    #[arg(long, value_name = "FNAME")]
    pub model: Option<PathBuf>,
    /// Write statistics of the repairs to a file (JSON) when the program ends.
    #[arg(long, value_name = "FNAME")]
    pub stats: Option<PathBuf>,
    /// Write traces of what was said, for `saliency`, into a folder when the program ends: one for each text.
    #[arg(long, value_name = "FOLDER")]
    pub save_trace: Option<PathBuf>,
    /// Say nothing but what goes wrong.
    #[arg(long)]
    pub quiet: bool,
    /// Change nothing: say what is found in the program, and what StepFlow would work on.
    #[arg(long)]
    pub check: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// The plug-in's file.
const PLUG: &str = if cfg!(target_os = "macos") { "libstepflow_plug.dylib" } else { "libstepflow_plug.so" };

/// The variable by which the system's linker loads it first.
const PRELOAD: &str = if cfg!(target_os = "macos") { "DYLD_INSERT_LIBRARIES" } else { "LD_PRELOAD" };

/// Runs the command.
pub fn run(args: &PlugArgs) -> anyhow::Result<u8> {
    let plug = find()?;
    args.stats.as_deref().map_or(Ok(()), output::check_writable)?;
    let Some((program, rest)) = args.command.split_first() else { bail!(Usage("no program is named".to_owned())) };
    let mut command = Command::new(program);
    command.args(rest).env(PRELOAD, preloaded(&plug)?).env("STEPFLOW_PLUGGED", std::process::id().to_string());
    command.envs(variables(args)?);
    start(command, program)
}

/// The plug-in: beside this program, or in the folder of libraries beside its own.
fn find() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.canonicalize()?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(PLUG), folder.join("../lib").join(PLUG), folder.join("../lib/stepflow").join(PLUG)];
    match places.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.canonicalize()?),
        None => bail!("expected the plug-in {PLUG} beside {}; a build makes both", program.display()),
    }
}

/// The plug-in in front of what is preloaded already.
fn preloaded(plug: &Path) -> anyhow::Result<OsString> {
    let text = plug.to_str().filter(|path| !path.contains([' ', ':']));
    let Some(text) = text else {
        bail!("{}: expected a path without spaces and colons, for {PRELOAD} has lists of them", plug.display());
    };
    let mut all = OsString::from(text);
    if let Some(others) = std::env::var_os(PRELOAD).filter(|others| !others.is_empty()) {
        all.push(":");
        all.push(others);
    }
    Ok(all)
}

/// What the plug-in is told. Of the repairs nothing, if no flag says anything: then its own variables count.
fn variables(args: &PlugArgs) -> anyhow::Result<Vec<(&'static str, OsString)>> {
    let PlugArgs { stepflow, model, stats, save_trace, quiet, check, .. } = args;
    let mut variables = Vec::new();
    if stepflow.repairs.any_given() {
        let StepFlowConfig { oeb, smi } = setup::repairs_or_all(&stepflow.repairs)?;
        let on = |is: bool| if is { "on".to_owned() } else { "off".to_owned() };
        variables.extend([("STEPFLOW_OEB", on(oeb.is_some())), ("STEPFLOW_SMI", on(smi.is_some()))]);
        if let Some(oeb) = oeb {
            variables.push(("STEPFLOW_OEB_LAYERS", oeb.layers.to_string()));
            variables.push(("STEPFLOW_TAU_MAX", oeb.tau_max.to_string()));
        }
        if let Some(smi) = smi {
            variables.push(("STEPFLOW_SMI_LAYERS", smi.layers.to_string()));
            variables.push(("STEPFLOW_ALPHA", smi.alpha.to_string()));
            variables.push(("STEPFLOW_SMI_WINDOW", smi.window.to_string()));
        }
    }
    let all_layers = stepflow.all_layers.map(|all| if all == OnOff::On { "on" } else { "off" }.to_owned());
    let family = &stepflow.family;
    let given = [
        ("STEPFLOW_ALL_LAYERS", all_layers),
        ("STEPFLOW_FAMILY", family.family.map(|family| family.to_string())),
        ("STEPFLOW_THINK_START", family.think_start.clone()),
        ("STEPFLOW_THINK_END", family.think_end.clone()),
        ("STEPFLOW_QUIET", quiet.then(|| "on".to_owned())),
        ("STEPFLOW_CHECK", check.then(|| "on".to_owned())),
    ];
    variables.extend(given.into_iter().filter_map(|(name, text)| Some((name, text?))));
    let mut variables: Vec<_> = variables.into_iter().map(|(name, text)| (name, OsString::from(text))).collect();
    // The program may change its folder.
    let path = |path: &PathBuf| std::path::absolute(path).map(PathBuf::into_os_string);
    variables.extend(model.as_ref().map(path).transpose()?.map(|path| ("STEPFLOW_MODEL", path)));
    if let Some(folder) = save_trace {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    variables.extend(save_trace.as_ref().map(path).transpose()?.map(|path| ("STEPFLOW_SAVE_TRACE", path)));
    variables.extend(stats.as_ref().map(path).transpose()?.map(|path| ("STEPFLOW_STATS", path)));
    Ok(variables)
}

/// Becomes the program, which so has this process's number and gets its signals.
#[cfg(unix)]
fn start(mut command: Command, program: &std::ffi::OsStr) -> anyhow::Result<u8> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    say!("stepflow: cannot run {}: {error}", program.display());
    Ok(if error.kind() == std::io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::NOT_RUN })
}

#[cfg(not(unix))]
fn start(_: Command, _: &std::ffi::OsStr) -> anyhow::Result<u8> {
    bail!("plugging in works on Linux and macOS")
}
