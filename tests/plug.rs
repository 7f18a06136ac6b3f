//! The plug-in, in a program that loads llama.cpp as a library and knows nothing of StepFlow (plug/host.c): what it does there
//! is what the program does, and off it does nothing.
#![cfg(target_os = "linux")]

mod common;
mod program;
mod tiny;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use program::{Outcome, program as run_program, run, stepflow};
use serde_json::Value;
use tiny::{Arch, WeightType};

/// A host, a plug-in and a model.
struct Setting {
    host: PathBuf,
    plug: PathBuf,
    model: PathBuf,
    folder: tempfile::TempDir,
}

/// Prompts whose answers differ, in words and in length.
const PROMPTS: [&str; 8] = [
    "Ann has 14 fewer coins than Bob. Ida has 9 coins. Bob has 3 dozen coins. How many coins does Ann have?\n",
    "Tom has 7 pens. He buys 2 more. How many pens does Tom have?\n",
    "A farm has 4 hens and twice as many ducks. How many birds are there?\n",
    "Eva reads 12 pages a day. How many pages does she read in a week?\n",
    "Max has 3 dozen eggs.\nHe drops 5 of them, and gives half of the others to Ida. How many eggs does Ida get?\n",
    "How many legs have 6 cats?\n",
    "A train has 8 cars. Each car has 40 seats, and 3 seats of each are broken. How many seats can be used?\n",
    "Bob is 4 years older than Ann. Ann is twice as old as Tom, who is 9. How old is Bob?\n",
];

/// Tokens of an answer.
const N: usize = 120;

fn done(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Compiled once: llama.cpp as one library, from what the program is linked with.
fn setting() -> &'static Setting {
    static SETTING: OnceLock<Setting> = OnceLock::new();
    SETTING.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (build, sources) = (Path::new(env!("LLAMA_BUILD")), Path::new(env!("LLAMA_SOURCES")));
        let archive = |name: &str| build.join("lib").join(name);
        let library = folder.path().join("libllama.so");
        done(
            Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
                .args(["-shared", "-fopenmp", "-o"])
                .arg(&library)
                .arg("-Wl,--whole-archive")
                .args(["libllama.a", "libggml.a", "libggml-base.a", "libggml-cpu.a"].map(archive))
                .args(["-Wl,--no-whole-archive", "-lpthread", "-ldl", "-lm"]),
        );
        let host = folder.path().join("host");
        done(
            Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
                .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-o"])
                .arg(&host)
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plug/host.c"))
                .args(["include", "ggml/include"].map(|path| format!("-I{}", sources.join(path).display())))
                .arg(format!("-Wl,-rpath,{}", folder.path().display()))
                .arg(&library),
        );
        done(
            Command::new(env!("CARGO"))
                .args(["build", "--release", "--quiet", "--package", "stepflow-plug"])
                .current_dir(env!("CARGO_MANIFEST_DIR")),
        );
        let plug = Path::new(env!("CARGO_BIN_EXE_stepflow")).with_file_name("libstepflow_plug.so");
        let model = stepflow::builtin::path().unwrap();
        Setting { host, plug, model, folder }
    })
}

/// Whose answers the host prints.
#[derive(Clone, Copy)]
enum Models {
    Builtin,
    Tiny,
    /// The builtin's first; they answer at the same time.
    Both,
}

/// How the host runs.
#[derive(Clone, Copy)]
struct Host {
    models: Models,
    /// 0 without, 1 with flash attention, 2 with Q8_0 caches too.
    flash: u8,
    unified: bool,
}

const FLASH: Host = Host { models: Models::Builtin, flash: 1, unified: true };

impl Host {
    fn command(self, prompts: &[&str]) -> Command {
        let Setting { host, model, .. } = setting();
        let tiny = || tiny::tiny(Arch::Llama, WeightType::F32);
        let first = if let Models::Tiny = self.models { tiny() } else { model.clone() };
        let mut command = run_program(host, [first.as_os_str()]);
        if let Models::Both = self.models {
            command.env("HOST_SECOND", tiny());
        }
        command.args([self.flash.to_string(), N.to_string(), u8::from(self.unified).to_string()]).args(prompts);
        command
    }

    /// Its tokens, a list for each prompt.
    fn alone(self, prompts: &[&str]) -> Vec<Vec<i64>> {
        tokens(&run(self.command(prompts)))
    }

    /// The same with the plug-in, and the statistics that it leaves.
    fn plugged(self, prompts: &[&str], variables: &[(&str, &str)]) -> (Vec<Vec<i64>>, Value, Outcome) {
        self.with("LD_PRELOAD", prompts, variables)
    }

    /// The same where the plug-in gets in by another variable.
    fn with(self, way: &str, prompts: &[&str], variables: &[(&str, &str)]) -> (Vec<Vec<i64>>, Value, Outcome) {
        let stats = setting().folder.path().join(format!("stats-{:?}.json", std::thread::current().id()));
        let mut command = self.command(prompts);
        // What another run of this test left would be taken for this one's.
        _ = std::fs::remove_file(&stats);
        command.env(way, &setting().plug).env("STEPFLOW_STATS", &stats);
        // All that is generated counts as thinking.
        command.env("STEPFLOW_FAMILY", "implicit").envs(variables.iter().copied());
        let outcome = run(command);
        let json = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
        (tokens(&outcome), json, outcome)
    }
}

fn tokens(outcome: &Outcome) -> Vec<Vec<i64>> {
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let line = |line: &str| line.split(' ').map(|number| number.parse().unwrap()).collect();
    outcome.text().lines().map(line).collect()
}

/// What the program itself generates, its statistics, and its trace.
fn of_program(prompt: &str, flash: u8) -> (Vec<i64>, Value, Value) {
    let folder = tempfile::tempdir().unwrap();
    let (trace, stats) = (folder.path().join("trace.json"), folder.path().join("stats.json"));
    let mut command = stepflow(["-no-cnv", "--stepflow", "--temp", "0", "-t", "1", "-c", "2048", "-p", prompt, "-e"]);
    command.args(["--family", "implicit", "-n", &N.to_string(), "-fa", if flash == 0 { "off" } else { "on" }]);
    if flash == 2 {
        command.args(["-ctk", "q8_0", "-ctv", "q8_0"]);
    }
    command.arg("-m").arg(&setting().model).arg("--save-trace").arg(&trace).arg("--stats").arg(&stats);
    let outcome = run(command);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let trace = json(&trace);
    let ids = trace["tokens"].as_array().unwrap().iter().map(|token| token["id"].as_i64().unwrap()).collect();
    (ids, json(&stats), trace)
}

fn count(stats: &Value, name: &str) -> i64 {
    stats["total"][name].as_i64().unwrap_or_else(|| panic!("expected {name}: {stats}"))
}

#[test]
fn it_does_in_another_program_what_this_one_does() {
    for flash in [0, 1, 2] {
        let host = Host { flash, ..FLASH };
        let (tokens, stats, outcome) = host.plugged(&PROMPTS[..1], &[]);
        let (all, expected, _) = of_program(PROMPTS[0], flash);
        // The program ends where the model does.
        let answer = &all[all.len().saturating_sub(N).max(1)..];
        let at = all.windows(3).position(|window| window == &tokens[0][..3]).expect("the host's answer begins alike");
        assert_eq!(all[at..], tokens[0][..all.len() - at], "flash {flash}: {answer:?}");
        assert!(count(&stats, "rows_bridged") > 0 && count(&stats, "injections") > 0, "{stats}");
        if all.len() - at == N {
            for name in ["rows_seen", "rows_bridged", "injections"] {
                assert_eq!(count(&stats, name), count(&expected, name), "flash {flash}, {name}");
            }
        }
        assert!(outcome.stderr.lines().count() == 3, "one line for each: {}", outcome.stderr);
    }
}

#[test]
fn its_traces_are_those_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = [PROMPTS[0], PROMPTS[1]];
    FLASH.plugged(&prompts, &[("STEPFLOW_SAVE_TRACE", folder.path().to_str().unwrap())]);
    let mut files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2, "{files:?}");
    for (file, prompt) in files.iter().zip(prompts) {
        let trace: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let (_, _, expected) = of_program(prompt, 1);
        let (own, all) = (trace["tokens"].as_array().unwrap(), expected["tokens"].as_array().unwrap());
        // The host generates on where the program ends.
        assert!(own.len() >= all.len() - 1 && all.len() > 30, "{} of {}", own.len(), all.len());
        let n = own.len().min(all.len());
        assert_eq!(own[..n], all[..n]);
        for name in ["family", "markers"] {
            assert_eq!(trace[name], expected[name]);
        }
        let outcome = run(stepflow([
            std::ffi::OsStr::new("saliency"),
            file.as_os_str(),
            "-m".as_ref(),
            setting().model.as_os_str(),
            "--method".as_ref(),
            "attention".as_ref(),
            "-o".as_ref(),
            folder.path().join("maps").as_os_str(),
        ]));
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    }
}

#[test]
fn without_effect_the_tokens_are_the_programs_own() {
    for flash in [0, 1, 2] {
        let host = Host { flash, ..FLASH };
        let off = [("STEPFLOW_TAU_MAX", "0"), ("STEPFLOW_ALPHA", "0")];
        assert_eq!(host.plugged(&PROMPTS, &off).0, host.alone(&PROMPTS), "flash {flash}");
        assert_eq!(host.plugged(&PROMPTS, &[("STEPFLOW_CHECK", "on")]).0, host.alone(&PROMPTS), "flash {flash}");
    }
}

#[test]
fn texts_side_by_side_are_told_apart() {
    for unified in [true, false] {
        let host = Host { unified, ..FLASH };
        let (tokens, stats, _) = host.plugged(&PROMPTS, &[]);
        let alone: Vec<_> = PROMPTS.iter().map(|prompt| host.plugged(&[prompt], &[])).collect();
        for (together, (own, ..)) in tokens.iter().zip(&alone) {
            assert_eq!(together, &own[0], "unified {unified}");
        }
        for name in ["rows_seen", "rows_bridged", "injections"] {
            let sum: i64 = alone.iter().map(|(_, stats, _)| count(stats, name)).sum();
            assert_eq!(count(&stats, name), sum, "unified {unified}, {name}");
        }
    }
}

#[test]
fn two_models_at_once_have_books_of_their_own() {
    for flash in [0, 1] {
        // Random weights look at all cells about alike, which meets the paper's floor.
        let of = |models| Host { models, flash, ..FLASH }.plugged(&PROMPTS[..2], &[("STEPFLOW_TAU_MAX", "0.7")]);
        let [(first, own, _), (second, others, _), (both, stats, outcome)] =
            [Models::Builtin, Models::Tiny, Models::Both].map(of);
        assert_eq!(both, [first, second].concat(), "flash {flash}");
        for name in ["rows_seen", "rows_bridged", "injections"] {
            assert!(count(&own, name) > 0, "flash {flash}, {name}");
            assert_eq!(count(&stats, name), count(&own, name) + count(&others, name), "flash {flash}, {name}");
        }
        assert!(count(&others, "rows_bridged") > 0 && !outcome.stderr.contains("left alone"), "{}", outcome.stderr);
    }
}

#[test]
fn a_full_context_that_makes_room_is_followed() {
    for prompts in [&PROMPTS[..1], &PROMPTS[..3]] {
        let (_, stats, outcome) = FLASH.plugged(prompts, &[("HOST_SHIFTS", "1")]);
        assert!(!outcome.stderr.contains("left alone"), "{}", outcome.stderr);
        let (_, expected, _) = FLASH.plugged(prompts, &[]);
        assert_eq!(count(&stats, "rows_seen"), count(&expected, "rows_seen"), "every generated token is treated");
        assert!(count(&stats, "injections") > 0, "{stats}");
    }
}

#[test]
fn all_ways_in_do_the_same() {
    let (expected, stats, _) = FLASH.plugged(&PROMPTS[..1], &[]);
    for way in ["GGML_BACKEND_PATH", "HOST_ATTACHES"] {
        let (tokens, own, outcome) = FLASH.with(way, &PROMPTS[..1], &[]);
        assert_eq!((&tokens, &own), (&expected, &stats), "{way}: {}", outcome.stderr);
    }
}

#[test]
fn a_program_without_llama_cpp_is_told_so_once() {
    setting();
    let outcome = run(stepflow(["plug", "--", "false"]));
    assert_eq!(outcome.code(), Some(1), "{outcome:?}");
    outcome.assert_one_line();
    let outcome = run(stepflow(["plug", "--", "/nowhere/program"]));
    outcome.assert_fails(127, "/nowhere/program");
    run(stepflow(["plug", "--", "/"])).assert_fails(126, "cannot run /");
    run(stepflow(["plug", "llama-server"])).assert_fails(2, "plug -- llama-server");
    run(stepflow(["plug", "--stats", "/nowhere/x.json", "--", "true"])).assert_fails(1, "/nowhere");
    run(stepflow(["plug"])).assert_fails(2, "COMMAND");
}

#[test]
fn nonsense_in_a_variable_is_told_and_nothing_is_changed() {
    let host = FLASH;
    let mut command = host.command(&PROMPTS[..1]);
    command.env("LD_PRELOAD", &setting().plug).env("STEPFLOW_TAU_MAX", "much");
    let outcome = run(command);
    assert_eq!(tokens(&outcome), host.alone(&PROMPTS[..1]));
    assert!(outcome.stderr.contains("STEPFLOW_TAU_MAX"), "{}", outcome.stderr);
    let (_, _, outcome) = host.plugged(&PROMPTS[..1], &[("STEPFLOW_TAUMAX", "0.2")]);
    assert!(outcome.stderr.contains("STEPFLOW_TAUMAX changes nothing"), "{}", outcome.stderr);
}
