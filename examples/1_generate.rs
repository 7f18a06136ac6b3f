//! Generates an answer with StepFlow on: `cargo run --release --example 1_generate -- MODEL.gguf`.

use std::io::Write;
use std::sync::Arc;

use stepflow::engine::{ChatTemplate, Event, Message, Request, Sampler, SamplingParams, Session, SessionParams};
use stepflow::llama::{ContextParams, Model, ModelParams};
use stepflow::stepflow::StepFlowConfig;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("expected a GGUF file")?;
    let model = Arc::new(Model::load(path.as_ref(), &ModelParams::default())?);
    let context = ContextParams { n_ctx: 1024, ..ContextParams::default() };
    let params = SessionParams { context, stepflow: StepFlowConfig::paper(), ..SessionParams::default() };
    let mut session = Session::new(model.clone(), &params)?;

    let template = ChatTemplate::new(&model, None, Default::default())?;
    let prompt = template.render(&[Message::new("user", "How many seconds are there in an hour?")])?;
    let (tokens, question) = session.tokenize(&prompt);
    let request = Request { tokens, question, max_tokens: Some(80), reasoning_budget: None, stop: &[] };
    let mut sampler = Sampler::new(&SamplingParams { temp: 0.0, ..SamplingParams::default() }, &model);

    let summary = session.generate(&request, &mut sampler, &mut |event| {
        if let Event::Token { piece, .. } = event {
            let _ = std::io::stdout().write_all(piece);
        }
    })?;
    let total = session.stepflow().map(|control| control.stats().total()).unwrap_or_default();
    println!(
        "\n{:.1} t/s, {} rows bridged, {} injections",
        summary.generation_speed(),
        total.rows_bridged,
        total.injections
    );
    Ok(())
}
