//! `saliency`: step-to-step maps of a trace, for every layer, as tables.

pub mod args;
mod measure;
mod tables;
mod trace;

use anyhow::{Context as _, bail};
use stepflow::saliency::Pool;
use stepflow::stepflow::Side;
use stepflow::trace::{Segment, TraceFile};

use super::setup::{self, Interrupt};
use super::{exit, output};
use args::{LossOf, SaliencyArgs};
use measure::Task;
use tables::Tables;

/// Runs the command.
pub fn run(args: &SaliencyArgs) -> anyhow::Result<u8> {
    let interrupt = Interrupt::install()?;
    let trace = trace::read(&args.trace)?;
    let model = setup::load_model(&args.model)?;
    let tokens = trace::tokens(&trace, &model)?;
    let layers = match &args.layers {
        Some(layers) => layers.resolve(model.n_layer(), Side::Shallow).map_err(stepflow::engine::EngineError::from)?,
        None => (0..model.n_layer()).collect(),
    };
    if layers.is_empty() {
        bail!("--layers: expected a layer at least, found none of {}", model.n_layer());
    }
    let pool = Pool::new(trace.steps.iter().map(|step| step.tokens.clone()));
    let counted: Vec<bool> = (0..tokens.len()).map(|token| counts(args.loss, &trace, &pool, token)).collect();
    if !counted[1..].contains(&true) {
        bail!("--loss {}: the trace has no such tokens after its first", args.loss);
    }
    let task = Task { args, model, tokens, counted, pool, layers: layers.into_iter().collect(), interrupt };
    let method = task.method()?;
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    output::check_writable(&args.out.join("cells.csv"))?;
    let saliency = task.measure(method)?;
    let tables = Tables { task: &task, trace: &trace, method, saliency: &saliency };
    tables.write()?;
    let (n, out) = (saliency.layers.len(), args.out.display());
    say!(
        "stepflow: {n} layers, {} steps: cells.csv, layers.csv, steps.csv and run.json are in {out}",
        task.pool.n_steps()
    );
    if task.interrupt.was_pressed() {
        say!("stepflow: interrupted: cells that were not measured are empty");
        return Ok(exit::INTERRUPTED);
    }
    Ok(exit::OK)
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
