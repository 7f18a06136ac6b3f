//! `sensitivity`: how the loss of traces hangs on StepFlow's settings, in every layer and head.

mod picture;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use stepflow::backward::{LayerResult, Needed, Pass, Repairs, Sensitivity, Unwatched};
use stepflow::engine::EngineError;
use stepflow::llama::{ContextParams, Model};
use stepflow::saliency::free_memory;
use stepflow::stepflow::{LayerSelection, OebConfig, Side, SmiConfig, StepFlowConfig, Window};
use stepflow::trace::TraceFile;

use super::args::InputArgs;
use super::{folder, input, trace};
use crate::cli::exit::{self, Usage};
use crate::cli::flags::{ModelArgs, RepairArgs, threads};
use crate::cli::progress::Progress;
use crate::cli::setup::{self, Interrupt};
use crate::cli::{output, saliency::args};
use table::{Quantity, Table};

/// Sensitivity.
#[derive(Debug, Clone, Args)]
pub struct SensitivityArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub input: InputArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Folder for the table and the picture.
    #[arg(short, long, visible_alias = "out", value_name = "DIR", default_value = "sensitivity")]
    pub output: PathBuf,
    /// Caps of OEB's floor to tell the effect of, separated by commas.
    #[arg(long, value_name = "P,...", value_delimiter = ',', default_values_t = [0.05, 0.15, 0.3], value_parser = share)]
    pub tau: Vec<f64>,
    /// Memory that it may take, such as `8G`; what is free by default.
    #[arg(long, value_name = "SIZE", value_parser = args::memory)]
    pub memory: Option<u64>,
    /// Threads.
    #[arg(short, long, value_name = "N", value_parser = threads)]
    pub threads: Option<i32>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub repairs: RepairArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    found.ok_or_else(|| format!("expected a share of attention in 0..1, found `{text}`"))
}

/// Runs the command.
pub fn run(args: &SensitivityArgs) -> anyhow::Result<u8> {
    let interrupt = Interrupt::install()?;
    if args.model.lora()?.is_some() {
        bail!(Usage("--lora: derivatives are of the model alone; merge the adapter into it first".to_owned()));
    }
    let config = setup::stepflow_config(&args.repairs)?;
    if !config.is_on() && args.repairs.any_given() && args.repairs.smi_window.is_none() {
        bail!(Usage("settings of a repair that is off: --stepflow, --oeb or --smi turns it on".to_owned()));
    }
    let inputs = input::read(&args.input)?;
    let model = setup::load_vocabulary(&args.model)?;
    config.validate_for(model.n_layer()).map_err(EngineError::from)?;
    let mut traces = Vec::new();
    for input in inputs {
        let name = input.name.clone();
        let trace = input.trace(&args.input, &model).and_then(|trace| trace::tokens(&trace, &model).map(|_| trace));
        traces.push((name.clone(), trace.context(name)?));
    }
    folder::make_for(&args.output, "sensitivity.csv")?;
    let mut table = Table::new(args.tau.clone(), config.is_on());
    for (name, trace) in &traces {
        if traces.len() > 1 {
            say!("stepflow: {} of {}: {name}", table.n_traces() + 1, traces.len());
        }
        match (Measuring { args, config: &config, model: &model, interrupt: &interrupt }).run(trace) {
            Ok(layers) => table.push(name, layers),
            Err(_) if interrupt.was_pressed() && table.n_traces() > 0 => break,
            Err(error) => {
                folder::leave(&args.output);
                return Err(error.context(name.clone()));
            }
        }
    }
    table.write(&args.output)?;
    picture::write(&args.output, &table, &caption(&model, &table))?;
    let out = args.output.display();
    say!("stepflow: {out}/sensitivity.csv lists all heads, {out}/sensitivity.svg shows them");
    let text = if config.is_on() { at_settings(&table) } else { at_the_papers_settings(&table, &model)? };
    output::write_result(None, |out| write!(out, "{text}"))?;
    Ok(if interrupt.was_pressed() { exit::INTERRUPTED } else { exit::OK })
}

/// One trace's derivatives.
struct Measuring<'a> {
    args: &'a SensitivityArgs,
    config: &'a StepFlowConfig,
    model: &'a Arc<Model>,
    interrupt: &'a Interrupt,
}

impl Measuring<'_> {
    /// Of every layer.
    fn run(&self, trace: &TraceFile) -> anyhow::Result<Vec<Sensitivity>> {
        let (model, n_layer) = (self.model, self.model.n_layer());
        let window = self.args.repairs.smi_window.unwrap_or(SmiConfig::default().window);
        let repairs = self.repairs(trace, window)?;
        let tokens = trace::tokens(trace, model)?;
        let counted = vec![true; tokens.len()];
        let n_threads = self.args.threads.unwrap_or(ContextParams::default().n_threads);
        let needed = Needed::new(model, tokens.len(), n_threads, true);
        let limit = self.args.memory.or_else(free_memory).unwrap_or(u64::MAX);
        let pass = Pass {
            repairs: Some(&repairs),
            taus: &self.args.tau,
            inputs_in_file: needed.inputs + needed.work > limit,
            n_threads,
            interrupt: self.interrupt.flag(),
            ..Pass::new(model.path(), &tokens, &counted)
        };
        let mut found: Vec<Option<Sensitivity>> = vec![None; n_layer];
        let mut visit = |result: LayerResult<Unwatched>| found[result.layer] = result.sensitivity;
        let mut progress = Progress::new("sensitivity", "layers", 2 * n_layer);
        let run = || pass.run(&|_| Unwatched, &mut visit, &mut |done, _| progress.at(done));
        let outcome = self.interrupt.during(run).map_err(EngineError::from)?;
        if outcome.reached > 0 {
            bail!("interrupted");
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn repairs(&self, trace: &TraceFile, window: Window) -> anyhow::Result<Repairs> {
        let n_layer = self.model.n_layer();
        match self.config.is_on() {
            true => Ok(Repairs::new(self.config, n_layer, trace).map_err(EngineError::from)?),
            false => Ok(Repairs::none(n_layer, trace, window)),
        }
    }
}

/// What the paper's settings would do to the loss, to first order.
fn at_the_papers_settings(table: &Table, model: &Model) -> anyhow::Result<String> {
    let layers = |selection: &LayerSelection, side| selection.resolve(model.n_layer(), side).map_err(EngineError::from);
    let (oeb, smi) = (OebConfig::default(), SmiConfig::default());
    let mut text = String::new();
    let tau = f64::from(oeb.tau_max);
    // As the flag was typed, or as the paper has it, in float32.
    let known =
        table.quantities().into_iter().find(|quantity| quantity.tau().is_some_and(|other| (other - tau).abs() < 1e-6));
    if let Some(quantity) = known {
        let shallow = layers(&oeb.layers, Side::Shallow)?;
        let effect = table.sum_over(quantity, |layer| shallow.contains(&layer));
        text += &format!("OEB at tau 0.15 in the first quarter of the layers: the loss changes by {effect}\n");
    }
    let deep = layers(&smi.layers, Side::Deep)?;
    let effect = table.sum_over(Quantity::ByAlpha, |layer| deep.contains(&layer)).times(f64::from(smi.alpha));
    text += &format!("SMI at alpha 0.06 in the last quarter of the layers: the loss changes by {effect}\n");
    Ok(
        text + "To first order, in nats a token. It says where attention to earlier steps matters, not which settings help.\n"
    )
}

/// How the loss changes from the settings that it was measured at.
fn at_settings(table: &Table) -> String {
    let all = |quantity| table.sum_over(quantity, |_| true);
    format!(
        "dL/dtau over all layers with OEB: {}\ndL/dalpha over all layers with SMI: {}\n",
        all(Quantity::ByTau),
        all(Quantity::ByAlpha)
    )
}

fn caption(model: &Model, table: &Table) -> String {
    let name = model.path().file_name().unwrap_or_default().to_string_lossy();
    let n = table.n_traces();
    format!("{name}, {n} trace{}; blue: the loss falls, red: it rises", if n == 1 { "" } else { "s" })
}
