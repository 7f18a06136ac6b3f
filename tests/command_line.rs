//! Command lines as people type them: text that begins with a dash, LaTeX, files from Windows, variables, and flags that
//! change nothing.
#![cfg(unix)]

mod common;
mod program;
mod tiny;

use std::path::Path;

use program::{Outcome, run, run_with, stepflow};
use stepflow::trace::TraceFile;
use tempfile::TempDir;
use tiny::{Arch, WeightType};

fn model() -> String {
    tiny::tiny(Arch::Qwen3, WeightType::F32).to_str().unwrap().to_owned()
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn file(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

const QUICK: [&str; 8] = ["-n", "2", "-t", "1", "--temp", "0", "-c", "512"];

/// The whole prompt as the model reads it, of a chat with these flags, or of a completion.
fn prompt(flags: &[&str]) -> String {
    let folder = folder();
    let trace = folder.path().join("trace.json").to_str().unwrap().to_owned();
    let model = model();
    let all = [&["-m", &model, "-st", "--save-trace", &trace], &QUICK[..], flags].concat();
    let outcome = run(stepflow(all));
    assert_eq!(outcome.code(), Some(0), "{flags:?}: {}", outcome.stderr);
    text(&trace)
}

fn text(trace: impl AsRef<Path>) -> String {
    let trace = TraceFile::read(&std::fs::read(trace).unwrap()).unwrap();
    let bytes: Vec<u8> = trace.tokens.iter().flat_map(|token| token.piece.clone()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn text_may_begin_with_a_dash() {
    for said in ["-3x + 5 = 20", "- be brief", "---", "-1", "-st", "--stepflow", "-", "-- no", "-p", "--mirostat 2"] {
        assert!(prompt(&["-p", said]).contains(&format!("user\n{said}<|im_end|>")), "{said}");
        assert!(prompt(&["-p", "hi", "-sys", said]).contains(&format!("system\n{said}<|im_end|>")), "{said}");
    }
    for flags in [["-r", "---"], ["-r", "-st"], ["--think-start", "-think-"], ["--think-end", "--end"]] {
        prompt(&[&["-p", "hi"], &flags[..]].concat());
    }
    let scored = run(stepflow(["score", "-m", &model(), "-t", "1", "-p", "-3x + 5 = 20", "--json"]));
    assert_eq!(scored.code(), Some(0), "{}", scored.stderr);
}

#[test]
fn latex_on_the_command_line_stays_latex() {
    for said in [
        r"Let $\theta$ satisfy $2\times\rho$",
        r"$\nabla f \neq \tan x$, \text{if } x \to \nu",
        r"\begin{matrix} 1 & 2 \\ 3 & 4 \end{matrix}",
    ] {
        assert!(prompt(&["-p", said]).contains(said), "{said}");
        assert!(prompt(&["-p", "hi", "-sys", said]).contains(said), "{said}");
    }
    assert!(prompt(&["-p", r"One\ntwo\tthree"]).contains("One\ntwo\tthree"));
    assert!(prompt(&["-p", r"One\ntwo", "--no-escape"]).contains(r"One\ntwo"));
    assert!(prompt(&["-p", r"One\ntwo", "--no-escape", "-e"]).contains("One\ntwo"));
}

#[test]
fn files_from_windows_are_read_without_their_marks() {
    let (folder, model) = (folder(), model());
    let utf16: Vec<u8> = "\u{FEFF}one\r\ntwo\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in ["\u{FEFF}one\r\ntwo\r\n".as_bytes(), b"one\r\ntwo\r\n", b"one\ntwo\n", &utf16] {
        let path = file(&folder, "prompt.txt", bytes);
        assert!(prompt(&["-f", &path]).contains("user\none\ntwo<|im_end|>"), "{bytes:?}");
        assert!(prompt(&["-p", "hi", "-sysf", &path]).contains("system\none\ntwo<|im_end|>"), "{bytes:?}");
        let trace = folder.path().join("trace.json").to_str().unwrap().to_owned();
        let flags = [&["-m", &model, "-st", "--save-trace", &trace], &QUICK[..]].concat();
        assert_eq!(run_with(stepflow(flags), bytes).code(), Some(0));
        assert!(text(&trace).contains("user\none\ntwo<|im_end|>"), "{bytes:?} on stdin");
    }
    let template = "\u{FEFF}{% for m in messages %}\r\n[{{ m.content }}]\r\n{% endfor %}\r\n";
    let template = file(&folder, "template.jinja", template);
    let read = prompt(&["-p", "hi", "--chat-template-file", &template]);
    assert!(read.starts_with('[') && !read.contains(['\r', '\u{FEFF}']), "{read:?}");
    let settings = file(&folder, "settings.toml", "\u{FEFF}[oeb]\r\ntau_max = 0.2\r\n");
    prompt(&["-p", "hi", "--config", &settings]);
    let reply =
        file(&folder, "reply.txt", "\u{FEFF}Let us see now. It is four then. So it is.\r\n</think>\r\n\r\n4\r\n");
    let out = folder.path().join("maps");
    let out = out.to_str().unwrap();
    let flags = ["saliency", "-m", &model, "-p", "2 + 2?", "--reply", &reply, "-o", out, "--method", "attention"];
    let measured = run(stepflow(flags));
    assert_eq!(measured.code(), Some(0), "{}", measured.stderr);
    let steps = std::fs::read_to_string(folder.path().join("maps/steps.csv")).unwrap();
    assert!(steps.contains("summary") && !steps.contains('\u{FEFF}'), "{steps}");
    let run_json = std::fs::read_to_string(folder.path().join("maps/run.json")).unwrap();
    let about: serde_json::Value = serde_json::from_str(&run_json).unwrap();
    assert!(about["command"][1] == "saliency" && about["date"].as_str().unwrap().ends_with('Z'), "{run_json}");
    let line = r#"{"prompt": "2 + 2?", "reply": "Let us see now. It is four then.</think>4"}"#;
    let lines = file(&folder, "lines.jsonl", format!("\u{FEFF}{line}\r\n{line}\r\n"));
    let several = folder.path().join("several");
    let flags = ["saliency", "-m", &model, &lines, "-o", several.to_str().unwrap(), "--method", "attention"];
    assert_eq!(run(stepflow(flags)).code(), Some(0));
}

fn answered(outcome: &Outcome) {
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
}

#[test]
fn variables_count_unless_they_are_empty_or_a_flag_says_otherwise() {
    let model = model();
    let with = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = stepflow([&["-p", "hi"], &QUICK[..], flags].concat());
        command.envs(variables.iter().copied());
        run(command)
    };
    let empty =
        ["CTX_SIZE", "N_PREDICT", "FLASH_ATTN", "OFFLINE", "MODEL", "HF_REPO", "HF_FILE", "TOP_K", "JINJA", "MLOCK"];
    let empty: Vec<_> = empty.iter().map(|name| (format!("LLAMA_ARG_{name}"), "")).collect();
    let empty: Vec<_> = empty.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    answered(&with(&empty, &["-m", &model]));
    // A flag beats its own variable, and those of the flags that it excludes.
    answered(&with(&[("LLAMA_ARG_MODEL", "/nowhere.gguf")], &["-m", &model]));
    answered(&with(&[("LLAMA_ARG_HF_REPO", "a/b"), ("LLAMA_ARG_OFFLINE", "1")], &["-m", &model]));
    answered(&with(&[("LLAMA_ARG_HF_FILE", "x.gguf")], &["-m", &model]));
    with(&[("LLAMA_ARG_MODEL", &model)], &["-hf", "a/b", "--offline"]).assert_fails(1, "a/b");
    answered(&with(
        &[("LLAMA_ARG_CHAT_TEMPLATE", "{{ 1")],
        &["-m", &model, "--chat-template", "{{ messages[0].content }}"],
    ));
    let folder = folder();
    let template = file(&folder, "t.jinja", "{{ messages[0].content }}");
    answered(&with(&[("LLAMA_ARG_CHAT_TEMPLATE", "{{ 1")], &["-m", &model, "--chat-template-file", &template]));
    let both = with(&[], &["-m", &model, "-hf", "a/b", "--offline"]);
    answered(&both);
    assert!(both.stderr.contains("both -m and -hf a/b are named; taking -m"), "{}", both.stderr);
    with(&[], &["-m", &model, "--lora", "a", "--lora", "b"]).assert_fails(2, "expected one adapter, found 2");
}

#[test]
fn settings_without_effect_say_so() {
    let model = model();
    let says = |flags: &[&str]| {
        let outcome = run(stepflow([&["-m", &model, "-p", "hi"], &QUICK[..], flags].concat()));
        assert_eq!(outcome.code(), Some(0), "{flags:?}: {}", outcome.stderr);
        outcome.stderr
    };
    let folder = folder();
    let stats = folder.path().join("stats.json");
    for flags in [
        &["--tau-max", "0.2"][..],
        &["--alpha", "0.1"],
        &["--oeb-layers", "0-1"],
        &["--smi-layers", "50%"],
        &["--smi-window", "step"],
        &["--stats", stats.to_str().unwrap()],
        &["--smi", "--tau-max", "0.2"],
        &["--oeb", "--alpha", "0.2"],
    ] {
        let flag = flags.iter().rfind(|flag| flag.starts_with("--")).unwrap();
        assert!(says(flags).contains(&format!("{flag} changes nothing: ")), "{flags:?}");
    }
    assert!(!says(&["--stepflow", "--tau-max", "0.2", "--alpha", "0.1"]).contains("changes nothing"));
    assert!(says(&["-c", "1048576"]).contains("trained with"));
    assert!(says(&["--family", "harmony"]).contains("--family harmony: this model's vocabulary has no"));
}

#[test]
fn what_is_nearly_right_is_helped_along() {
    let model = model();
    run(stepflow([&model])).assert_fails(2, &format!("a model is named with -m {model}"));
    run(stepflow(["-p", "x", "other.GGUF"])).assert_fails(2, "-m other.GGUF");
    for flags in [&["--nonsense"][..], &["score", "--nonsense", "x"], &["-m", "x", "--tmp", "1"]] {
        let outcome = run(stepflow(flags));
        assert_eq!(outcome.code(), Some(2));
        assert!(!outcome.stderr.contains("'-- "), "{}", outcome.stderr);
    }
    let version = run(stepflow(["-V"]));
    assert_eq!((version.code(), version.text()), (Some(0), run(stepflow(["--version"])).text()));
    // How much memory is free changes from one moment to the next.
    let facts = |args: &[&str]| run(stepflow(args)).text().split("; free").next().map(str::to_owned);
    assert_eq!(facts(&["inspect", &model]), facts(&["inspect", "-m", &model]));
    run(stepflow(["inspect", &model, "-m", &model])).assert_fails(2, "cannot be used with");
    run(stepflow(["bench", "-m", &model, "-o", "json"])).assert_fails(2, "--format json chooses the format");
}

/// Its flags for what there is not here are taken, for they stand in people's scripts.
#[test]
fn idle_flags_of_llama_server_are_taken() {
    let line = ["serve", "--threads-http", "2", "--no-context-shift", "-cram", "0", "--no-webui-x", "-m", "/nowhere"];
    let outcome = run(stepflow(line));
    assert_eq!(outcome.code(), Some(2), "{}", outcome.stderr);
    for flag in ["--threads-http", "--no-context-shift", "-cram"] {
        assert!(outcome.stderr.contains(&format!("llama-server's {flag} changes nothing here")), "{}", outcome.stderr);
    }
    assert!(outcome.stderr.contains("--no-webui-x"), "{}", outcome.stderr);
}
