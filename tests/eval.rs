//! `eval` and `tune` as a user runs them, on the embedded model and its problems.
#![cfg(unix)]

mod program;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use program::{Outcome, Running, run, stepflow};
use stepflow::eval::folder::read_samples;
use tempfile::TempDir;

/// Small enough that a whole run takes about a second.
const SMALL: [&str; 10] = ["--first", "10", "-n", "30", "-np", "4", "--arm", "baseline", "--arm", "stepflow"];

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// `eval` into `out`. One thread: tests run side by side, and threads that wait for each other wait by spinning.
fn eval(out: &Path, args: &[&str]) -> Command {
    let mut command = stepflow(["eval", "-t", "1", "--out"]);
    command.arg(out).args(args);
    command
}

fn done(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    outcome
}

fn summaries(out: &Path) -> [String; 2] {
    ["summary.json", "summary.md"].map(|name| std::fs::read_to_string(out.join(name)).unwrap())
}

fn samples(out: &Path) -> usize {
    let path = out.join("samples.jsonl");
    if path.exists() { read_samples(&path).unwrap().0.len() } else { 0 }
}

#[test]
fn killed_twenty_times_it_ends_as_if_it_never_was() {
    let home = folder();
    let (whole, killed) = (home.path().join("whole"), home.path().join("killed"));
    let expected = done(run(eval(&whole, &SMALL)));
    let mut dice = 12345u64;
    for _ in 0..20 {
        let running = Running::start(eval(&killed, &[&SMALL[..], &["--resume"]].concat()));
        // Random moments within what a run takes, its start included.
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_millis(30 + (dice >> 33) % 500));
        drop(running);
    }
    let resumed = done(run(eval(&killed, &[&SMALL[..], &["--resume"]].concat())));
    assert_eq!(summaries(&killed), summaries(&whole));
    assert_eq!(resumed.stdout, expected.stdout);
    assert_eq!(samples(&killed), 20, "every sample once");
}

#[test]
fn a_line_cut_short_is_made_anew() {
    let home = folder();
    let (whole, cut) = (home.path().join("whole"), home.path().join("cut"));
    done(run(eval(&whole, &SMALL)));
    done(run(eval(&cut, &SMALL)));
    let path = cut.join("samples.jsonl");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    done(run(eval(&cut, &[&SMALL[..], &["--resume"]].concat())));
    assert_eq!(summaries(&cut), summaries(&whole));
}

#[test]
fn ctrl_c_keeps_what_is_finished_and_says_how_to_go_on() {
    let home = folder();
    let out = home.path().join("run");
    let mut running = Running::start(eval(&out, &["--first", "400", "-n", "200"]));
    running.wait_until(|_, _| samples(&out) > 0);
    running.interrupt();
    let outcome = running.finish();
    assert_eq!(outcome.code(), Some(130), "{outcome:?}");
    assert!(outcome.stderr.contains("go on with --resume"), "{outcome:?}");
    assert!(samples(&out) > 0);
}

#[test]
fn parts_merge_into_the_whole() {
    let home = folder();
    let path = |name: &str| home.path().join(name);
    let expected = done(run(eval(&path("whole"), &SMALL)));
    for part in ["1/3", "2/3", "3/3"] {
        done(run(eval(&path(&part[..1]), &[&SMALL[..], &["--shard", part]].concat())));
    }
    let merge = |parts: &[&str], out: &str| {
        let mut command = stepflow(["eval", "merge", "--out"]);
        command.arg(path(out)).args(parts.iter().map(|part| path(part)));
        run(command)
    };
    assert_eq!(done(merge(&["3", "1", "2"], "merged")).stdout, expected.stdout);
    assert_eq!(summaries(&path("merged")), summaries(&path("whole")));
    merge(&["1", "3"], "lacking").assert_fails(1, "14 of 20 samples");
    merge(&["1", "2", "3", "1"], "twice").assert_fails(1, "in two parts");
    done(run(eval(
        &path("other"),
        &["--first", "10", "-n", "31", "-np", "4", "--arm", "baseline", "--arm", "stepflow"],
    )));
    merge(&["1", "other"], "mixed").assert_fails(1, "predict: 30 here, 31 there");
}

#[test]
fn a_run_is_not_overwritten_nor_mixed_with_another() {
    let home = folder();
    let out = home.path().join("run");
    done(run(eval(&out, &SMALL)));
    let again = run(eval(&out, &SMALL));
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr.contains("holds a run already; name another folder with -o"), "{}", again.stderr);
    let other = run(eval(&out, &[&SMALL[..], &["--resume", "--arm", "oeb"]].concat()));
    assert_eq!(other.code(), Some(1));
    assert!(other.stderr.contains("holds another run (arms: "), "{}", other.stderr);
}

#[test]
fn votes_are_summed_up_at_equal_tokens() {
    let home = folder();
    let out = home.path().join("run");
    let outcome =
        done(run(eval(&out, &["--first", "3", "-n", "20", "--samples", "4", "--arm", "baseline", "--arm", "smi"])));
    let text = outcome.text();
    for row in ["| baseline ", "| smi ", "| baseline, vote of 2 ", "| smi, vote of 4 "] {
        assert!(text.contains(row), "{row}: {text}");
    }
    let (all, _) = read_samples(&out.join("samples.jsonl")).unwrap();
    let seeds = |arm: &str| {
        let mut seeds: Vec<_> = all.iter().filter(|s| s.arm == arm).map(|s| (s.index, s.sample, s.seed)).collect();
        seeds.sort_unstable();
        seeds
    };
    assert_eq!(seeds("baseline"), seeds("smi"), "arms are paired");
    assert_eq!(all.len(), 3 * 4 * 2);
    let json = done(run(eval(
        &out,
        &["--first", "3", "-n", "20", "--samples", "4", "--arm", "baseline", "--arm", "smi", "--resume", "--json"],
    )));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["results"].as_array().unwrap().len(), 6);
    assert_eq!(json["n_problems"], 3);
}

#[test]
fn side_by_side_is_nearly_as_one_at_a_time() {
    let home = folder();
    let texts = |parallel: &str| {
        let out = home.path().join(parallel);
        done(run(eval(&out, &["--first", "12", "-n", "60", "-np", parallel, "--arm", "baseline"])));
        let (mut samples, _) = read_samples(&out.join("samples.jsonl")).unwrap();
        samples.sort_by_key(|sample| sample.index);
        samples.into_iter().map(|sample| sample.text).collect::<Vec<_>>()
    };
    let (one, eight) = (texts("1"), texts("8"));
    let differ = one.iter().zip(&eight).filter(|(a, b)| a != b).count();
    // Another batch size rounds otherwise, so a near tie may fall the other way; most texts have none.
    assert!(differ <= 3, "{differ} of 12 differ");
}

#[test]
fn what_cannot_be_evaluated_is_told_in_one_line() {
    let home = folder();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let out = home.path().join("out");
    for (name, text, says) in [
        ("empty.jsonl", "", "empty"),
        ("half.jsonl", "{\"problem\": \"x\", \"answer\": \"1\"}\n{\"problem\"", "line 2"),
        ("unnamed.jsonl", "{\"text\": \"x\", \"answer\": \"1\"}", "text"),
        ("bad.csv", "Question,Right\nx,1\n", "found `Question`, `Right`"),
    ] {
        let path = write(name, text);
        run(eval(&out, &[&path])).assert_fails(1, says);
    }
    for (args, code, says) in [
        (&["--arm", "strong"][..], 2, "expected baseline, oeb, smi, stepflow"),
        (&["--arm", "a:tau_max=2"], 2, "0..1"),
        (&["--arm", "oeb", "--arm", "oeb"], 2, "two arms named oeb"),
        (&["--arm", "x:missing.toml"], 1, "missing.toml"),
        (&["--shard", "3/2"], 2, "I from 1 to N"),
        (&["--samples", "0"], 2, "samples"),
        (&["no-such-file.jsonl"], 1, "no-such-file.jsonl"),
    ] {
        run(eval(&out, args)).assert_fails(code, says);
    }
    assert!(!out.exists(), "nothing was begun");
}

#[test]
fn tuned_settings_are_what_config_reads() {
    let home = folder();
    let path = home.path().join("tuned.toml");
    let mut command = stepflow(["tune", "-t", "1", "--first", "4", "-n", "20", "-o"]);
    command.arg(&path);
    let outcome = done(run(command));
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# Chosen among "), "{text}");
    let file = path.display().to_string();
    done(run(eval(
        &home.path().join("run"),
        &["--first", "2", "-n", "20", "--arm", "baseline", "--arm", &format!("tuned:{file}")],
    )));
    let config = home.path().join("strong.toml");
    std::fs::write(&config, "[oeb]\ntau_max = 0.5\nlayers = \"0-5\"\n").unwrap();
    let mut command = stepflow(["inspect", "--config"]);
    command.arg(&config);
    assert!(done(run(command)).text().contains("0-5"));
}
