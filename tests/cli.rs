//! The program as a user meets it: what it says of bad input, what it keeps when it is stopped, and that its flags do
//! what they say.
#![cfg(unix)]

mod common;
mod program;
mod tiny;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use program::{Outcome, Running, run, run_with, stepflow};
use stepflow::gguf::{GgmlType, GgufWriter};
use stepflow::trace::{Segment, TraceFile};
use tempfile::TempDir;
use tiny::{Arch, WeightType};

/// What makes runs quick and repeatable: greedy, on one thread, for ggml's threads wait for each other in a busy loop.
const QUICK: [&str; 7] = ["--temp", "0", "-t", "1", "--no-warmup", "-c", "512"];

/// A context that takes a while to fill.
const LARGE: [&str; 2] = ["-c", "65536"];

fn model() -> PathBuf {
    tiny::tiny(Arch::Qwen3, WeightType::F32)
}

/// Arguments of a quick run of `model`.
fn args_for(model: &Path, more: &[&str]) -> Vec<OsString> {
    let own = [OsString::from("-m"), model.into()].into_iter();
    own.chain(QUICK.iter().chain(more).map(OsString::from)).collect()
}

fn args(more: &[&str]) -> Vec<OsString> {
    args_for(&model(), more)
}

/// Answers `hi` on the tiny model.
fn answer(more: &[&str]) -> Outcome {
    run(stepflow(args(&[&["-p", "hi", "-n", "8"], more].concat())))
}

/// A file with these bytes, and its path as text.
fn file(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read_trace(path: &str) -> TraceFile {
    TraceFile::read(&std::fs::read(path).unwrap()).unwrap()
}

fn text_of(trace: &TraceFile) -> String {
    let bytes: Vec<u8> = trace.tokens.iter().flat_map(|token| token.piece.clone()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn bad_models_are_refused_in_one_line() {
    let folder = folder();
    let good = std::fs::read(model()).unwrap();
    let part = |name: &str, length: usize| file(&folder, name, &good[..length]);
    let mut flipped = good.clone();
    flipped[9] ^= 0x40;
    let mut unknown = good.clone();
    while let Some(at) = unknown.windows(5).position(|window| window == b"qwen3") {
        unknown[at..at + 5].copy_from_slice(b"qwen?");
    }
    let cases = [
        ("/no/such/model.gguf".to_owned(), "/no/such/model.gguf: cannot read"),
        (folder.path().to_str().unwrap().to_owned(), "cannot read"),
        (file(&folder, "empty.gguf", ""), "empty file"),
        (file(&folder, "page.gguf", "<!DOCTYPE html>"), "beginning with \"GGUF\""),
        (part("header.gguf", 900), "damaged"),
        (part("half.gguf", good.len() / 2), "truncated"),
        (part("almost.gguf", good.len() - 1), "truncated"),
        (file(&folder, "flipped.gguf", flipped), "damaged"),
        (file(&folder, "unknown.gguf", unknown), "unknown model architecture: 'qwen?'"),
    ];
    for (path, says) in cases {
        run(stepflow(args_for(Path::new(&path), &["-p", "hi"]))).assert_fails(1, says);
    }
}

/// An adapter file of rank 4 for the query of the first layer, with rows of `width`.
fn adapter(folder: &TempDir, arch: &str, width: u64) -> String {
    let mut writer = GgufWriter::new();
    writer.metadata("general.type", "adapter").unwrap();
    writer.metadata("general.architecture", arch).unwrap();
    writer.metadata("adapter.type", "lora").unwrap();
    writer.metadata("adapter.lora.alpha", 4_f32).unwrap();
    let zeros = vec![0; (width * 4 * 4) as usize];
    writer.tensor("blk.0.attn_q.weight.lora_a", &[width, 4], GgmlType::F32, zeros.clone()).unwrap();
    writer.tensor("blk.0.attn_q.weight.lora_b", &[4, width], GgmlType::F32, zeros).unwrap();
    let mut bytes = Vec::new();
    writer.finish(&mut bytes).unwrap();
    file(folder, &format!("{arch}-{width}.gguf"), bytes)
}

#[test]
fn only_an_adapter_of_the_model_is_applied() {
    let folder = folder();
    let model = model();
    for (lora, says) in [
        (model.to_str().unwrap().to_owned(), "expect general.type to be 'adapter'"),
        (adapter(&folder, "llama", 256), "arch mismatch"),
        (adapter(&folder, "qwen3", 128), "shape"),
        (file(&folder, "text.gguf", "text"), "beginning with \"GGUF\""),
        ("/no/such/adapter.gguf".to_owned(), "/no/such/adapter.gguf: cannot read"),
    ] {
        answer(&["--lora", &lora]).assert_fails(1, says);
    }
    let fitting = answer(&["--lora", &adapter(&folder, "qwen3", 256)]);
    assert_eq!(fitting.code(), Some(0), "{fitting:?}");
    assert_eq!(fitting.stdout, answer(&[]).stdout, "an adapter of zeros changes nothing");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_in_one_line() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--stepflow", "--oeb-layers", "0-8"], 2, "layer 8 is outside the model, whose layers are 0-7"),
        (&["--stepflow", "--smi-layers", "99999999999"], 2, "layer 99999999999 is outside the model"),
        (&["-c", "16k"], 2, "expected a number of tokens up to 16777216, found `16k`"),
        (&["-c", "-1"], 2, "expected a number of tokens up to 16777216, found `-1`"),
        (&["-c", "16777217"], 2, "expected a number of tokens up to 16777216"),
        (&["--oeb-layers", "1-"], 2, "expected layers as"),
        (&["--tau-max", "1.01"], 2, "expected tau-max in 0..1, found 1.01"),
        (&["--tau-max", "-0.1"], 2, "expected tau-max in 0..1"),
        (&["--tau-max", "NaN"], 2, "expected tau-max in 0..1"),
        (&["--alpha", "inf"], 2, "expected alpha in -10..10"),
        (&["--alpha", "x"], 2, "'--alpha <A>'"),
        (&["--smi-window", "0"], 2, "expected smi-window"),
        (&["--family", "thinker"], 2, "use one of think-tags, harmony, implicit, custom"),
        (&["--think-end", ""], 2, "--think-end"),
        (&["-fa", "off", "-ctv", "q4_0"], 2, "-ctv q4_0 needs flash attention"),
        (&["-ctk", "q9"], 2, "expected one of f32, f16"),
        (&["-ctv", "int8"], 2, "expected one of f32, f16"),
        (&["-b", "0"], 2, "--batch-size"),
        (&["-ub", "0"], 2, "--ubatch-size"),
        (&["-c", "-1"], 2, "-1"),
        (&["-t", "100000"], 2, "expected a number up to 512, found `100000`"),
        (&["-ngl", "many"], 2, "expected a number, `auto` or `all`"),
        (&["--seed", "5000000000"], 2, "--seed"),
        (&["--temp", "NaN"], 1, "--temp: expected a finite number"),
        (&["--repeat-penalty", "0"], 1, "--repeat-penalty: expected a number above 0"),
        (&["--samplers", "top_k;luck"], 2, "unknown sampler `luck`"),
        (&["--colour"], 2, "unexpected argument '--colour'"),
        (&["--mirostat", "2"], 2, "llama.cpp's --mirostat is not taken here; the nearest is --samplers"),
        (&["--mmproj", "x"], 2, "llama.cpp's --mmproj is not taken here; nothing comes near it, see --help"),
        (&["-f", "x"], 2, "cannot be used with"),
        (&["-sys", "x", "-sysf", "y"], 2, "cannot be used with"),
        (&["--verbose", "--log-disable"], 2, "cannot be used with"),
        (&["--chat-template", "a", "--chat-template-file", "b"], 2, "cannot be used with"),
        (&["--hf-file", "x"], 2, "--hf-repo"),
        (&["--chat-template", "{% if %}"], 1, "chat template: Unexpected token: %}"),
        (&["--chat-template", "{{ raise_exception('roles\nmust') }}"], 1, "roles must"),
        (&["--chat-template-file", "/no/such.jinja"], 1, "cannot read /no/such.jinja"),
        (&["--chat-template-kwargs", "{"], 1, "expected a JSON object"),
        (&["--chat-template-kwargs", "[1]"], 1, "expected a JSON object"),
        (&["--system-prompt-file", "/no/such.txt"], 1, "cannot read /no/such.txt"),
    ];
    for (flags, code, says) in cases {
        answer(flags).assert_fails(*code, says);
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let folder = folder();
    let path = file(&folder, "latin1.txt", b"caf\xe9");
    run(stepflow(args(&["-f", &path]))).assert_fails(1, "invalid byte at offset 3");
    run(stepflow(args(&["-p", "hi", "--chat-template-file", &path]))).assert_fails(1, "invalid byte at offset 3");
    run_with(stepflow(args(&[])), b"caf\xe9").assert_fails(1, "stdin: expected UTF-8 text");
    let mut arguments = args(&["-p"]);
    arguments.push(OsString::from_vec(b"caf\xe9".to_vec()));
    run(stepflow(arguments)).assert_fails(2, "UTF-8");
}

#[test]
fn without_a_prompt_and_a_terminal_there_is_nothing_to_answer() {
    for flags in [&[][..], &["-st"], &["-no-cnv"]] {
        run(stepflow(args(flags))).assert_fails(1, "stdin is empty; give a prompt with -p, -f or on stdin");
    }
    let piped = run_with(stepflow(args(&["-n", "8"])), b"hi\n");
    assert_eq!(piped.stdout, answer(&[]).stdout, "{piped:?}");
}

#[test]
fn a_prompt_longer_than_the_context_ends_with_code_3() {
    let folder = folder();
    let path = file(&folder, "long.txt", "then we add the next number ".repeat(100));
    for flags in [&[][..], &["--stepflow"], &["-no-cnv"]] {
        let flags = [&["-f", &path, "-c", "256"], flags].concat();
        run(stepflow(args(&flags))).assert_fails(3, "the context holds 256; use a larger -c");
    }
}

#[test]
fn a_full_context_ends_with_code_3_and_keeps_the_answer() {
    let folder = folder();
    // Leaves room for some tokens, too few for the model to end by itself.
    let prompt = "then we add the next number ".repeat(37);
    let path = folder.path().join("trace.json");
    for flags in [&[][..], &["--stepflow"], &["-no-cnv"]] {
        let flags = [&["-p", &prompt, "-c", "256", "--save-trace", path.to_str().unwrap()], flags].concat();
        let outcome = run(stepflow(args(&flags)));
        assert_eq!(outcome.code(), Some(3), "{outcome:?}");
        assert!(outcome.stderr.contains("the context of 256 tokens is full"), "{}", outcome.stderr);
        assert!(!outcome.text().trim().is_empty(), "{outcome:?}");
        assert_eq!(read_trace(path.to_str().unwrap()).tokens.len(), 256);
    }
}

#[test]
fn no_tokens_asked_for_are_no_error() {
    let outcome = answer(&["-n", "0"]);
    assert_eq!((outcome.code(), outcome.text().trim()), (Some(0), ""));
}

/// Where nothing can be written is known before anything is generated.
#[test]
fn results_that_cannot_be_written_are_refused_before_the_work() {
    let folder = folder();
    let in_no_folder = folder.path().join("no/trace.json");
    let a_folder = folder.path().to_str().unwrap();
    for flag in ["--save-trace", "--stats"] {
        answer(&[flag, in_no_folder.to_str().unwrap()]).assert_fails(1, "there is no folder");
        answer(&[flag, a_folder]).assert_fails(1, "it is a folder");
        if cfg!(target_os = "linux") {
            answer(&[flag, "/proc/stepflow.json"]).assert_fails(1, "cannot write /proc/stepflow.json");
        }
    }
    assert_eq!(std::fs::read_dir(a_folder).unwrap().count(), 0, "nothing is left behind");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_costs_neither_the_answer_nor_the_other_file() {
    let folder = folder();
    let trace = folder.path().join("trace.json");
    let outcome = answer(&["--stepflow", "--stats", "/dev/full", "--save-trace", trace.to_str().unwrap()]);
    assert_eq!((outcome.code(), &outcome.stdout), (Some(1), &answer(&["--stepflow"]).stdout));
    assert!(outcome.stderr.ends_with("stepflow: cannot write /dev/full: No space left on device (os error 28)\n"));
    assert!(text_of(&read_trace(trace.to_str().unwrap())).contains("hi"));
}

#[test]
fn a_reader_that_goes_away_ends_the_run() {
    for flags in [&[][..], &["--stepflow"], &["-no-cnv"]] {
        let mut command = stepflow(args(&[&["-p", "we", "-n", "-1"], &LARGE[..], flags].concat()));
        let (reader, writer) = std::io::pipe().unwrap();
        command.stdout(writer);
        let running = Running::start(command);
        drop(reader);
        let outcome = running.finish();
        assert_eq!(outcome.code(), Some(1), "{flags:?}: {outcome:?}");
        // Its context is larger than what it was trained with, which is said first.
        let said: Vec<_> = outcome.stderr.lines().filter(|line| !line.contains("was trained with")).collect();
        assert!(said.len() == 1 && said[0].starts_with("stepflow: cannot write to stdout"), "{outcome:?}");
    }
}

#[test]
fn nobody_has_to_read_what_is_said_beside_the_answer() {
    let mut command = stepflow(args(&["-p", "hi", "-n", "8"]));
    let (reader, writer) = std::io::pipe().unwrap();
    command.stderr(writer);
    let running = Running::start(command);
    drop(reader);
    let outcome = running.finish();
    assert_eq!((outcome.code(), outcome.stdout), (Some(0), answer(&[]).stdout));
}

#[test]
fn closed_standard_streams_do_no_harm() {
    let shell = |redirections: &str| {
        let mut command = program::program("sh", ["-c", &format!("\"$@\" {redirections}"), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_stepflow")).args(args(&["-p", "hi", "-n", "8"]));
        run(command)
    };
    assert_eq!(shell("<&-").stdout, answer(&[]).stdout);
    assert_eq!(shell("2>&-").stdout, answer(&[]).stdout);
    // The runtime opens closed streams on /dev/null.
    assert!(matches!(shell(">&-").code(), Some(0 | 1)));
}

#[test]
fn the_environment_speaks_llama_clis_names() {
    let full = |command: &mut std::process::Command| {
        command.env("LLAMA_ARG_MODEL", model()).env("LLAMA_ARG_CTX_SIZE", "256");
    };
    let mut command = stepflow(["-p", "hi", "--temp", "0", "-t", "1", "--no-warmup"]);
    full(&mut command);
    let outcome = run(command);
    assert!(outcome.stderr.contains("the context of 256 tokens is full"), "{outcome:?}");
    let mut command = stepflow(["-p", "hi"]);
    full(&mut command);
    command.env("LLAMA_ARG_CTX_SIZE", "many");
    run(command).assert_fails(2, "many");
}

#[test]
fn a_link_called_llama_cli_works_the_same() {
    let folder = folder();
    let link = folder.path().join("llama-cli");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_stepflow"), &link).unwrap();
    let linked = run(program::program(link, args(&["-p", "hi", "-n", "8", "-ngl", "0", "-fa", "off", "-st"])));
    assert_eq!((linked.code(), linked.stdout), (Some(0), answer(&["-fa", "off"]).stdout));
}

#[test]
fn the_last_of_a_repeated_flag_counts() {
    assert_eq!(answer(&["-n", "3"]).stdout, answer(&["-n", "5", "-n", "3"]).stdout);
}

#[test]
fn thinking_that_never_comes_is_said() {
    let flags = ["-no-cnv", "--stepflow", "--family", "think-tags"];
    let outcome = answer(&flags);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("StepFlow never engaged: thinking opens with \"<think>\""), "{outcome:?}");
    let Some(smollm2) = common::smollm2() else { return };
    let mut flags = args_for(&smollm2, &["-p", "What is 2+3?", "-n", "8"]);
    flags.extend(["--stepflow", "--family", "think-tags"].map(OsString::from));
    let outcome = run(stepflow(flags));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("StepFlow never engaged"), "{outcome:?}");
}

#[test]
fn ctrl_c_keeps_what_was_printed() {
    let folder = folder();
    let [trace, stats] = ["trace.json", "stats.json"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    for flags in [&[][..], &["--stepflow"], &["-no-cnv"]] {
        let files = ["--save-trace", &trace, "--stats", &stats];
        let mut running =
            Running::start(stepflow(args(&[&["-p", "we", "-n", "-1"], &LARGE[..], &files, flags].concat())));
        running.wait_until(|stdout, _| stdout.len() > 40);
        running.interrupt();
        let outcome = running.finish();
        assert_eq!(outcome.code(), Some(130), "{outcome:?}");
        assert!(outcome.stdout.len() > 40 && outcome.stdout.ends_with(b"\n"), "{outcome:?}");
        assert!(read_trace(&trace).tokens.len() > 10);
        // Without StepFlow there is nothing to count.
        assert_eq!(Path::new(&stats).exists(), flags.contains(&"--stepflow"));
        if flags.contains(&"--stepflow") {
            serde_json::from_slice::<serde_json::Value>(&std::fs::read(&stats).unwrap()).unwrap();
            std::fs::remove_file(&stats).unwrap();
        }
        std::fs::remove_file(&trace).unwrap();
    }
}

#[test]
fn ctrl_c_stops_a_long_prompt() {
    let folder = folder();
    let path = file(&folder, "long.txt", "then we add the next number ".repeat(8000));
    let trace = folder.path().join("trace.json").to_str().unwrap().to_owned();
    for flags in [&[][..], &["--stepflow"]] {
        let flags = [&["-v", "-f", &path, "-n", "1", "--save-trace", &trace], &LARGE[..], flags].concat();
        let mut running = Running::start(stepflow(args(&flags)));
        // The last that llama.cpp says of a new context; from there it takes milliseconds to the prompt, seconds on
        // a busy machine, and the prompt takes half a minute.
        running.wait_until(|_, stderr| stderr.contains("sched_reserve: reserve took"));
        std::thread::sleep(std::time::Duration::from_secs(3));
        running.interrupt();
        let outcome = running.finish();
        assert_eq!(outcome.code(), Some(130), "{outcome:?}");
        assert_eq!(outcome.text().trim(), "", "{outcome:?}");
        assert!(text_of(&read_trace(&trace)).contains("then we add the next number"));
    }
}

/// A chat with one line a turn.
fn chat(lines: &str, more: &[&str]) -> Outcome {
    run_with(stepflow(args(&[&["--simple-io", "-n", "8"], more].concat())), lines.as_bytes())
}

#[test]
fn ctrl_c_stops_an_answer_and_the_chat_goes_on() {
    let mut command = stepflow(args(&[&["--simple-io", "-n", "-1"], &LARGE[..]].concat()));
    command.stdin(std::process::Stdio::piped());
    let mut running = Running::start(command);
    running.say(b"we\n");
    running.wait_until(|stdout, _| stdout.len() > 40);
    running.interrupt();
    running.wait_until(|_, stderr| stderr.matches("\n> ").count() == 2);
    running.say(b"/stats\n");
    running.wait_until(|_, stderr| stderr.contains("/stepflow on makes it so"));
    running.say(b"/exit\n");
    let outcome = running.finish();
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
}

#[test]
fn commands_of_a_chat() {
    let folder = folder();
    let notes = file(&folder, "notes.txt", "wait, first add");
    let trace = folder.path().join("trace.json").to_str().unwrap().to_owned();
    let once = chat("hi\n", &[]).text();

    let outcome = chat("hi\n/regen\n", &[]);
    assert_eq!(outcome.text(), once.repeat(2), "a greedy answer is regenerated as it was");
    assert!(chat("/regen\n", &[]).stderr.contains("no answer to regenerate"));

    let outcome = chat("hi\n/clear\nhi\n", &[]);
    assert_eq!(outcome.text(), once.repeat(2), "nothing is left of a cleared conversation");

    let outcome = chat(&format!("/read {notes}\nhi\n"), &["--save-trace", &trace]);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(text_of(&read_trace(&trace)).contains("wait, first add\nhi"));
    assert!(chat("/read /no/such\nhi\n", &[]).stderr.contains("stepflow: cannot read /no/such"));

    let outcome =
        chat("hi\n/stats table\n/stepflow off\n/regen\n/stepflow\n/stepflow on\n", &["--stepflow", "--alpha", "1"]);
    for says in ["layer  rows seen", "StepFlow is off.", "expected /stepflow on or /stepflow off", "StepFlow is on."] {
        assert!(outcome.stderr.contains(says), "{says}: {outcome:?}");
    }
    let outcome = chat("/stepflow on\n/stats table\n", &[]);
    assert!(outcome.stderr.contains("StepFlow is on.") && outcome.stderr.contains("layer  rows seen"), "{outcome:?}");

    let outcome = chat("hi\n/stats\n/stepflow off\n/stats\n/help\n", &["--stepflow", "-n", "60"]);
    for says in [" the share of attention on the question ", "rows of layers 0 to 1", "StepFlow is off now.", "/regen "]
    {
        assert!(outcome.stderr.contains(says), "{says}: {outcome:?}");
    }
    let outcome = chat("/read\n/stats all\n/stepflow on\n/stats\n", &[]);
    for says in ["expected /read FILE", "expected /stats or", "StepFlow has had nothing to do so far."] {
        assert!(outcome.stderr.contains(says), "{says}: {outcome:?}");
    }

    let outcome = chat("/rewind\n\n/exit\nhi\n", &[]);
    assert!(outcome.stderr.contains("no command /rewind; there are /exit /regen"), "{outcome:?}");
    assert_eq!((outcome.code(), outcome.text().as_str()), (Some(0), ""), "nothing is answered after /exit");
}

#[test]
fn messages_of_several_lines() {
    let folder = folder();
    let trace = folder.path().join("trace.json").to_str().unwrap().to_owned();
    for (lines, turns) in [
        ("one\\\ntwo\n", &["one\ntwo"][..]),
        ("one\\\r\ntwo\r\n", &["one\ntwo"]),
        ("\"\"\"\none\n\n/exit\n\"\"\"\ntwo\n", &["one\n\n/exit", "two"]),
        ("Add: \"\"\"\n1\n2\n\"\"\"\n", &["Add: \"\"\"\n1\n2\n\"\"\""]),
        ("\"\"\"\none\ntwo", &["one\ntwo"]),
        ("one\\", &["one"]),
        ("1 & 2 \\\\\n3\n", &["1 & 2 \\\\", "3"]),
        ("  one\n", &["  one"]),
        ("/* one */\n", &["/* one */"]),
    ] {
        let outcome = chat(lines, &["-n", "2", "--save-trace", &trace]);
        assert_eq!(outcome.code(), Some(0), "{lines:?}: {outcome:?}");
        let text = text_of(&read_trace(&trace));
        let said: Vec<&str> =
            text.split("<|im_start|>user\n").skip(1).filter_map(|turn| turn.split("<|im_end|>").next()).collect();
        assert_eq!(said, turns, "{lines:?}: {text}");
    }
}

#[test]
fn a_turn_that_fails_does_not_end_the_chat() {
    let long = "then we add the next number ".repeat(200);
    let outcome = chat(&format!("{long}\nhi\n"), &[]);
    assert!(outcome.stderr.contains("use a larger -c"), "{outcome:?}");
    assert_eq!(outcome.text(), chat("hi\n", &[]).text(), "the failed turn is forgotten");

    let folder = folder();
    let notes = file(&folder, "notes.txt", &long);
    let outcome = chat(&format!("/read {notes}\nhi\nhi\n"), &[]);
    assert!(outcome.stderr.contains("what was read for it. /clear makes room"), "{outcome:?}");
    assert_eq!(outcome.text(), chat("hi\n", &[]).text(), "and what was read for it");
}

/// What the cache keeps of earlier turns gives the answer that the whole conversation, read anew, would give.
#[test]
fn a_conversation_carries_over() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (chatted, anew) = (path("chatted.json"), path("anew.json"));
    for arch in [Arch::Qwen3, Arch::Llama] {
        let model = tiny::tiny(arch, WeightType::F32);
        let flags = ["--simple-io", "-n", "8", "--reasoning-format", "none", "--save-trace", &chatted];
        let outcome = run_with(stepflow(args_for(&model, &flags)), b"hi\nwe add the first number\n");
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        let chatted = read_trace(&chatted);
        // The last thought opens with a marker and a line break.
        let opened = chatted.tokens.iter().rposition(|token| token.piece == b"<think>").unwrap() + 2;
        let text: Vec<u8> = chatted.tokens[..opened].iter().flat_map(|token| token.piece.clone()).collect();
        assert!(String::from_utf8_lossy(&text).contains("hi<|im_end|>"), "the first turn is part of it");
        // A file's last line break is not part of the prompt.
        let prompt = file(&folder, "prompt.txt", [&text[..], b"\n"].concat());
        let flags = ["-no-cnv", "-f", &prompt, "-n", "8", "--save-trace", &anew];
        assert_eq!(run(stepflow(args_for(&model, &flags))).code(), Some(0));
        let ids = |trace: &TraceFile| trace.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
        assert_eq!(ids(&chatted), ids(&read_trace(&anew)), "{arch:?}");
    }
}

#[test]
fn a_completion_shows_its_prompt_unless_told_not_to() {
    let with = answer(&["-no-cnv"]).text();
    let without = answer(&["-no-cnv", "--no-display-prompt"]).text();
    assert_eq!(with, format!("hi{without}"));
    assert!(without.trim().len() > 4, "{without:?}");
}

#[test]
fn a_stop_text_ends_the_answer() {
    let folder = folder();
    let path = folder.path().join("trace.json").to_str().unwrap().to_owned();
    let flags = ["-no-cnv", "-n", "40", "--save-trace", &path];
    answer(&flags);
    let all = read_trace(&path).tokens;
    let plain = |piece: &[u8]| piece.iter().all(u8::is_ascii_graphic) && piece != b"hi";
    let stop = all.iter().skip(4).find(|token| plain(&token.piece)).unwrap();
    let stop = String::from_utf8(stop.piece.clone()).unwrap();
    let outcome = answer(&[&flags[..], &["-r", "never said", "-r", &stop]].concat());
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let stopped = read_trace(&path);
    assert!(stopped.tokens.len() < all.len(), "{stop:?} is said before the end");
    assert!(text_of(&stopped).ends_with(&stop));
}

#[test]
fn a_budget_closes_thinking() {
    let folder = folder();
    let path = folder.path().join("trace.json").to_str().unwrap().to_owned();
    let thinking = |flags: &[&str]| {
        let outcome = answer(&[&["-n", "30", "--save-trace", &path], flags].concat());
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        let trace = read_trace(&path);
        let of = |segment| trace.tokens.iter().filter(|token| token.segment == segment).count();
        (of(Segment::Thinking), of(Segment::Summary), text_of(&trace))
    };
    let (unlimited, summary, _) = thinking(&[]);
    assert!(unlimited >= 30 && summary == 0, "the tiny model thinks to the end: {unlimited}, {summary}");
    for budget in [0, 5] {
        let (limited, summary, text) = thinking(&["--reasoning-budget", &budget.to_string()]);
        // A line break before the marker, and the marker; the opening of thinking counts as thinking too.
        assert!((budget..=budget + 4).contains(&limited), "{budget}: {limited}");
        assert!(summary > 20, "{budget}: {summary}");
        assert!(text.contains("\n</think>"), "{text}");
    }
    let custom = ["-no-cnv", "--think-start", "hi", "--think-end", "((done))", "--reasoning-budget", "3"];
    let (_, summary, text) = thinking(&custom);
    assert!(text.contains("\n((done))") && summary > 5, "{text}");
}

#[test]
fn a_seed_fixes_the_answer() {
    let sampled = |seed: &str| answer(&["-n", "24", "--temp", "1.5", "--seed", seed]).stdout;
    assert_eq!(sampled("7"), sampled("7"));
    assert_ne!(sampled("7"), sampled("8"));
    assert_eq!(answer(&["--seed", "7"]).stdout, answer(&["--seed", "8"]).stdout, "greedy needs no seed");
}

#[test]
fn repairs_of_no_strength_change_nothing() {
    for arch in Arch::ALL {
        let model = tiny::tiny(arch, WeightType::F32);
        let flags = ["-p", "we add the first number", "-n", "40", "-fa", "off"];
        let plain = run(stepflow(args_for(&model, &flags)));
        let off = ["--stepflow", "--tau-max", "0", "--alpha", "0"];
        let repaired = run(stepflow(args_for(&model, &[&flags[..], &off].concat())));
        assert_eq!(plain.code(), Some(0), "{arch:?}: {plain:?}");
        assert_eq!(plain.text(), repaired.text(), "{arch:?}");
    }
}

#[test]
fn a_trace_holds_prompt_and_answer() {
    let folder = folder();
    let path = folder.path().join("trace.json").to_str().unwrap().to_owned();
    let outcome = answer(&["-no-cnv", "--save-trace", &path]);
    let trace = read_trace(&path);
    // A completion ends with a line break of the program's own; special tokens are not shown.
    assert_eq!(outcome.text().strip_suffix('\n'), Some(text_of(&trace).as_str()));
    assert_eq!(trace.model["architecture"], "qwen3");
}

#[test]
fn packagers_get_completions_and_a_man_page() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(stepflow(["completions", shell]));
        assert_eq!(script.code(), Some(0), "{shell}");
        assert!(script.text().contains("oeb-layers"), "{shell}");
    }
    let page = run(stepflow(["man"]));
    assert!(page.text().contains(r"\-\-oeb\-layers"), "{}", page.text());
    let version = run(stepflow(["--version"])).text();
    assert!(version.starts_with(concat!("stepflow ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(run(stepflow(["--help"])).text().contains("--oeb-layers"));
}
