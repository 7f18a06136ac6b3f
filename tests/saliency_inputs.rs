//! What `stepflow saliency` measures besides traces, and what it writes besides CSV.
#![cfg(unix)]

mod common;
mod maps;
mod program;

use std::collections::BTreeMap;
use std::path::Path;

use maps::{QUESTION, number, table, traced};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use program::{run, run_with, stepflow};
use serde_json::json;
use stepflow::llama::{Model, ModelParams};
use stepflow::trace::{Family, Segment, TraceFile, TraceToken, Tracker};

/// The steps of a run: segment, first token, end, text.
fn steps(maps: &Path) -> Vec<[String; 4]> {
    let of = |row: &BTreeMap<String, String>| ["segment", "start", "end", "text"].map(|column| row[column].clone());
    table(&maps.join("steps.csv")).iter().map(of).collect()
}

/// What the model wrote in a trace: all of it after the question, as text.
fn answer(trace: &TraceFile) -> String {
    let written = trace.tokens.iter().filter(|token| token.segment != Segment::Question);
    let bytes: Vec<u8> = written.flat_map(|token| token.piece.clone()).collect();
    String::from_utf8(bytes).unwrap().trim_start().to_owned()
}

#[test]
fn conversations_give_the_steps_of_the_trace_they_are() {
    let (folder, trace) = traced();
    let path = |name: &str| folder.path().join(name);
    let written = answer(&trace);
    let (thinking, content) = written.split_once("</think>").unwrap();
    std::fs::write(path("reply.txt"), &written).unwrap();
    let asked = json!({ "role": "user", "content": QUESTION });
    let said = json!({ "role": "assistant", "content": content, "reasoning_content": thinking });
    std::fs::write(path("messages.jsonl"), format!("{asked}\n{said}\n")).unwrap();
    let pair = json!({ "prompt": QUESTION, "reply": written });
    std::fs::write(path("both.jsonl"), format!("{}\n{pair}\n", json!({ "messages": [asked, said] }))).unwrap();

    let measure = |input: &[&str], out: &Path| {
        let flags = ["-t", "1", "--method", "attention", "--layers", "0", "-o", out.to_str().unwrap()];
        let outcome = run(stepflow(["saliency"].iter().chain(input).chain(&flags)));
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        outcome.text()
    };
    let maps = path("maps");
    let of = |name: &str| path(name).to_str().unwrap().to_owned();
    measure(&[&of("trace.json")], &maps);
    let expected = steps(&maps);
    assert_eq!(expected.len(), trace.steps.len());
    measure(&["-p", QUESTION, "--reply", &of("reply.txt")], &maps);
    assert_eq!(steps(&maps), expected);
    measure(&[&of("messages.jsonl")], &maps);
    assert_eq!(steps(&maps), expected);
    let several = measure(&[&of("both.jsonl"), &of("trace.json")], &path("several"));
    for name in ["both-1", "both-2", "trace"] {
        assert_eq!(steps(&path("several").join(name)), expected, "{name}");
        assert!(several.contains(&format!("{name}\nShallow Lock-in: ")), "{several}");
    }
}

#[test]
fn a_conversation_without_an_answer_is_refused_in_one_line() {
    let refuse = |input: &str, flags: &[&str], code: i32, says: &str| {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("maps");
        let model = stepflow::builtin::path().unwrap();
        let args = ["saliency", "-", "-m", model.to_str().unwrap(), "-o", out.to_str().unwrap()];
        run_with(stepflow(args.iter().chain(flags)), input.as_bytes()).assert_fails(code, says);
        assert!(!out.exists(), "{says}");
    };
    refuse("", &[], 1, "it is empty");
    refuse("{\"role\": \"user\", \"content\": \"Hello\"}", &[], 1, "found 1 messages and a last one by \"user\"");
    refuse("{\"messages\": []}", &[], 1, "found 0 messages");
    refuse("{\"prompt\": \"Hello\", \"reply\": \"\"}", &[], 1, "the reply is empty");
    refuse("{\"prompt\": \"Hello\", \"reply\": \"Hello\"}", &["--family", "harmony"], 1, "<|channel|>analysis");
    refuse("[1, 2]", &[], 1, "line 1");
    refuse("", &["--reply", "-"], 2, "--reply");
    refuse("{\"prompt\": \"Hello\", \"reply\": \"x\"}", &["--chat-template", "{% if %}"], 1, "chat template");
}

/// Measures the attention of a trace or of what stands on stdin.
fn measure(input: &str, stdin: &[u8], flags: &[&str], out: &Path) -> program::Outcome {
    let model = stepflow::builtin::path().unwrap();
    let args = ["saliency", input, "-m", model.to_str().unwrap(), "-t", "1", "--method", "attention"];
    run_with(stepflow(args.iter().chain(flags).chain(&["-o", out.to_str().unwrap()])), stdin)
}

#[test]
fn no_step_begins_inside_a_character() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("maps");
    let thinking = [
        "我们先来计算一下鸭子每天下的蛋数。然后再来看一看剩下的蛋一共有多少个！最后我们把它们乘起来就可以了。",
        "アヒルは毎日卵を産むということです。それから残りの卵を数えてみましょう。ゆっくりと考えるのがよいでしょう。",
        "किसान हर दिन अंडे बेचता है।फिर वह घर जाता है और सोता है।कल वह फिर आएगा।",
    ];
    let reply = format!("<think>{}</think>\n\n答案是四十二。", thinking.concat());
    let asked = json!({ "prompt": "多少？", "reply": reply }).to_string();
    let outcome = measure("-", asked.as_bytes(), &[], &out);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let steps = steps(&out);
    assert!(steps.iter().all(|[.., text]| !text.contains('\u{FFFD}')), "{steps:?}");
    assert_eq!(steps.iter().filter(|[segment, ..]| segment == "thinking").count(), 9, "{steps:?}");
}

#[test]
fn an_ordinary_answer_has_thinking_and_a_summary() {
    let folder = tempfile::tempdir().unwrap();
    for (i, answer) in ["So it is $\\boxed{8}$.", "**Answer:** 8", "### Final Answer\n\n8"].into_iter().enumerate() {
        let out = folder.path().join(i.to_string());
        let reply = format!("We know two things:\n- Ann has three coins\n- Bob has five coins\n\n{answer}");
        let asked = json!({ "prompt": "How many?", "reply": reply }).to_string();
        let outcome = measure("-", asked.as_bytes(), &["--family", "implicit"], &out);
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        assert!(!outcome.stderr.contains("no summary"), "{outcome:?}");
        let steps = steps(&out);
        let count = |wanted: &str| steps.iter().filter(|[segment, ..]| segment == wanted).count();
        assert!(count("thinking") >= 3 && count("summary") == 1, "{steps:?}");
        assert!(steps.iter().any(|[.., text]| text.trim_start_matches('\'').starts_with("- Bob has")), "{steps:?}");
    }
}

/// What `--save-trace` leaves of text, generated or not, by a model that marks nothing.
fn trace_of_unmarked(text: &[(&str, bool)]) -> TraceFile {
    let model = Model::load(&stepflow::builtin::path().unwrap(), &ModelParams::default()).unwrap();
    let (family, markers) = (Family::Implicit, Family::Implicit.markers());
    let (mut tracker, mut tokens) = (Tracker::new(markers.clone()), Vec::new());
    for &(text, generated) in text {
        for token in model.tokenize(text, false, false) {
            let piece = model.piece(token);
            let segment = tracker.push(&piece, generated).segment;
            tokens.push(TraceToken { id: token.0, piece, segment });
        }
    }
    TraceFile { model: serde_json::Map::new(), family, markers, tokens, steps: tracker.steps() }
}

#[test]
fn a_trace_is_labelled_by_the_marks_that_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let text = [("Use <note> and </note>. How many?", false), ("<note>Three and five are eight.</note>Eight.", true)];
    trace_of_unmarked(&text).write(std::fs::File::create(&path).unwrap()).unwrap();
    let labelled = |flags: &[&str]| {
        let outcome = measure(path.to_str().unwrap(), b"", flags, &out);
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        (steps(&out).into_iter().map(|[segment, _, _, text]| (segment, text)).collect::<Vec<_>>(), outcome.stderr)
    };
    let (plain, stderr) = labelled(&[]);
    assert!(plain.iter().all(|(segment, _)| segment != "summary") && !stderr.contains("no summary"), "{stderr}");
    let (marked, stderr) = labelled(&["--think-start", "<note>", "--think-end", "</note>"]);
    assert_eq!(
        marked[1..],
        [("thinking", "Three and five are eight.</note>"), ("summary", "Eight.")].map(|(a, b)| (a.into(), b.into()))
    );
    assert!(!stderr.contains("no summary"), "{stderr}");
    let (end_alone, _) = labelled(&["--think-end", "</note>"]);
    assert_eq!((end_alone[1].0.as_str(), end_alone.last().unwrap().1.as_str()), ("thinking", "Eight."));
    let (_, stderr) = labelled(&["--think-start", "<note>", "--think-end", "</notes>"]);
    assert!(stderr.contains("trace has thinking and no summary: \"</notes>\""), "{stderr}");

    let refused = |flags: &[&str], says: &str| {
        measure(path.to_str().unwrap(), b"", flags, &folder.path().join("none")).assert_fails(1, says);
    };
    refused(&["--think-start", "<r>"], "nothing in it reads `<r>` (family custom)");
    refused(&["--family", "harmony"], "nothing in it reads `<|channel|>analysis<|message|>` (family harmony)");
    let asked =
        json!({ "prompt": "?", "reply": "<|channel|>analysis<|message|>So.<|channel|>final<|message|>8" }).to_string();
    let outcome = measure("-", asked.as_bytes(), &["--family", "harmony"], &out);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(
        outcome.stderr.contains("--family harmony: this model's vocabulary has no <|channel|> and <|message|>"),
        "{outcome:?}"
    );
}

#[test]
fn a_verdict_takes_four_steps_and_deeper_layers() {
    let folder = tempfile::tempdir().unwrap();
    let found = |thinking: &str, layers: &str| {
        let out = folder.path().join("maps");
        let asked = json!({ "prompt": "How many?", "reply": format!("<think>{thinking}</think>8") }).to_string();
        let outcome = measure("-", asked.as_bytes(), &["--layers", layers], &out);
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        let run: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
        (outcome.text(), run["verdict"].clone())
    };
    let (three, four) = ("Here is a sentence. ".repeat(3), "Here is a sentence. ".repeat(4));
    let (text, verdict) = found(&three, "0-11");
    assert_eq!(
        text.matches("too short to tell: a verdict takes 4 steps of thinking, and the trace has 3.").count(),
        2,
        "{text}"
    );
    assert_eq!(
        (&verdict["shallow_lock_in"]["shown"], verdict["deep_decay"]["reason"].is_string()),
        (&json!(null), true)
    );
    let (text, verdict) = found(&four, "0-11");
    assert!(text.contains("in the deeper ones ") && verdict["shallow_lock_in"]["shown"].is_boolean(), "{text}");
    let (text, _) = found(&four, "0-2");
    assert!(text.starts_with("Shallow Lock-in: cannot be told: fewer than two deeper layers"), "{text}");
    assert!(text.contains("\nDeep Decay: cannot be told: none of its layers"), "{text}");
}

#[test]
fn a_chat_can_leave_its_maps_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, maps) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let flags = ["-p", QUESTION, "-st", "-t", "1", "--save-trace", trace.to_str().unwrap()];
    let outcome = run(stepflow(flags.iter().chain(&["--saliency-csv", maps.to_str().unwrap()])));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(!outcome.text().contains("Lock-in") && outcome.stderr.contains("Shallow Lock-in: "), "{outcome:?}");
    let direct = std::fs::read(maps.join("cells.csv")).unwrap();
    let outcome = run(stepflow(["saliency", trace.to_str().unwrap(), "-t", "1", "-o", maps.to_str().unwrap()]));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert_eq!(direct, std::fs::read(maps.join("cells.csv")).unwrap());
}

#[test]
fn parquet_and_matrices_hold_what_the_table_of_cells_does() {
    let (folder, trace) = traced();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let args = ["saliency", path.to_str().unwrap(), "-t", "1", "--method", "probe", "--layers", "3", "-o"];
    let outcome = run(stepflow(args.iter().chain(&[out.to_str().unwrap(), "--parquet", "--wide"])));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let cells = table(&out.join("cells.csv"));
    let file = SerializedFileReader::new(std::fs::File::open(out.join("cells.parquet")).unwrap()).unwrap();
    let rows: Vec<_> = file.get_row_iter(None).unwrap().map(|row| row.unwrap()).collect();
    assert_eq!(rows.len(), cells.len());
    for (row, cell) in rows.iter().zip(&cells) {
        assert_eq!(row.get_column_iter().count(), cell.len());
        for (column, value) in row.get_column_iter() {
            let text = &cell[column];
            let same = match value {
                Field::Str(value) => value == text,
                Field::Int(value) => value.to_string() == *text,
                Field::Long(value) => value.to_string() == *text,
                Field::Double(value) => text.parse() == Ok(*value),
                Field::Bool(value) => value.to_string().to_uppercase() == *text,
                other => panic!("{column}: {other}"),
            };
            assert!(same, "{column}: {value} and {text}");
        }
    }
    let matrix = table(&out.join("layers/03.csv"));
    assert_eq!(matrix.len(), trace.steps.len());
    for cell in &cells {
        let (query, key) = (number(cell, "query_step") as usize, &cell["key_step"]);
        assert_eq!(number(&matrix[query], key), number(cell, "value"));
    }
    assert_eq!(matrix[0]["1"], "", "what is masked is empty");
}

#[test]
fn nothing_of_an_earlier_run_is_taken_for_part_of_a_later_one() {
    let (folder, _) = traced();
    let (trace, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let measure = |input: &[&str], flags: &[&str]| {
        let fixed = ["saliency", "-t", "1", "--method", "attention", "-o", out.to_str().unwrap()];
        run(stepflow(fixed.iter().chain(input).chain(flags)))
    };
    let trace = trace.to_str().unwrap();
    assert_eq!(measure(&[trace], &["--layers", "0-2", "--parquet", "--wide"]).code(), Some(0));
    let own = out.join("layers/notes.txt");
    std::fs::write(&own, "mine").unwrap();
    assert_eq!(measure(&[trace], &["--layers", "1"]).code(), Some(0));
    let mut left: Vec<_> =
        std::fs::read_dir(out.join("layers")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["01.png", "01.svg", "notes.txt"]);
    assert!(!out.join("cells.parquet").exists());

    let pair = json!({ "prompt": QUESTION, "reply": "So it is 22.\n</think>\n\n22" });
    let jsonl = folder.path().join("more.jsonl");
    std::fs::write(&jsonl, format!("{pair}\n{pair}")).unwrap();
    let outcome = measure(&[jsonl.to_str().unwrap()], &["--layers", "1"]);
    assert_eq!(outcome.code(), Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("is another run; name another folder"), "{outcome:?}");
    // A chat says so before it answers.
    let inside = folder.path().to_str().unwrap();
    let outcome = run(stepflow(["-p", QUESTION, "-st", "-t", "1", "--saliency-csv", inside]));
    assert_eq!((outcome.code(), outcome.text().as_str()), (Some(2), ""), "{outcome:?}");
}
