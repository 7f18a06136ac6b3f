//! The model inside the program: it answers where no other is named, wherever and however it can be laid down.
#![cfg(unix)]

mod program;

use std::path::{Path, PathBuf};
use std::process::Command;

use program::{Outcome, Running, run, stepflow};
use stepflow::builtin;
use stepflow::engine::{ChatTemplate, Message};
use stepflow::gguf::{GgmlType, Gguf};
use stepflow::llama::{Model, ModelParams};
use tempfile::TempDir;

const QUESTION: &str =
    "Ann has 14 fewer coins than Bob. Ida has 9 coins. Bob has 3 dozen coins. How many coins does Ann have?";

const NO_MODEL: &str = "stepflow: no model named; using the embedded one";

/// The program with a cache and a folder for temporary files of its own.
fn command(args: &[&str], cache: &Path, temporary: &Path) -> Command {
    // One thread: tests run side by side, and threads that wait for each other wait by spinning.
    let mut command = stepflow(args);
    command.env("LLAMA_ARG_THREADS", "1").env("XDG_CACHE_HOME", cache).env("TMPDIR", temporary);
    command
}

fn question(cache: &Path, temporary: &Path) -> Command {
    command(&["-p", QUESTION], cache, temporary)
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The files of a folder, hidden ones too.
fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn assert_answers(outcome: &Outcome) {
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.text().contains("\\boxed{22}"), "{outcome:?}");
    assert!(outcome.stderr.starts_with(NO_MODEL), "{outcome:?}");
}

#[test]
fn it_answers_where_no_model_is_named() {
    let (cache, temporary) = (folder(), folder());
    let first = run(question(cache.path(), temporary.path()));
    assert_answers(&first);
    assert_eq!(files(&cache.path().join("stepflow")).len(), 1);
    // It recommends to be greedy, so it says the same again.
    let again = run(question(cache.path(), temporary.path()));
    assert_eq!(first.stdout, again.stdout);
    assert!(files(temporary.path()).is_empty(), "the cache can be written");
}

#[test]
fn every_command_takes_it() {
    let (cache, temporary) = (folder(), folder());
    let text = |args: &[&str]| {
        let outcome = run(command(args, cache.path(), temporary.path()));
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        assert!(outcome.stderr.starts_with(NO_MODEL), "{outcome:?}");
        outcome.text()
    };
    assert!(!text(&["-no-cnv", "-p", "Ann has", "-n", "4"]).is_empty());
    assert!(text(&["score", "-p", QUESTION]).lines().count() > 10);
    assert!(text(&["bench", "-p", "8", "-n", "4", "-r", "1", "-t", "1"]).contains("tg4"));
    let facts: serde_json::Value = serde_json::from_str(&text(&["inspect", "--json"])).unwrap();
    assert_eq!(facts["embedded"], true);
    assert_eq!(facts["name"], builtin::NAME);
    assert_eq!(facts["family"], "think-tags");
    assert_eq!(facts["stepflow"]["works"], true);
    assert!(text(&["inspect"]).lines().next().unwrap().ends_with("(embedded)"));
}

#[test]
fn without_a_cache_it_lies_in_the_temporary_folder() {
    let (cache, temporary) = (folder(), folder());
    let file = cache.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_answers(&run(question(&file, temporary.path())));
    assert_eq!(files(temporary.path()).len(), 1);
    run(question(&file, &file)).assert_fails(1, "set XDG_CACHE_HOME to a folder that can be written");
}

#[test]
fn a_damaged_file_is_replaced() {
    let (cache, temporary) = (folder(), folder());
    let answer = run(question(cache.path(), temporary.path()));
    let path = files(&cache.path().join("stepflow")).remove(0);
    let good = std::fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let longer = [&good[..], b"more"].concat();
    for damaged in [&flipped[..], &good[..good.len() - 1], &longer, b""] {
        std::fs::write(&path, damaged).unwrap();
        let outcome = run(question(cache.path(), temporary.path()));
        assert_eq!(outcome.stdout, answer.stdout, "{} bytes", damaged.len());
        assert!(std::fs::read(&path).unwrap() == good, "{} bytes stay", damaged.len());
    }
}

#[test]
fn programs_that_start_at_once_share_it() {
    let (cache, temporary) = (folder(), folder());
    let start = |_| Running::start(question(cache.path(), temporary.path()));
    let running: Vec<Running> = (0..4).map(start).collect();
    let outcomes: Vec<Outcome> = running.into_iter().map(Running::finish).collect();
    for outcome in &outcomes {
        assert_answers(outcome);
        assert_eq!(outcome.stdout, outcomes[0].stdout);
    }
    assert_eq!(files(&cache.path().join("stepflow")).len(), 1);
}

#[test]
fn its_template_opens_thinking_and_drops_what_was_thought_before() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/stepflow-reasoner.gguf");
    let model = Model::load(path.as_ref(), &ModelParams::default()).unwrap();
    let template = ChatTemplate::new(&model, None, Default::default()).unwrap();
    let messages = [("user", " Hi"), ("assistant", "A greeting.\n</think>\n\nHello."), ("user", "What of </think>?")];
    let prompt = template.render(&messages.map(|(role, content)| Message::new(role, content))).unwrap();
    assert_eq!(
        prompt.conversation,
        "<|im_start|>user\n Hi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n\
         <|im_start|>user\nWhat of </think>?<|im_end|>\n"
    );
    assert_eq!(prompt.opening, "<|im_start|>assistant\n<think>\n");
}

#[test]
fn it_can_be_quantized_further() {
    let folder = folder();
    let from = folder.path().join("from.gguf");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/models/stepflow-reasoner.gguf"), &from).unwrap();
    let to = folder.path().join("to.gguf");
    stepflow::llama::quantize(&from, &to, GgmlType::Q4_0).unwrap();
    let matrices =
        |path: &Path, ty| Gguf::open(path).unwrap().tensors().iter().filter(|tensor| tensor.ty == ty).count();
    assert_eq!(matrices(&to, GgmlType::Q4_0), matrices(&from, GgmlType::Q8_0));
    let outcome = run(stepflow(["-m", to.to_str().unwrap(), "-t", "1", "-p", QUESTION]));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.text().contains("\\boxed{22}"), "{outcome:?}");

    let error = stepflow::llama::quantize(&from, &to, GgmlType::Q8_K).unwrap_err().to_string();
    assert!(error.contains("expected F32, F16, Q8_0 or Q4_0, found Q8_K"), "{error}");
    let nowhere = folder.path().join("no/such/folder.gguf");
    let error = stepflow::llama::quantize(&from, &nowhere, GgmlType::Q4_0).unwrap_err().to_string();
    assert!(error.contains("folder.gguf") && !error.contains('\n'), "{error}");
    assert_eq!(files(folder.path()).len(), 2, "nothing is left behind");
}
