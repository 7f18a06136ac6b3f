//! `score`, `bench` and `inspect` as a user runs them.

mod common;
mod tiny;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tiny::{Arch, WeightType};

/// One thread: tests run side by side, and threads that wait for each other wait by spinning.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepflow"));
    command.args(args).env("LLAMA_ARG_THREADS", "1").stdin(Stdio::null());
    command
}

fn stepflow(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// What a run that succeeds writes to stdout.
fn stdout(args: &[&str]) -> String {
    let output = stepflow(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code of a run that fails, and the one line it says.
fn failure(args: &[&str]) -> (i32, String) {
    let output = stepflow(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    assert!(message.starts_with("stepflow: ") && message.trim_end().lines().count() == 1, "{args:?}: {message}");
    (output.status.code().unwrap(), message)
}

fn csv_rows(text: &str) -> Vec<csv::StringRecord> {
    csv::Reader::from_reader(text.as_bytes()).records().map(Result::unwrap).collect()
}

fn numbers(value: &Value, key: &str) -> Vec<f64> {
    value.as_array().unwrap().iter().filter_map(|item| item[key].as_f64()).collect()
}

const TEXT: &str = "<|im_start|>user\nAdd 2 and 3.\n\n<think>\nFirst I take the two numbers, two and three. Then I add \
    them up and get five. That seems right to me.\n</think>\nThe sum is 5.";

#[test]
fn score_has_a_row_for_every_token() {
    let model = tiny::tiny(Arch::Qwen3, WeightType::Q4_0);
    let model = model.to_str().unwrap();
    let rows = csv_rows(&stdout(&["score", "-m", model, "-p", TEXT]));
    let json: Value = serde_json::from_str(&stdout(&["score", "-m", model, "-p", TEXT, "--json"])).unwrap();
    let tokens = json["tokens"].as_array().unwrap();
    assert_eq!(rows.len(), tokens.len());
    assert_eq!(json["n_tokens"].as_u64(), Some(tokens.len() as u64));
    for (position, (row, token)) in rows.iter().zip(tokens).enumerate() {
        assert_eq!(row[0], position.to_string());
        assert_eq!(row[1], token["token"].to_string());
        assert_eq!(&row[3], token["segment"].as_str().unwrap());
        assert_eq!(row[4], token["step"].to_string());
        assert_eq!(row[5].is_empty(), position == 0);
    }
    let nll = numbers(&json["tokens"], "nll");
    let mean = nll.iter().sum::<f64>() / nll.len() as f64;
    // JSON holds every digit; only the order of summation could differ.
    assert!((json["mean_nll"].as_f64().unwrap() - mean).abs() <= 1e-12);
    assert!((json["perplexity"].as_f64().unwrap().ln() - mean).abs() <= 1e-9);
    let segments: Vec<&str> = rows.iter().map(|row| row.get(3).unwrap()).collect();
    assert!(["question", "thinking", "summary"].iter().all(|name| segments.contains(name)), "{segments:?}");
    let steps: Vec<usize> = rows.iter().map(|row| row[4].parse().unwrap()).collect();
    assert!(steps.is_sorted() && steps[0] == 0 && steps[steps.len() - 1] >= 4, "{steps:?}");
}

#[test]
fn score_takes_token_numbers_and_prompt_tokens() {
    let model = tiny::tiny(Arch::Llama, WeightType::Q4_0);
    let model = model.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (json, words) = (file("a.json", "[5, 6, 7, 8]"), file("b.txt", "5 6\n7 8\n"));
    let scored = stdout(&["score", "-m", model, "--tokens", &json, "--family", "implicit", "--prompt-tokens", "2"]);
    assert_eq!(
        scored,
        stdout(&["score", "-m", model, "--tokens", &words, "--family", "implicit", "--prompt-tokens", "2"])
    );
    let rows = csv_rows(&scored);
    let column = |index: usize| rows.iter().map(|row| row[index].to_owned()).collect::<Vec<_>>();
    assert_eq!(column(1), ["5", "6", "7", "8"]);
    assert_eq!(column(3), ["question", "question", "thinking", "thinking"]);
    for (content, expected) in
        [("5 x", "found `x`"), ("[5, -1]", "found -1"), ("5 99999999", "from 0 to"), (" ", "no tokens")]
    {
        let (code, message) = failure(&["score", "-m", model, "--tokens", &file("wrong.txt", content)]);
        assert_eq!(code, 1, "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn score_tells_what_it_cannot_score() {
    let model = tiny::tiny(Arch::Llama, WeightType::Q4_0);
    let model = model.to_str().unwrap();
    assert!(failure(&["score", "-m", model, "-p", ""]).1.contains("empty"));
    assert!(failure(&["score", "-m", model]).1.contains("empty"), "stdin is empty");
    let (code, message) = failure(&["score", "-m", model, "-p", TEXT, "-c", "16"]);
    assert_eq!(code, 3);
    assert!(message.contains("the context holds 16"), "{message}");
    // The tiny models are trained on 2048 tokens.
    let (code, message) = failure(&["score", "-m", model, "-p", &"one two three ".repeat(1000)]);
    assert_eq!(code, 3, "{message}");
}

#[test]
fn repairs_of_no_strength_change_no_score() {
    let tiny = tiny::tiny(Arch::GptOss, WeightType::Q4_0);
    for model in [Some(tiny), common::smollm2()].into_iter().flatten() {
        let model = model.to_str().unwrap();
        let base = ["score", "-m", model, "-p", TEXT, "-fa", "off", "--family", "think-tags"];
        let scored = |more: &[&str]| stdout(&[&base[..], more].concat());
        let plain = scored(&[]);
        assert_eq!(plain, scored(&["--stepflow", "--tau-max", "0", "--alpha", "0"]), "{model}");
        assert_ne!(plain, scored(&["--stepflow"]), "{model}: StepFlow does something");
    }
}

#[test]
fn score_counts_what_stepflow_did() {
    let Some(model) = common::smollm2() else { return };
    let args = ["score", "-m", model.to_str().unwrap(), "-p", TEXT, "--family", "think-tags", "--stepflow", "--json"];
    let json: Value = serde_json::from_str(&stdout(&args)).unwrap();
    let total = &json["stepflow"]["total"];
    assert!(total["rows_bridged"].as_u64() > Some(0) && total["injections"].as_u64() > Some(0), "{total}");
}

/// Ctrl-C keeps what is done.
#[test]
#[cfg(unix)]
fn an_interrupted_score_is_a_prefix() {
    use std::io::{BufRead, BufReader, Read};
    let Some(model) = common::smollm2() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.txt");
    let all: Vec<String> = (0..3000).map(|n| (1000 + n * 37 % 40000).to_string()).collect();
    std::fs::write(&tokens, all.join(" ")).unwrap();
    let mut child =
        command(&["score", "-m", model.to_str().unwrap(), "-ub", "64", "--tokens", tokens.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("score: "), "{line}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let drain = std::thread::spawn(move || stderr.read_to_string(&mut line).map(|_| line));
    let mut csv = String::new();
    child.stdout.take().unwrap().read_to_string(&mut csv).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(drain.join().unwrap().unwrap().contains("interrupted"));
    let rows = csv_rows(&csv);
    assert!((64..3000).contains(&rows.len()), "{} rows", rows.len());
    assert!(rows.iter().zip(&all).all(|(row, token)| &row[1] == token));
}

#[test]
fn cells_are_safe_in_a_spreadsheet() {
    let model = tiny::tiny(Arch::Llama, WeightType::Q4_0);
    let mut child = command(&["score", "-m", model.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a\"b, c\n=1+1 -2 @x").unwrap();
    let output = child.wait_with_output().unwrap();
    let rows = csv_rows(std::str::from_utf8(&output.stdout).unwrap());
    assert!(rows.len() > 5);
    assert!(rows.iter().all(|row| !row[2].starts_with(['=', '+', '-', '@'])), "{rows:?}");
}

/// Runs a small benchmark and gives its rows as objects, whatever the format.
fn bench(format: &str, more: &[&str]) -> Vec<Value> {
    let model = tiny::tiny(Arch::Qwen3, WeightType::Q4_0);
    let args = [
        "bench",
        "-m",
        model.to_str().unwrap(),
        "-p",
        "8",
        "-n",
        "4",
        "-d",
        "0,16",
        "-r",
        "2",
        "-t",
        "1",
        "--format",
        format,
    ];
    let text = stdout(&[&args[..], more].concat());
    match format {
        "json" => serde_json::from_str(&text).unwrap(),
        "jsonl" => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        _ => {
            let header = csv::Reader::from_reader(text.as_bytes()).headers().unwrap().clone();
            let cell = |cell: &str| serde_json::from_str(cell).unwrap_or_else(|_| Value::from(cell));
            let object = |row: csv::StringRecord| {
                header.iter().zip(&row).map(|(name, value)| (name.to_owned(), cell(value))).collect::<Value>()
            };
            csv_rows(&text).into_iter().map(object).collect()
        }
    }
}

fn check_bench(rows: &[Value], arm: &str) {
    let tests: Vec<_> =
        rows.iter().map(|row| (row["n_prompt"].as_u64(), row["n_gen"].as_u64(), row["n_depth"].as_u64())).collect();
    let expected = [(8, 0, 0), (0, 4, 0), (8, 0, 16), (0, 4, 16)];
    let expected = expected.iter().flat_map(|&(p, n, d)| [(Some(p), Some(n), Some(d)); 2]);
    assert_eq!(tests, expected.collect::<Vec<_>>());
    for pair in rows.chunks(2) {
        assert_eq!((pair[0]["arm"].as_str(), pair[1]["arm"].as_str()), (Some("baseline"), Some(arm)));
        for row in pair {
            assert!(row["avg_ns"].as_u64() > Some(0) && row["avg_ts"].as_f64() > Some(0.0), "{row}");
            assert!(row["model_type"].as_str().unwrap().starts_with("qwen3"), "{row}");
        }
        let ratio = |row: &Value, name: &str| row[&format!("ratio_{name}")].as_f64();
        assert_eq!(ratio(&pair[0], "median"), None);
        let [min, median, max] = ["min", "median", "max"].map(|name| ratio(&pair[1], name).unwrap());
        assert!(0.0 < min && min <= median && median <= max && max.is_finite(), "{min} {median} {max}");
    }
}

#[test]
fn bench_in_formats_for_programs() {
    check_bench(&bench("csv", &[]), "stepflow");
    check_bench(&bench("jsonl", &["--oeb"]), "oeb");
    let rows = bench("json", &[]);
    check_bench(&rows, "stepflow");
    for row in &rows {
        let (ns, ts) = (row["samples_ns"].as_array().unwrap(), row["samples_ts"].as_array().unwrap());
        assert_eq!((ns.len(), ts.len()), (2, 2));
        let n_tokens = (row["n_prompt"].as_f64().unwrap() + row["n_gen"].as_f64().unwrap()) * 1e9;
        for (ns, ts) in ns.iter().zip(ts) {
            // Nanoseconds are written without a fraction.
            assert!((n_tokens / ns.as_f64().unwrap() / ts.as_f64().unwrap() - 1.0).abs() <= 1e-4, "{row}");
        }
    }
}

#[test]
fn bench_as_a_table() {
    // A sliding window cannot be rewound; the depth is filled anew.
    let model = tiny::tiny(Arch::Gemma3, WeightType::Q4_0);
    let args = ["bench", "-m", model.to_str().unwrap(), "-p", "8", "-n", "4", "-d", "0,16", "-r", "2", "-t", "1"];
    let text = stdout(&args);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(cells(lines[0]), ["model", "size", "params", "backend", "threads", "test", "arm", "t/s", "ratio"]);
    let named: Vec<_> = lines[2..].iter().map(|line| (cells(line)[5].clone(), cells(line)[6].clone())).collect();
    let expected = ["pp8", "tg4", "pp8 @ d16", "tg4 @ d16"];
    let expected =
        expected.iter().flat_map(|test| ["baseline", "stepflow"].map(|arm| ((*test).to_owned(), arm.to_owned())));
    assert_eq!(named, expected.collect::<Vec<_>>());
    assert!(cells(lines[3])[8].contains('['), "{}", lines[3]);
    let width = lines[0].chars().count();
    assert!(lines.iter().all(|line| line.chars().count() == width), "{text}");
}

#[test]
fn bench_refuses_what_it_cannot_run() {
    let model = tiny::tiny(Arch::Qwen3, WeightType::Q4_0);
    let model = model.to_str().unwrap();
    assert!(failure(&["bench", "-m", model, "-p", "0", "-n", "0"]).1.contains("no test"));
    assert!(failure(&["bench", "-m", model, "-d", "2147483647"]).1.contains("use a smaller -d"));
    assert!(failure(&["bench", "-m", model, "-fa", "off", "-ctv", "q8_0"]).1.contains("flash attention"));
    let (code, message) = failure(&["bench", "-m", model, "--oeb-layers", "0-99"]);
    assert_eq!(code, 2, "{message}");
}

#[test]
fn inspect_names_family_and_layers() {
    for arch in Arch::ALL {
        let path = tiny::tiny(arch, WeightType::Q4_0);
        let path = path.to_str().unwrap();
        let json: Value = serde_json::from_str(&stdout(&["inspect", "-m", path, "--json"])).unwrap();
        let text = stdout(&["inspect", "-m", path]);
        assert_eq!(json["architecture"], arch.name());
        let family = json["family"].as_str().unwrap();
        assert_eq!(family, if arch == Arch::GptOss { "harmony" } else { "think-tags" }, "{arch:?}");
        assert!(text.contains(family), "{text}");
        assert_eq!(
            (json["layers"].as_u64(), json["heads"].as_u64(), json["heads_kv"].as_u64()),
            (Some(8), Some(4), Some(2))
        );
        assert_eq!(json["stepflow"]["works"], true, "{json}");
        // A quarter of eight layers.
        assert_eq!(json["stepflow"]["oeb_layers"], serde_json::json!([0, 1]));
        assert_eq!(json["stepflow"]["smi_layers"], serde_json::json!([6, 7]));
        assert!(text.contains("OEB layers       0-1\n") && text.contains("SMI layers       6-7\n"), "{text}");
        assert_eq!(json["sinks"], arch == Arch::GptOss);
        let window = matches!(arch, Arch::GptOss | Arch::Gemma3).then_some(8);
        assert_eq!(json["sliding_window"].as_u64(), window);
    }
}

#[test]
fn inspect_follows_the_flags() {
    let path = tiny::tiny(Arch::Llama, WeightType::F32);
    let path = path.to_str().unwrap();
    let args =
        ["inspect", "-m", path, "--json", "--smi-layers", "3,5-6", "--think-start", "<r>", "--think-end", "</r>"];
    let json: Value = serde_json::from_str(&stdout(&args)).unwrap();
    assert_eq!(json["stepflow"]["smi_layers"], serde_json::json!([3, 5, 6]));
    assert_eq!((json["family"].as_str(), json["family_from"].as_str()), (Some("custom"), Some("flags")));
    assert_eq!(json["markers"]["think_start"], "<r>");
}

/// What the model takes is llama.cpp's own count, so the parts that can be told otherwise are held to that.
#[test]
fn inspect_counts_memory_and_needs_no_more_than_the_header() {
    let path = tiny::tiny(Arch::Llama, WeightType::Q8_0);
    let facts = |path: &Path, more: &[&str]| -> Value {
        let args = [&["inspect", "--json", path.to_str().unwrap(), "-ngl", "0"], more].concat();
        serde_json::from_str(&stdout(&args)).unwrap()
    };
    let of = |facts: &Value, what: &str| facts["memory"]["devices"][0][what].as_u64().unwrap();
    let (small, large) = (facts(&path, &["-c", "1024"]), facts(&path, &["-c", "4096", "-ctk", "q8_0", "-ctv", "q8_0"]));
    // Eight layers of two heads of 64, K and V: 16-bit floats; then 34 bytes for 32.
    assert_eq!(of(&small, "kv_cache"), 1024 * 8 * 2 * 64 * 2 * 2);
    assert_eq!(of(&large, "kv_cache"), 4096 * 8 * 2 * 64 * 2 * 34 / 32);
    assert_eq!(
        (of(&small, "weights"), small["memory"]["context"].as_u64()),
        (small["size"].as_u64().unwrap(), Some(1024))
    );
    assert_eq!(
        of(&small, "total"),
        ["weights", "kv_cache", "compute_buffers"].map(|what| of(&small, what)).iter().sum::<u64>()
    );
    assert!(small["memory"]["devices"][0]["fits"].as_bool().unwrap());

    let whole = std::fs::read(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("part.gguf");
    std::fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    let mut partial = facts(&part, &["-c", "1024"]);
    assert_eq!(partial["stepflow"]["works"], Value::Null);
    let reason = partial["stepflow"]["reason"].take();
    assert!(reason.as_str().unwrap().starts_with("not tried: the file has "), "{reason}");
    assert_eq!(partial["saliency"], serde_json::json!({ "gradient": null, "reason": reason }));
    for (name, of_whole) in small
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| !["file", "stepflow", "saliency", "memory"].contains(&&***name))
    {
        assert_eq!(&partial[name], of_whole, "{name}");
    }
    for what in ["weights", "kv_cache", "compute_buffers"] {
        assert_eq!(of(&partial, what), of(&small, what));
    }
    std::fs::write(&part, &whole[..10_000]).unwrap();
    let (code, message) = failure(&["inspect", part.to_str().unwrap()]);
    assert!(code == 1 && message.contains("cut inside its header"), "{message}");
}

/// A context of which no machine has the memory: refused where it was asked for, and else made as large as it can be.
#[test]
fn a_context_that_does_not_fit_is_told_before_anything_is_loaded() {
    let path = tiny::tiny(Arch::Llama, WeightType::F32);
    let run = |path: &Path, size: &[&str]| {
        let ask = ["-m", path.to_str().unwrap(), "-ngl", "0", "-st", "-n", "2", "-p", "a", "--no-warmup"];
        stepflow(&[&ask[..], size].concat())
    };
    // 16,777,216 tokens of 8 KiB each, in 32-bit floats: 256 GiB.
    let caches = ["-ctk", "f32", "-ctv", "f32"];
    let refused = run(&path, &[&["-c", "16777216"], &caches[..]].concat());
    let message = String::from_utf8(refused.stderr).unwrap();
    let largest = message.trim_end().rsplit_once("the largest context that fits has ");
    let largest = largest.and_then(|(_, n)| n.split_once(' ')).map(|(n, _)| n.parse::<u32>());
    let free = std::fs::read_to_string("/proc/meminfo").is_ok_and(|text| text.contains("MemAvailable"));
    if !free {
        return common::skip("free memory is known on Linux alone");
    }
    assert_eq!((refused.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    assert!(
        message.contains("a context of 16777216 tokens needs ") && matches!(largest, Some(Ok(1..16_777_216))),
        "{message}"
    );

    // The same from the file: a model that was trained on so many.
    let mut bytes = std::fs::read(&path).unwrap();
    let key = b"llama.context_length";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&(1u32 << 24).to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("long.gguf");
    std::fs::write(&long, bytes).unwrap();
    let mut small = command(&["inspect", long.to_str().unwrap(), "-ngl", "0", "--json"]);
    small.args(caches);
    let facts: Value = serde_json::from_slice(&small.output().unwrap().stdout).unwrap();
    assert_eq!(facts["memory"]["devices"][0]["fits"], false, "{facts}");
    assert!(matches!(facts["memory"]["largest_context"].as_u64(), Some(1..16_777_216)), "{facts}");
}

#[test]
fn inspect_refuses_what_is_no_model() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let (code, message) = failure(&["inspect", "-m", file.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(message.contains("GGUF"), "{message}");
}

#[test]
fn devices_and_statistics_say_what_stepflow_works_with() {
    let devices = stdout(&["--list-devices"]);
    let cpu = devices.lines().find(|line| line.trim_start().starts_with("CPU: ")).expect("there is a CPU");
    assert!(devices.starts_with("Backends: ") && devices.contains("CPU\nAvailable devices:\n"), "{devices}");
    assert!(cpu.ends_with("StepFlow: fused"), "{devices}");
    let works = |flags: &[&str]| {
        let text = stdout(&[&["inspect", "-ngl", "0"], flags].concat());
        text.lines().find_map(|line| line.strip_prefix("StepFlow")).unwrap().trim().to_owned()
    };
    assert_eq!(works(&[]), "works in this model, inside flash attention");
    assert_eq!(works(&["-fa", "off"]), "works in this model, on the softmax, as flash attention is off");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats.json");
    let problem = "Ann has 3 coins. Bob has 2 more coins than Ann. How many coins does Bob have?";
    let path = path.to_str().unwrap();
    let quantized = ["-ctk", "q8_0", "-ctv", "q4_0"];
    for (more, kernels) in
        [(&[][..], "fused"), (&["-fa", "on"], "fused"), (&quantized, "fused"), (&["-fa", "off"], "host")]
    {
        stdout(&[&["-p", problem, "-st", "-ngl", "0", "--stepflow", "--stats", path], more].concat());
        let stats: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let layers = stats["layers"].as_array().unwrap();
        assert!(layers.len() >= 2 && layers.iter().all(|layer| layer["kernels"] == kernels), "{more:?}: {stats}");
    }
}
