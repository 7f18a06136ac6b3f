//! `saliency`: step-to-step maps of a trace, for every layer, as tables.

mod tables;

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use stepflow::llama::{Backward, ContextParams, FlashAttention, Model, Token};
use stepflow::saliency::{self, Pool, Saliency};
use stepflow::stepflow::Side;
use stepflow::trace::{Segment, TraceFile};

use super::args::{LossOf, SaliencyArgs, SaliencyMethod};
use super::report::Progress;
use super::setup::{self, Interrupt};
use super::{exit, input, output};
use tables::Tables;

/// Runs the command.
pub fn run(args: &SaliencyArgs) -> anyhow::Result<u8> {
    let interrupt = Interrupt::install()?;
    let trace = read_trace(args)?;
    let model = setup::load_model(&args.model)?;
    let tokens = tokens_of(&trace, &model)?;
    let layers = layers(args, &model)?;
    let method = method(args, &model, tokens.len())?;
    let pool = Pool::new(trace.steps.iter().map(|step| step.tokens.clone()));
    let counted: Vec<bool> = (0..tokens.len()).map(|token| counts(args.loss, &trace, &pool, token)).collect();
    if !counted[1..].contains(&true) {
        bail!("--loss {}: the trace has no such tokens after its first", args.loss);
    }
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    output::check_writable(&args.out.join("cells.csv"))?;
    let outcome = interrupt.during(|| match method {
        Method::Attention => attention(args, &model, &tokens, &pool, &layers, &interrupt),
        Method::Gradient => gradient(args, &model, &tokens, &counted, &pool, &layers, &interrupt),
    });
    let saliency = outcome?;
    let tables = Tables {
        out: &args.out,
        method: method.name(),
        loss: args.loss,
        trace: &trace,
        pool: &pool,
        saliency: &saliency,
        model: &model,
    };
    tables.write()?;
    say!(
        "stepflow: {} layers, {} steps: cells.csv, layers.csv, steps.csv and run.json are in {}",
        saliency.layers.len(),
        pool.n_steps(),
        args.out.display()
    );
    Ok(exit::OK)
}

/// How it is measured, once that is settled.
#[derive(Clone, Copy)]
enum Method {
    Gradient,
    Attention,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Attention => "attention",
        }
    }
}

/// The method asked for, or the best that can be had.
fn method(args: &SaliencyArgs, model: &Model, n_tokens: usize) -> anyhow::Result<Method> {
    let needed = saliency::gradient_memory(model, n_tokens);
    let limit = args.memory.or_else(free_memory).unwrap_or(u64::MAX);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let too_large = || {
        let (needed, limit) = (gib(needed), gib(limit));
        (needed > limit)
            .then(|| format!("a backward pass needs about {needed:.1} GiB, and {limit:.1} GiB may be taken"))
    };
    let obstacle = saliency::no_gradient(model).or_else(too_large);
    match (args.method, obstacle) {
        (SaliencyMethod::Attention, _) => Ok(Method::Attention),
        (SaliencyMethod::Gradient, Some(reason)) => {
            bail!("--method gradient: {reason}; --method attention works with any attention")
        }
        (SaliencyMethod::Gradient, None) => {
            say!("stepflow: the backward pass needs about {:.1} GiB", gib(needed));
            Ok(Method::Gradient)
        }
        (SaliencyMethod::Auto, None) => Ok(Method::Gradient),
        (SaliencyMethod::Auto, Some(reason)) => {
            say!("stepflow: measuring attention alone: {reason}");
            Ok(Method::Attention)
        }
    }
}

/// Memory that is free, in bytes, where the system says so.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn read_trace(args: &SaliencyArgs) -> anyhow::Result<TraceFile> {
    let bytes = input::read_bytes(&args.trace)?;
    let trace = TraceFile::read(&bytes).with_context(|| args.trace.display().to_string())?;
    if trace.steps.len() < 2 || trace.tokens.len() < 2 {
        bail!("{}: expected a trace of at least two steps, found {}", args.trace.display(), trace.steps.len());
    }
    Ok(trace)
}

/// The trace's tokens, which the model must read as the trace does.
fn tokens_of(trace: &TraceFile, model: &Model) -> anyhow::Result<Vec<Token>> {
    for (position, token) in trace.tokens.iter().enumerate() {
        let known = usize::try_from(token.id).is_ok_and(|id| id < model.n_vocab());
        let piece = if known { model.piece(Token(token.id)) } else { Vec::new() };
        if piece != token.piece {
            bail!(
                "token {position} of the trace is {} as {:?}, in this model it is {}; use the model that the trace is of",
                token.id,
                String::from_utf8_lossy(&token.piece),
                if known { format!("{:?}", String::from_utf8_lossy(&piece)) } else { "none".to_owned() }
            );
        }
    }
    let (n, n_ctx) = (trace.tokens.len(), model.n_ctx_train() as usize);
    if n > n_ctx {
        bail!("the trace has {n} tokens, but the model's context holds {n_ctx}");
    }
    Ok(trace.tokens.iter().map(|token| Token(token.id)).collect())
}

fn layers(args: &SaliencyArgs, model: &Model) -> anyhow::Result<BTreeSet<usize>> {
    let n_layer = model.n_layer();
    match &args.layers {
        Some(selection) => {
            Ok(selection.resolve(n_layer, Side::Shallow).map_err(stepflow::engine::EngineError::from)?)
        }
        None => Ok((0..n_layer).collect()),
    }
}

fn attention(
    args: &SaliencyArgs,
    model: &Arc<Model>,
    tokens: &[Token],
    pool: &Pool,
    layers: &BTreeSet<usize>,
    interrupt: &Interrupt,
) -> anyhow::Result<Saliency> {
    let default = ContextParams::default();
    let threads = args.threads.unwrap_or(default.n_threads);
    let params = ContextParams {
        n_ctx: tokens.len() as u32,
        n_threads: threads,
        n_threads_batch: threads,
        flash_attention: FlashAttention::Off,
        interrupt: Some(interrupt.flag()),
        ..default
    };
    let mut progress = Progress::new("attention", "tokens", tokens.len());
    let layers = layers.clone();
    let wanted = move |layer| layers.contains(&layer);
    Ok(saliency::attention(model.clone(), &params, tokens, pool, wanted, |done| progress.at(done))
        .map_err(stepflow::engine::EngineError::from)?)
}

fn gradient(
    args: &SaliencyArgs,
    model: &Model,
    tokens: &[Token],
    counted: &[bool],
    pool: &Pool,
    layers: &BTreeSet<usize>,
    interrupt: &Interrupt,
) -> anyhow::Result<Saliency> {
    let pass = Backward {
        model: model.path(),
        tokens,
        counted,
        n_threads: args.threads.unwrap_or(ContextParams::default().n_threads),
        interrupt: interrupt.flag(),
    };
    let n_layer = model.n_layer();
    let mut progress = Progress::new("gradient", "layers", n_layer);
    let shown = |layer| progress.at(n_layer - layer);
    Ok(saliency::gradient(&pass, pool, |layer| layers.contains(&layer), shown)
        .map_err(stepflow::engine::EngineError::from)?)
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
