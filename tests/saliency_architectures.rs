//! `stepflow saliency` on every architecture, as far as llama.cpp takes it; and that nothing stays behind.
#![cfg(unix)]

mod common;
mod maps;
mod program;
mod tiny;

use std::path::Path;
use std::sync::Arc;

use maps::table;
use program::{Outcome, run, stepflow};
use stepflow::backward::Pass;
use stepflow::llama::{Batch, Context, ContextParams, FlashAttention, Model, ModelParams, Row, Token};
use stepflow::saliency::{Estimator, Pool, Probe, attention, gradient};
use tiny::{Arch, WeightType};

fn measure(model: &Path, reply: &Path, out: &Path, flags: &[&str]) -> Outcome {
    let [model, reply, out] = [model, reply, out].map(|path| path.to_str().unwrap());
    let fixed = ["saliency", "-m", model, "-p", "Add 2 and 3.", "--reply", reply, "-o", out, "-t", "1"];
    let marks = ["--think-start", "<think>", "--think-end", "</think>"];
    run(stepflow(fixed.iter().chain(&marks).chain(flags)))
}

#[test]
fn every_architecture_is_measured_or_told_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let (reply, out) = (folder.path().join("reply.txt"), folder.path().join("maps"));
    let text = "<think>\nI take 2 and 3 and look at them. They make 5 together, I think.\n</think>\n\nIt is 5.";
    std::fs::write(&reply, text).unwrap();
    for arch in Arch::ALL.into_iter().chain(Arch::MORE) {
        let model = tiny::tiny(arch, WeightType::Q8_0);
        let outcome = measure(&model, &reply, &out, &[]);
        assert_eq!(outcome.code(), Some(0), "{arch:?}: {outcome:?}");
        assert!(table(&out.join("cells.csv")).iter().all(|row| row["method"] == "gradient"), "{arch:?}");

        let outcome = measure(&model, &reply, &out, &["--method", "probe", "--layers", "1,7"]);
        assert_eq!(outcome.code(), Some(0), "{arch:?}: {outcome:?}");
        let cells = table(&out.join("cells.csv"));
        assert!(cells.iter().all(|row| !row["value"].is_empty() && !row["below_noise"].is_empty()), "{arch:?}");
        assert!(cells.iter().any(|row| row["value"] != "0.0"), "{arch:?}");
    }
}

#[test]
fn what_ran_before_runs_the_same_after() {
    for arch in [Arch::Llama, Arch::Qwen3] {
        let path = tiny::tiny(arch, WeightType::Q4_0);
        let model = Arc::new(Model::load(&path, &ModelParams::default()).unwrap());
        let params = ContextParams { n_ctx: 256, flash_attention: FlashAttention::Off, ..ContextParams::default() };
        let tokens: Vec<Token> = (0..40).map(|i| Token(i * 5 % 200)).collect();
        let row = |(position, &token): (usize, &Token)| Row { logits: true, ..Row::plain(token, position) };
        let batch = Batch { rows: tokens.iter().enumerate().map(row).collect() };
        let mut context = Context::new(model.clone(), &params, None).unwrap();
        let mut logits = || -> Vec<u32> {
            context.truncate(0, 0);
            context.decode(&batch).unwrap();
            (0..tokens.len())
                .flat_map(|row| context.logits(row).iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                .collect()
        };
        let before = logits();

        let (pool, counted) = (Pool::new([0..10, 10..25, 25..40]), vec![true; tokens.len()]);
        attention(model.clone(), &params, &tokens, &pool, |_| true, |_| {}).unwrap();
        let (tokens_of, layers) = (&tokens, [0, 3]);
        let probe = Probe {
            model: model.clone(),
            params: &params,
            tokens: tokens_of,
            counted: &counted,
            pool: &pool,
            layers: &layers,
            estimator: Estimator::Signed,
            pairs: 1,
            budget: None,
            seed: 1,
        };
        let mut done = 0;
        probe.run(&mut |forwards| done = forwards).unwrap();
        assert_eq!(done, probe.n_forwards(), "{arch:?}");
        let pass = Pass { n_threads: 1, ..Pass::new(&path, tokens_of, &counted) };
        gradient(&pass, &pool, false, |_| true, |_, _| {}).unwrap();

        assert!(logits() == before, "{arch:?}: other logits than before");
    }
}
