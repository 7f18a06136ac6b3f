//! `saliency`: step-to-step maps of a trace, for every layer, as tables and pictures.

pub mod args;
mod measure;
mod pictures;
mod tables;
mod trace;
mod verdict;

use anyhow::{Context as _, bail};
use stepflow::saliency::{LayerMetrics, Metric, Pool, Saliency, StepMap, Verdict};
use stepflow::stepflow::Side;
use stepflow::trace::{Segment, TraceFile};

use super::exit::{self, Usage};
use super::output;
use super::setup::{self, Interrupt};
use args::{LossOf, SaliencyArgs};
use measure::{Method, Task};
use pictures::Pictures;
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
        bail!(Usage(format!("--layers: expected a layer at least, found none of {}", model.n_layer())));
    }
    let pool = Pool::new(trace.steps.iter().map(|step| step.tokens.clone()));
    let loss = args.loss.unwrap_or(LossOf::All);
    let counted: Vec<bool> = (0..tokens.len()).map(|token| counts(loss, &trace, &pool, token)).collect();
    if !counted[1..].contains(&true) {
        bail!(Usage(format!("--loss {loss}: the trace has no such tokens after its first")));
    }
    let task = Task { args, model, tokens, counted, pool, layers: layers.into_iter().collect(), interrupt };
    let method = task.method()?;
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    output::check_writable(&args.out.join("cells.csv"))?;
    let saliency = task.measure(method)?;
    show(&task, &trace, method, &saliency)?;
    if task.interrupt.was_pressed() {
        say!("stepflow: interrupted: cells that were not measured are empty");
        return Ok(exit::INTERRUPTED);
    }
    Ok(exit::OK)
}

/// Writes all files, and says what the trace shows.
fn show(task: &Task<'_>, trace: &TraceFile, method: Method, saliency: &Saliency) -> anyhow::Result<()> {
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
    let verdict = Verdict::new(&metrics, &even, task.model.n_layer());
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
    pictures.write(&task.args.out)?;
    let (n, out) = (saliency.layers.len(), task.args.out.display());
    say!(
        "stepflow: {n} layers, {} steps; {out}/index.html shows them, {out}/cells.csv lists them",
        task.pool.n_steps()
    );
    output::write_result(None, |out| out.write_all(verdict::in_words(&verdict).as_bytes()))
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
