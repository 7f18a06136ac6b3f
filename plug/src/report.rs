//! What the plug-in says on stderr, and the statistics that it leaves.

use std::collections::{BTreeSet, HashSet};
use std::ffi::c_void;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use stepflow_core::kernels::Library;
use stepflow_core::kernels::attend::Processor;
use stepflow_core::repair::Repair;
use stepflow_core::stepflow::LayerSelection;

use super::model::Model;
use super::runtime::{Runtime, handle_of};
use super::scheduler::{Tokens, totals, traces};
use super::settings::{SETTINGS, strangers};

/// Lines that were said, for each is said once.
static SAID: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

fn say_once(line: String, always: bool) {
    let quiet = SETTINGS.as_ref().is_ok_and(|settings| settings.quiet);
    if (always || !quiet) && SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone()) {
        // A closed stderr is not the program's problem.
        _ = writeln!(std::io::stderr(), "stepflow: {line}");
    }
}

/// A runtime runs a graph.
pub fn found(runtime: &Runtime) {
    if !runtime.entered.swap(true, Ordering::Relaxed) {
        say_once(format!("in {}, ggml {}", runtime.name(), runtime.version), false);
    }
}

/// StepFlow stays away, and why.
pub fn left_alone(runtime: &str, why: &str) {
    say_once(format!("left alone in {runtime}: {why}"), true);
}

/// The call that ours stands in for cannot be passed on.
pub fn lost() -> ! {
    say_once("cannot find ggml behind a call of it; run the program without the plug-in".to_owned(), true);
    std::process::abort()
}

/// StepFlow begins to work on a model.
pub fn at_start(model: &Model, repair: &Repair) {
    ENTERED.store(true, Ordering::Relaxed);
    for name in strangers() {
        say_once(format!("{name} changes nothing: the plug-in has no such variable"), true);
    }
    let assumed = if model.family_found { "" } else { " (assumed: nothing in the model marks thinking)" };
    let layers = |layers: BTreeSet<usize>| match layers.is_empty() {
        true => "none".to_owned(),
        false => LayerSelection::from_iter(layers).to_string(),
    };
    let (oeb, smi) = (layers(repair.oeb_layers()), layers(repair.smi_layers()));
    let is_check = SETTINGS.as_ref().is_ok_and(|settings| settings.check);
    let kernel = format!("{:?}", Processor::here()).to_lowercase();
    say_once(
        format!(
            "{}{}, {} layers, family {}{assumed}, OEB in layers {oeb}, SMI in layers {smi}, kernel {kernel}",
            if is_check { "checking, which changes nothing: " } else { "" },
            model.name,
            model.n_layer,
            model.family
        ),
        false,
    );
}

/// Writes a file beside, and puts it in its place.
fn write(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("part");
    if let Err(error) = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path)) {
        say_once(format!("cannot write {}: {error}", path.display()), true);
    }
}

/// Whether any graph was entered.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Run when the library is loaded.
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    if let (Some(own), _) = handle_of(at_load as *const c_void)
        && let Some(folder) = Path::new(&*own.to_string_lossy()).parent()
    {
        Library::look_in(folder);
    }
    // SAFETY: a function that lives as long as the process, as this library does.
    unsafe { libc::atexit(at_exit) };
}

/// The process ends: what was done.
extern "C" fn at_exit() {
    _ = std::panic::catch_unwind(|| {
        if !ENTERED.load(Ordering::Relaxed) {
            // Of programs that this one starts, each would say so.
            let started_by_us = std::env::var("STEPFLOW_PLUGGED").is_ok_and(|id| id == std::process::id().to_string());
            if started_by_us {
                say_once(
                    "no graph of llama.cpp passed by: the program runs none, or has llama.cpp built into it".to_owned(),
                    true,
                );
            }
            return;
        }
        let (stats, Tokens { all, treated, unknown }) = totals();
        let total = stats.total();
        let left = match unknown {
            0 => String::new(),
            1 => "; 1 token left alone, as what it continues was written unseen".to_owned(),
            n => format!("; {n} tokens left alone, as what they continue was written unseen"),
        };
        let (bridged, seen, injections) = (total.rows_bridged, total.rows_seen, total.injections);
        let Ok(settings) = SETTINGS.as_ref() else { return };
        let done = match settings.check {
            true => format!("changed nothing; {treated} of {all} tokens are of thinking and answers"),
            false => format!("bridged {bridged} of {seen} rows and injected {injections} times"),
        };
        say_once(format!("{done}{left}"), settings.check);
        if let Some(path) = &settings.stats {
            write(path, format!("{:#}\n", stats.to_json()).as_bytes());
        }
        if let Some(folder) = &settings.traces {
            for (i, trace) in traces() {
                let mut bytes = Vec::new();
                if trace.write(&mut bytes).is_ok() {
                    write(&folder.join(format!("trace-{i}.json")), &bytes);
                }
            }
        }
    });
}
