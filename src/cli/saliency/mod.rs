//! `saliency`: step-to-step maps of a trace, for every layer, as tables and pictures.

mod args;
mod compare;
mod folder;
mod input;
mod measure;
mod parquet;
mod pictures;
pub mod sensitivity;
mod tables;
mod trace;
mod verdict;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use stepflow::backward::Repairs;
use stepflow::engine::{EngineError, Session};
use stepflow::llama::{LlamaError, Model, ModelParams};
use stepflow::saliency::{LayerMaps, LayerMetrics, Metric, Pool, Saliency, StepMap, Verdict};
use stepflow::stepflow::{Side, StepFlowConfig};
use stepflow::trace::{Segment, TraceFile};

use super::exit::{self, Usage};
use super::output;
use super::setup::{self, Interrupt};
pub use args::SaliencyArgs;
use args::{LossOf, MeasureArgs, SaliencyCommand, TableArgs};
use measure::{Method, Task};
use pictures::Pictures;
use tables::Tables;

/// Runs the command.
pub fn run(args: &SaliencyArgs) -> anyhow::Result<u8> {
    if let Some(SaliencyCommand::Compare(args)) = &args.command {
        return compare::run(args);
    }
    let interrupt = Interrupt::install()?;
    if args.model.lora()?.is_some() {
        bail!(Usage("--lora: maps are of the model alone; merge the adapter into it first".to_owned()));
    }
    let stepflow = setup::stepflow_config(&args.repairs)?;
    if !stepflow.is_on() && args.repairs.any_given() {
        bail!(Usage("settings of a repair that is off: --stepflow, --oeb or --smi turns it on".to_owned()));
    }
    let inputs = input::read(&args.input)?;
    let model = setup::load_vocabulary(&args.model)?;
    // All of them, so that a bad one costs no measuring of others.
    let mut traces = Vec::new();
    for input in inputs {
        let name = input.name.clone();
        let trace = input.trace(&args.input, &model).and_then(|trace| trace::tokens(&trace, &model).map(|_| trace));
        traces.push((name.clone(), trace.context(name)?));
    }
    folder::check(&args.output, &traces.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>())?;
    let n = traces.len();
    for (i, (name, trace)) in traces.into_iter().enumerate() {
        let out = if n == 1 { args.output.clone() } else { args.output.join(&name) };
        if n > 1 {
            say!("stepflow: {} of {n}: {name}", i + 1);
        }
        let (measure, tables) = (&args.measure, &args.tables);
        let (stepflow, model_params) = (stepflow.clone(), setup::model_params(&args.model));
        let settings = Settings { measure, tables, stepflow, model_params, out, interrupt: &interrupt };
        let found = settings.run(model.clone(), &trace).with_context(|| name.clone())?;
        let title = if n == 1 { String::new() } else { format!("{name}\n") };
        output::write_result(None, |out| write!(out, "{title}{}", found.verdict))?;
        if found.interrupted {
            return Ok(exit::INTERRUPTED);
        }
    }
    Ok(exit::OK)
}

/// Measures a conversation that has come to its end, as `saliency` without flags would, and leaves the maps in `out`, if
/// there is such a folder. `code` is the exit code so far; returns the one to end with.
pub fn of_conversation(
    out: Option<&Path>,
    threads: Option<i32>,
    session: Session,
    interrupt: &Interrupt,
    code: u8,
) -> anyhow::Result<u8> {
    let Some(out) = out.filter(|_| code != exit::INTERRUPTED).map(Path::to_owned) else {
        return Ok(code);
    };
    let (trace, model) = (session.trace(), session.model().clone());
    let was_repaired = session.stepflow().is_some_and(|control| control.is_on());
    if trace.steps.len() < 2 {
        say!("stepflow: nothing to measure: the conversation has no thinking and no answer");
        folder::leave(&out);
        return Ok(code);
    }
    // Its memory may be what measuring needs.
    drop(session);
    let (measure, tables) = (MeasureArgs::automatic(threads), TableArgs::default());
    let settings = Settings {
        measure: &measure,
        tables: &tables,
        stepflow: StepFlowConfig::default(),
        model_params: ModelParams::default(),
        out,
        interrupt,
    };
    let found = settings.run(model, &trace)?;
    // Stdout holds the answer.
    found.verdict.lines().for_each(|line| say!("{line}"));
    if was_repaired {
        say!("The maps are of the model without StepFlow, on the text that it wrote with it.");
    }
    Ok(if found.interrupted { exit::INTERRUPTED } else { code })
}

/// Makes the folder for a conversation's maps, before a long answer is generated.
///
/// # Errors
/// When it holds other runs or cannot be written.
pub fn check_folder(out: &Path) -> anyhow::Result<()> {
    folder::check(out, &["conversation"])?;
    folder::make(out)
}

/// How to measure, and where to leave what is found.
struct Settings<'a> {
    measure: &'a MeasureArgs,
    tables: &'a TableArgs,
    /// The repairs that the model is measured with.
    stepflow: StepFlowConfig,
    /// How the model is loaded where it comes without weights.
    model_params: ModelParams,
    out: PathBuf,
    interrupt: &'a Interrupt,
}

/// What a trace was found to show.
struct Found {
    /// In words.
    verdict: String,
    interrupted: bool,
}

impl Settings<'_> {
    /// Measures a trace and writes all files.
    fn run(self, model: Arc<Model>, trace: &TraceFile) -> anyhow::Result<Found> {
        let task = self.task(model, trace)?;
        let method = task.method()?;
        folder::make(task.out)?;
        let saliency = task.measure(method).inspect_err(|_| folder::leave(task.out))?;
        if task.interrupt.was_pressed() && !saliency.layers.iter().any(LayerMaps::is_measured) {
            folder::leave(task.out);
            return Err(EngineError::from(LlamaError::Interrupted).into());
        }
        folder::clear(task.out)?;
        let verdict = show(&task, trace, method, &saliency)?;
        let interrupted = task.interrupt.was_pressed();
        if interrupted {
            say!("stepflow: interrupted: cells that were not measured are empty");
        }
        Ok(Found { verdict: verdict::in_words(&verdict), interrupted })
    }

    fn task(&self, model: Arc<Model>, trace: &TraceFile) -> anyhow::Result<Task<'_>> {
        let tokens = trace::tokens(trace, &model)?;
        let n_layer = model.n_layer();
        let layers: Vec<usize> = match &self.measure.layers {
            Some(layers) => {
                let layers = layers.resolve(n_layer, Side::Shallow).map_err(EngineError::from)?;
                layers.into_iter().collect()
            }
            None => (0..n_layer).collect(),
        };
        if layers.is_empty() {
            bail!(Usage(format!("--layers: expected a layer at least, found none of {n_layer}")));
        }
        let pool = Pool::new(trace.steps.iter().map(|step| step.tokens.clone()));
        let loss = self.measure.loss.unwrap_or(LossOf::All);
        let counted: Vec<bool> = (0..tokens.len()).map(|token| counts(loss, trace, &pool, token)).collect();
        if !counted[1..].contains(&true) {
            bail!(Usage(format!("--loss {loss}: the trace has no such tokens after its first")));
        }
        let repairs = |config| Repairs::new(config, n_layer, trace).map_err(EngineError::from);
        let repairs = Some(&self.stepflow).filter(|config| config.is_on()).map(repairs).transpose()?;
        let Self { measure: args, tables, ref stepflow, ref model_params, ref out, interrupt } = *self;
        Ok(Task { args, tables, stepflow, repairs, model_params, out, model, tokens, counted, pool, layers, interrupt })
    }
}

/// Writes all files. Returns what the trace shows.
fn show(task: &Task<'_>, trace: &TraceFile, method: Method, saliency: &Saliency) -> anyhow::Result<Verdict> {
    let segments = segments(trace);
    let magnitudes: Vec<_> = saliency.layers.iter().map(|layer| (layer.layer, layer.magnitudes())).collect();
    let metric = magnitudes.first().map_or(Metric::Saliency, |(_, (metric, _))| *metric);
    let below_noise: Vec<_> = saliency.layers.iter().map(|layer| layer.below_noise(metric)).collect();
    say_noise(&below_noise);
    let metrics = magnitudes.iter().zip(&below_noise).map(|((layer, (_, map)), below)| {
        // Shares of noise mean nothing.
        let hidden = below.as_ref().is_some_and(|below| 2 * noisy(below).0 > noisy(below).1);
        (*layer, if hidden { LayerMetrics::default() } else { LayerMetrics::new(map, &segments) })
    });
    let metrics: Vec<_> = metrics.collect();
    let even = LayerMetrics::even(&task.pool, &segments);
    let verdict = Verdict::new(&metrics, &even, task.model.n_layer(), &segments);
    let tables = Tables { task, trace, method, saliency, metrics: &metrics, even: &even, verdict: &verdict };
    tables.write()?;
    let pictures = Pictures {
        trace,
        segments: &segments,
        metric,
        maps: magnitudes.into_iter().map(|(layer, (_, map))| (layer, map)).collect(),
        below_noise,
        layers: &metrics,
        even,
        caption: caption(task, method),
    };
    pictures.write(task.out)?;
    let (n, out) = (saliency.layers.len(), task.out.display());
    say!(
        "stepflow: {n} layers, {} steps; {out}/index.html shows them, {out}/cells.csv lists them",
        task.pool.n_steps()
    );
    Ok(verdict)
}

/// Cells below noise, and all that were measured.
fn noisy(below: &StepMap<bool>) -> (usize, usize) {
    let cells = || (0..below.n_steps()).flat_map(|query| below.row(query));
    (cells().filter(|below| **below).count(), cells().count())
}

fn say_noise(below_noise: &[Option<StepMap<bool>>]) {
    let (below, all) = below_noise.iter().flatten().map(noisy).fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
    if 2 * below > all {
        say!(
            "stepflow: {below} of {all} cells are below noise; --activations f32 has far less of it, more --pairs a little"
        );
    }
}

/// What was run, in a line.
fn caption(task: &Task<'_>, method: Method) -> String {
    let model = task.model.path().file_name().unwrap_or_default().to_string_lossy();
    let loss = if method == Method::Attention { String::new() } else { format!(", loss of {}", task.loss()) };
    format!("{model}, {} tokens, {} steps, by {}{loss}", task.tokens.len(), task.pool.n_steps(), method.name())
}

/// The text of a step.
fn step_text(trace: &TraceFile, step: usize) -> String {
    let tokens = &trace.tokens[trace.steps[step].tokens.clone()];
    String::from_utf8_lossy(&tokens.iter().flat_map(|token| token.piece.iter().copied()).collect::<Vec<u8>>())
        .into_owned()
}

/// Whether the loss is to count a token.
fn counts(loss: LossOf, trace: &TraceFile, pool: &Pool, token: usize) -> bool {
    match loss {
        LossOf::All => true,
        LossOf::Segment(segment) => trace.tokens[token].segment == segment,
        LossOf::Step(step) => pool.step_of(token) == step,
    }
}

/// The segments of a trace's steps.
fn segments(trace: &TraceFile) -> Vec<Segment> {
    trace.steps.iter().map(|step| step.segment).collect()
}
