//! `eval grade` as a user runs it.
#![cfg(unix)]

mod program;

use program::{Outcome, run, run_with, stepflow};
use serde_json::Value;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Grades `lines` from a file.
fn grade(lines: &str, args: &[&str]) -> Outcome {
    let home = folder();
    let path = home.path().join("replies.jsonl");
    std::fs::write(&path, lines).unwrap();
    let mut command = stepflow(["eval", "grade"]);
    command.arg(path).args(args);
    run(command)
}

const REPLIES: &str = concat!(
    "{\"id\": \"a\", \"reply\": \"The answer is 72, in total, so the shop keeps that.\", \"answer\": \"72\"}\n",
    "{\"reply\": \"<think>It is \\\\boxed{4}.</think> So \\\\boxed{3} or \\\\boxed{-5}.\", \"answer\": \"-5, 3\", \"seed\": 1.50}\n",
    "{\"choices\": [\"a\", \"b\", \"c\", \"d\"], \"answer\": \"D\", \"reply\": \"So \\\\boxed{\\\\Delta E}. **Answer: D**\"}\n",
    "{\"reply\": \"I do not know.\", \"answer\": 5}\n",
);

#[test]
fn lines_come_back_with_their_verdicts() {
    let outcome = grade(REPLIES, &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let text = outcome.text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let verdicts: Vec<_> = lines.iter().map(|line| (line["extracted"].as_str(), line["correct"].as_bool())).collect();
    let right = Some(true);
    assert_eq!(verdicts, [(Some("72"), right), (Some("3, -5"), right), (Some("D"), right), (None, Some(false))]);
    for (before, after) in REPLIES.lines().zip(text.lines()) {
        assert!(after.starts_with(before.strip_suffix('}').unwrap()), "{after}");
    }
    assert_eq!(outcome.stderr, "stepflow: 3 of 4 right: 75.0% (95% interval 30.1% to 95.4%)\n");
}

#[test]
fn from_stdin_into_a_file_and_from_windows() {
    let home = folder();
    let path = home.path().join("graded.jsonl");
    let mut command = stepflow(["eval", "grade", "-", "-o"]);
    command.arg(&path);
    let windows = format!("\u{feff}{}\r\n", REPLIES.replace('\n', "\r\n"));
    let outcome = run_with(command, windows.as_bytes());
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(path).unwrap(), grade(REPLIES, &[]).text());
}

#[test]
fn what_cannot_be_graded_is_told_in_one_line() {
    for (text, says) in [
        ("", "found none"),
        ("{\"reply\": \"5\", \"answer\": 5}\n{\"reply\"", "line 2: expected a JSON object"),
        ("{\"reply\": \"5\"}", "line 1: expected a field `answer`"),
        ("{\"answer\": \"5\"}", "line 1: expected a field `reply`, found `answer`"),
        ("{\"reply\": [5], \"answer\": \"5\"}", "line 1: expected text in field `reply`, found an array"),
        (
            "{\"reply\": \"A\", \"answer\": \"E\", \"choices\": [\"x\", \"y\"]}",
            "line 1: expected the letter of one of 2 options",
        ),
        ("{\"reply\": \"A\", \"answer\": \"x\", \"choices\": [\"x\", \"y\"]}", "found \"x\""),
    ] {
        let home = folder();
        let out = home.path().join("graded.jsonl");
        grade(text, &[]).assert_fails(1, says);
        grade(text, &["-o", &out.display().to_string()]).assert_fails(1, says);
        assert!(!out.exists(), "{text}");
    }
    run(stepflow(["eval", "grade", "no-such-file.jsonl"])).assert_fails(1, "no-such-file.jsonl");
    grade(REPLIES, &["-o", "no-such-folder/graded.jsonl"]).assert_fails(1, "no-such-folder");
    run(stepflow(["eval", "grade"])).assert_fails(2, "FILE");
}
