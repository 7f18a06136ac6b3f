//! `stepflow saliency` as a user runs it: on a trace that the embedded model left, and on what is no such trace.
#![cfg(unix)]

mod common;
mod maps;
mod program;

use std::collections::BTreeMap;
use std::path::Path;

use common::{median, spearman};
use maps::{number, table, traced};
use program::{Running, run, run_with, stepflow};
use stepflow::trace::TraceFile;

#[test]
fn every_causal_cell_of_every_layer_is_in_the_table() {
    let (folder, trace) = traced();
    let out = folder.path().join("maps");
    let args = ["saliency", folder.path().join("trace.json").to_str().unwrap()].map(str::to_owned);
    let run_to = |method: &str| {
        let flags = ["-t", "1", "--method", method, "-o", out.to_str().unwrap()].map(str::to_owned);
        let outcome = run(stepflow(args.iter().chain(&flags)));
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        assert!(outcome.text().starts_with("Shallow Lock-in: "), "{outcome:?}");
        assert!(outcome.text().contains("\nDeep Decay: "), "{outcome:?}");
        table(&out.join("cells.csv"))
    };
    let n = trace.steps.len();
    let pairs = n * (n + 1) / 2;

    let exact = run_to("gradient");
    assert_eq!(exact.len(), 12 * 2 * pairs);
    let saliency: Vec<_> = exact.iter().filter(|row| row["metric"] == "saliency").collect();
    assert!(saliency.iter().all(|row| number(row, "value") >= 0.0 && row["se"].is_empty()));
    assert!(saliency.iter().any(|row| number(row, "value") > 0.0));
    // A signed sum over heads is at most what its parts add up to: 4 heads, rounding aside.
    let key = |row: &BTreeMap<String, String>| ["layer", "query_step", "key_step"].map(|column| row[column].clone());
    let of: BTreeMap<_, _> = saliency.iter().map(|row| (key(row), number(row, "value"))).collect();
    for row in exact.iter().filter(|row| row["metric"] == "signed") {
        assert!(number(row, "value").abs() <= 4.0 * of[&key(row)] * (1.0 + 1e-9), "{row:?}");
    }
    let steps = table(&out.join("steps.csv"));
    let text: String = steps.iter().map(|row| row["text"].trim_start_matches('\'')).collect();
    assert!(text.contains("Ida has 9 coins."), "{text}");
    assert_eq!(steps.last().unwrap()["end"], trace.tokens.len().to_string());
    let layers = table(&out.join("layers.csv"));
    let shares = ["lock_in", "question_share", "summary_to_thinking"];
    for row in layers.iter().filter(|row| shares.contains(&row["metric"].as_str())) {
        assert!((0.0..=1.0).contains(&number(row, "value")) && (0.0..1.0).contains(&number(row, "even")), "{row:?}");
    }
    for rows in layers.chunks(6) {
        let [.., summary, thinking, ratio] = rows else { panic!("{rows:?}") };
        assert_eq!(
            ["final_block", "analysis_block", "final_to_analysis"],
            [summary, thinking, ratio].map(|r| &r["metric"])
        );
        assert_eq!(number(ratio, "value"), number(summary, "value") / number(thinking, "value"));
        assert!(summary["even"].is_empty() && number(ratio, "even") > 0.0);
    }
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!((&run["method"], &run["n_steps"]), (&"gradient".into(), &n.into()));
    assert!(run["loss"]["mean_nats"].as_f64().unwrap() > 0.0);

    let attention = run_to("attention");
    assert_eq!(attention.len(), 12 * pairs);
    for layer in 0..12 {
        // All attention of a step's tokens adds up to one each.
        for (query, step) in trace.steps.iter().enumerate() {
            let row = attention
                .iter()
                .filter(|row| row["layer"] == layer.to_string() && row["query_step"] == query.to_string());
            let total: f64 = row.map(|row| number(row, "value") * number(row, "n_pairs")).sum();
            // Sums of half-precision keys and float32 shares.
            let error = (total / step.tokens.len() as f64 - 1.0).abs();
            assert!(error <= 1e-4, "layer {layer}, step {query}: {total}");
        }
    }
}

#[test]
fn layers_and_the_loss_can_be_chosen() {
    let (folder, _) = traced();
    let (trace, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let maps = |loss: &str| {
        let args = ["saliency", "-", "-t", "1", "--layers", "3,7-8", "--loss", loss, "-o", out.to_str().unwrap()];
        let outcome = run_with(stepflow(args), &std::fs::read(&trace).unwrap());
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        table(&out.join("cells.csv"))
    };
    let whole = maps("all");
    let layers: std::collections::BTreeSet<&str> = whole.iter().map(|row| row["layer"].as_str()).collect();
    assert_eq!(layers.into_iter().collect::<Vec<_>>(), ["3", "7", "8"]);
    assert_ne!(whole[0]["run_id"], maps("thinking")[0]["run_id"]);
    // Nothing after a step can change how surprising its tokens are.
    let first = maps("step:1");
    assert!(first.iter().all(|row| number(row, "query_step") < 2.0 || number(row, "value") == 0.0));
    assert!(first.iter().any(|row| number(row, "value") != 0.0));
}

#[test]
fn without_the_memory_for_better_it_takes_attention_and_says_why() {
    let (folder, _) = traced();
    let (trace, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let args = ["saliency", trace.to_str().unwrap(), "-t", "1", "--memory", "1M", "-o", out.to_str().unwrap()];
    let outcome = run(stepflow(args));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("attention alone: a backward pass needs about"), "{outcome:?}");
    let cells = table(&out.join("cells.csv"));
    assert!(cells.iter().all(|row| row["method"] == "attention"));
    // Attention has no loss to tell runs apart by; the trace does.
    let mut other = TraceFile::read(&std::fs::read(&trace).unwrap()).unwrap();
    let last = other.tokens.len() - 1;
    other.tokens[last] = other.tokens[0].clone();
    other.tokens[last].segment = other.tokens[last - 1].segment;
    other.write(std::fs::File::create(&trace).unwrap()).unwrap();
    assert_eq!(run(stepflow(args)).code(), Some(0));
    assert_ne!(table(&out.join("cells.csv"))[0]["run_id"], cells[0]["run_id"]);
}

#[test]
fn what_is_no_trace_of_the_model_is_refused_in_one_line() {
    let (folder, trace) = traced();
    let out = folder.path().join("maps");
    let write = |name: &str, change: &dyn Fn(&mut TraceFile)| {
        let mut changed = trace.clone();
        change(&mut changed);
        let path = folder.path().join(name);
        changed.write(std::fs::File::create(&path).unwrap()).unwrap();
        path
    };
    let refused = |path: &Path, flags: &[&str], code: i32, says: &str| {
        // With the model named, what it has to say of the trace is all it has to say.
        let model = stepflow::builtin::path().unwrap();
        let args = ["saliency", path.to_str().unwrap(), "-m", model.to_str().unwrap(), "-o", out.to_str().unwrap()];
        run(stepflow(args.iter().chain(flags))).assert_fails(code, says);
        assert!(!out.exists(), "{says}");
    };
    let other = write("other.json", &|trace| trace.tokens[3].piece = b"?".to_vec());
    refused(&other, &[], 1, "token 3 of the trace");
    let unknown = write("unknown.json", &|trace| trace.tokens[3].id = 1 << 30);
    refused(&unknown, &[], 1, "in this model it is none");
    let one = write("one.json", &|trace| {
        trace.steps.truncate(1);
        trace.tokens.truncate(trace.steps[0].tokens.end);
    });
    refused(&one, &[], 1, "at least two steps, found 1");
    let good = folder.path().join("trace.json");
    refused(&good, &["--method", "gradient", "--memory", "1M"], 1, "needs about");
    refused(&good, &["--memory", "1K"], 1, "steps in 12 layers take about");
    refused(&good, &["--memory", "much"], 2, "such as 8G");
    refused(&good, &["--layers", "12"], 2, "layer 12");
    refused(&good, &["--loss", "step:9999"], 2, "--loss step:9999");
    refused(&good, &["--loss", "half"], 2, "step:N");
    refused(Path::new("/nonexistent"), &[], 1, "cannot read /nonexistent");
    std::fs::write(folder.path().join("text"), "Hello").unwrap();
    refused(&folder.path().join("text"), &[], 1, "neither a trace of --save-trace nor a conversation as JSONL: line 1");
    let overlapping = write("overlap.json", &|trace| trace.steps[1].tokens.start -= 1);
    refused(&overlapping, &[], 1, "step 1 holds tokens");
    let outside = write("outside.json", &|trace| trace.steps.last_mut().unwrap().tokens.end += 1);
    refused(&outside, &[], 1, "at most");
    refused(&good, &["--chat-template", "x"], 2, "--chat-template is for conversations");
}

/// Signed cells with their errors and marks, in order.
fn signed(path: &Path) -> Vec<(String, f64, BTreeMap<String, String>)> {
    let rows = table(path).into_iter().filter(|row| row["metric"] == "signed");
    rows.map(|row| (row["layer"].clone(), number(&row, "value"), row)).collect()
}

#[test]
fn probes_estimate_what_the_backward_pass_gives() {
    let (folder, _) = traced();
    let float = folder.path().join("float32.gguf");
    stepflow::llama::quantize(&stepflow::builtin::path().unwrap(), &float, stepflow::gguf::GgmlType::F32).unwrap();
    let maps = |layers: &str, flags: &[&str]| {
        let (trace, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
        let fixed = ["saliency", trace.to_str().unwrap(), "-o", out.to_str().unwrap(), "-t", "1", "--layers", layers];
        let outcome = run(stepflow(fixed.into_iter().chain(flags.iter().copied())));
        assert_eq!(outcome.code(), Some(0), "{outcome:?}");
        signed(&out.join("cells.csv"))
    };
    let exact = |layers: &str| maps(layers, &["-m", float.to_str().unwrap(), "--method", "gradient"]);

    let (probed, three) = (maps("0,5,11", &["--method", "probe", "--activations", "f32"]), exact("0,5,11"));
    let correlations = ["0", "5", "11"].map(|layer| {
        let both = probed.iter().zip(&three).filter(|(row, _)| row.0 == layer);
        spearman(&both.map(|(found, exact)| (found.1, exact.1)).collect::<Vec<_>>())
    });
    assert!(median(correlations.to_vec()) >= 0.98, "{correlations:?}");
    let covered = probed.iter().zip(&three).filter(|((_, value, row), exact)| {
        (value - exact.1).abs() <= 2.0 * number(row, "se") + number(row, "curvature")
    });
    assert!(covered.count() as f64 >= 0.95 * three.len() as f64);

    // Quantized products hide most cells of so sure a model, so all layers are needed for some that show.
    let (probed, all) = (maps("0-11", &["--method", "probe"]), exact("0-11"));
    let shown: Vec<_> = probed.iter().zip(&all).filter(|((.., row), _)| row["below_noise"] == "FALSE").collect();
    let wrong = shown.iter().filter(|((_, value, _), exact)| value * exact.1 < 0.0).count();
    assert!(shown.len() > 5, "{}", shown.len());
    assert!(wrong as f64 <= 0.05 * shown.len() as f64, "{wrong} of {}", shown.len());
}

#[test]
fn a_budget_is_kept_and_goes_where_noise_is() {
    let (folder, trace) = traced();
    let out = folder.path().join("maps");
    let n = trace.steps.len();
    let probe = |budget: usize| {
        let (path, budget) = (folder.path().join("trace.json"), budget.to_string());
        let args = ["saliency", path.to_str().unwrap(), "-t", "1", "-o", out.to_str().unwrap(), "--method", "probe"];
        run(stepflow(args.into_iter().chain(["--layers", "5", "--budget", &budget])))
    };
    let outcome = probe(1);
    assert_eq!(outcome.code(), Some(2), "{outcome:?}");
    assert!(!out.exists(), "nothing is written");
    let told = outcome.stderr.split("at least ").nth(1).unwrap().split(' ').next().unwrap();
    let least: usize = told.parse().unwrap();
    assert!(least >= 3 * 9 * n + n * (n + 1), "{least} with {n} steps");
    assert_eq!(probe(least - 1).code(), Some(2));

    let outcome = probe(least + 60);
    assert_eq!(outcome.code(), Some(0));
    let shown = outcome.stderr.lines().filter_map(|line| line.strip_prefix("probe: ")?.split('/').next()?.parse().ok());
    let done: usize = shown.max().unwrap();
    assert!((least..=least + 60).contains(&done), "{done} of {}", least + 60);
    let cells = table(&out.join("cells.csv"));
    let probes = |row: &BTreeMap<String, String>| number(row, "n_probes") as usize;
    let spent = cells.iter().map(probes).sum::<usize>();
    assert!(spent > n * (n + 1) && spent <= n * (n + 1) + 60, "{spent}");
    // Within a query step, a cell got more only where its error would else have been larger than any other's is now.
    let error = |row: &BTreeMap<String, String>| number(row, "se") * number(row, "n_pairs");
    for query in 0..n {
        let of: Vec<_> = cells.iter().filter(|row| row["query_step"] == query.to_string()).collect();
        let more = of.iter().filter(|row| probes(row) > 2);
        let before = more.map(|row| error(row) * (probes(row) as f64 / 2.0).sqrt()).fold(f64::INFINITY, f64::min);
        assert!(of.iter().filter(|row| probes(row) == 2).all(|row| error(row) <= before * 1.0001));
    }
}

#[test]
fn a_flag_without_effect_is_refused() {
    let (folder, _) = traced();
    let (trace, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    for (flags, reason) in [
        (["--method", "attention", "--pairs", "3"], "--pairs is for --method probe"),
        (["--method", "gradient", "--activations", "f32"], "--activations is for --method probe"),
        (["--method", "attention", "--loss", "summary"], "--method attention looks at no loss"),
        (["--method", "auto", "--loss", "step:99"], "the trace has no such tokens"),
    ] {
        let args = ["saliency", trace.to_str().unwrap(), "-t", "1", "-o", out.to_str().unwrap()];
        let outcome = run(stepflow(args.into_iter().chain(flags)));
        assert_eq!(outcome.code(), Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
        assert!(!out.exists(), "nothing is written");
    }
}

#[test]
fn what_ctrl_c_left_unmeasured_is_empty() {
    let (folder, _) = traced();
    let (trace, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let args = ["saliency", trace.to_str().unwrap(), "-t", "1", "-o", out.to_str().unwrap(), "--method", "probe"];
    let mut running = Running::start(stepflow(args.into_iter().chain(["--estimator", "rms", "--layers", "0,1"])));
    // The first forwards only tell how noisy the loss is.
    let forwards = |line: &str| line.strip_prefix("probe: ")?.split('/').next()?.parse::<usize>().ok();
    running.wait_until(|_, stderr| stderr.lines().filter_map(forwards).any(|n| n > 150));
    running.interrupt();
    let outcome = running.finish();
    assert_eq!(outcome.code(), Some(130), "{outcome:?}");
    assert!(outcome.stderr.contains("cells that were not measured are empty"), "{outcome:?}");
    let cells = table(&out.join("cells.csv"));
    let (measured, empty): (Vec<_>, Vec<_>) = cells.iter().partition(|row| !row["value"].is_empty());
    assert!(!measured.is_empty() && !empty.is_empty());
    let columns = ["se", "n_probes", "eps", "below_noise", "curvature"];
    assert!(empty.iter().all(|row| columns.iter().all(|column| row[*column].is_empty())));
    assert!(measured.iter().all(|row| columns.iter().all(|column| !row[*column].is_empty())));
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["interrupted"], true);
}

#[test]
fn pictures_and_a_page_of_one_file_are_left() {
    let (folder, _) = traced();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let outcome = run(stepflow(["saliency", path.to_str().unwrap(), "-t", "1", "-o", out.to_str().unwrap()]));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    for picture in ["heatmap.svg", "heatmap.png", "curves.svg", "curves.png", "layers/00.svg", "layers/11.png"] {
        assert!(std::fs::metadata(out.join(picture)).is_ok_and(|file| file.len() > 1_000), "{picture}");
    }
    // One file, which asks for nothing; what is on it `tests/page.rs` tries.
    let page = std::fs::read_to_string(out.join("index.html")).unwrap();
    assert!(page.contains("How many coins does Ann have?") && page.contains("default-src 'none'"), "{page}");
    assert!(!page.contains("{{") && !page.contains("<link") && !page.contains(" src="), "{page}");
}

/// Arguments of a run on a trace, into a folder.
fn measured(command: &str, trace: &Path, out: &Path, flags: &[&str]) -> program::Outcome {
    let args = [command, trace.to_str().unwrap(), "-t", "1", "-o", out.to_str().unwrap()];
    run(stepflow(args.iter().chain(flags)))
}

#[test]
fn a_trace_beyond_what_the_model_was_trained_with_is_measured_with_a_warning() {
    let (folder, mut trace) = traced();
    let (path, out) = (folder.path().join("long.json"), folder.path().join("maps"));
    let (last, token) = (trace.steps.len() - 1, trace.tokens.last().unwrap().clone());
    trace.tokens.resize(2100, token);
    trace.steps[last].tokens.end = 2100;
    trace.write(std::fs::File::create(&path).unwrap()).unwrap();
    let outcome = measured("saliency", &path, &out, &["--method", "gradient", "--layers", "11"]);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("2100 tokens, and the model was trained with 2048"), "{outcome:?}");
}

#[test]
fn heads_add_up_to_their_layers() {
    let (folder, trace) = traced();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    assert_eq!(measured("saliency", &path, &out, &["--heads"]).code(), Some(0));
    let heads = table(&out.join("heads.csv"));
    let n = trace.steps.len();
    assert_eq!(heads.len(), 12 * 4 * n * (n + 1) / 2);
    let key = |row: &BTreeMap<String, String>| ["layer", "query_step", "key_step"].map(|column| row[column].clone());
    let mut sums: BTreeMap<_, (f64, f64)> = BTreeMap::new();
    for row in &heads {
        let sum = sums.entry(key(row)).or_default();
        *sum = (sum.0 + number(row, "saliency"), sum.1 + number(row, "signed"));
    }
    for row in table(&out.join("cells.csv")) {
        let (saliency, signed) = sums[&key(&row)];
        let expected = if row["metric"] == "saliency" { saliency / 4.0 } else { signed };
        // The same numbers added in another order, in float64.
        assert!((number(&row, "value") - expected).abs() <= 1e-12 * saliency.max(1e-300), "{row:?} {expected}");
    }
    assert_eq!(measured("saliency", &path, &out, &["--heads", "--parquet"]).code(), Some(0));
    assert!(!out.join("heads.csv").exists(), "of the run before");
    let file = std::fs::File::open(out.join("heads.parquet")).unwrap();
    let rows =
        parquet::file::reader::FileReader::metadata(&parquet::file::reader::SerializedFileReader::new(file).unwrap())
            .file_metadata()
            .num_rows();
    assert_eq!(rows as usize, heads.len());
    let model = stepflow::builtin::path().unwrap();
    let flags = ["--heads", "--method", "attention", "-m", model.to_str().unwrap()];
    measured("saliency", &path, &out, &flags).assert_fails(2, "--heads is for --method gradient");
}

#[test]
fn maps_of_the_repaired_model_are_its_own() {
    let (folder, _) = traced();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let cells = |flags: &[&str]| {
        let outcome = measured("saliency", &path, &out, flags);
        assert_eq!(outcome.code(), Some(0), "{flags:?}: {outcome:?}");
        let about: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
        (table(&out.join("cells.csv")).iter().map(|row| number(row, "value")).collect::<Vec<_>>(), about)
    };
    let (plain, about) = cells(&[]);
    assert!(about["stepflow_settings"]["oeb"].is_null() && about["stepflow_settings"]["smi"].is_null());
    let (repaired, about) = cells(&["--stepflow"]);
    assert_eq!(about["stepflow_settings"]["smi"]["window"], "4");
    assert_ne!(plain, repaired);
    let (idle, _) = cells(&["--stepflow", "--tau-max", "0", "--alpha", "0"]);
    // OEB's groups are summed one by one, which is another order.
    let largest = plain.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    assert!(plain.iter().zip(&idle).all(|(a, b)| (a - b).abs() <= 1e-6 * largest));
    measured("saliency", &path, &out, &["--tau-max", "0.1"]).assert_fails(2, "turns it on");
    let model = stepflow::builtin::path().unwrap();
    let flags = ["--stepflow", "--method", "probe", "-m", model.to_str().unwrap()];
    measured("saliency", &path, &out, &flags).assert_fails(2, "--stepflow is for --method gradient");
}

#[test]
fn inputs_of_layers_wait_in_a_file_where_memory_is_short() {
    let (folder, _) = traced();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    let outcome = measured("saliency", &path, &out, &["--method", "gradient"]);
    let said = outcome.stderr.split("needs about ").nth(1).unwrap_or_else(|| panic!("{outcome:?}")).to_owned();
    let mut sizes = said.split(", and ").map(|part| {
        let mut words = part.split_whitespace();
        let number: f64 = words.next().unwrap().parse().unwrap();
        number * if words.next().unwrap().starts_with("MiB") { 1024.0 } else { 1.0 }
    });
    let (work, inputs) = (sizes.next().unwrap(), sizes.next().unwrap());
    let short = format!("{}K", (work + inputs / 2.0) as u64);
    let cells = std::fs::read(out.join("cells.csv")).unwrap();
    let flags = ["--method", "gradient", "--memory", &short];
    let outcome = measured("saliency", &path, &out, &flags);
    assert!(outcome.stderr.contains("in a temporary file"), "{outcome:?}");
    assert_eq!(std::fs::read(out.join("cells.csv")).unwrap(), cells);
    std::fs::remove_dir_all(&out).unwrap();
    let args = ["saliency", path.to_str().unwrap(), "-t", "1", "-o", out.to_str().unwrap()];
    let mut command = stepflow(args.iter().chain(&flags));
    command.env("TMPDIR", folder.path().join("nowhere"));
    let outcome = run(command);
    assert_eq!(outcome.code(), Some(1), "{outcome:?}");
    let error = outcome.stderr.lines().last().unwrap();
    assert!(error.contains("cannot be kept in a temporary file in") && error.contains("nowhere"), "{outcome:?}");
}

#[test]
fn sensitivity_tells_of_every_head() {
    let (folder, _) = traced();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("sensitivity"));
    let outcome = measured("sensitivity", &path, &out, &["--tau", "0.1,0.15"]);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.text().contains("SMI at alpha 0.06 in the last quarter"), "{outcome:?}");
    let rows = table(&out.join("sensitivity.csv"));
    assert_eq!(rows.len(), 12 * 4 * 3);
    assert!(rows.iter().all(|row| row["se"].is_empty() && row["n_traces"] == "1"));
    assert!(out.join("sensitivity.svg").is_file() && out.join("sensitivity.png").is_file());
    let outcome = measured("sensitivity", &path, &out, &["--stepflow"]);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let rows = table(&out.join("sensitivity.csv"));
    // By default OEB is in the first quarter of the layers, SMI in the last.
    let has = |row: &&BTreeMap<String, String>| number(row, "mean") != 0.0;
    let layers = |quantity: &str| -> Vec<usize> {
        let of =
            rows.iter().filter(|row| row["quantity"] == quantity).filter(has).map(|row| row["layer"].parse().unwrap());
        of.collect()
    };
    assert!(!layers("dL_dalpha").is_empty() && layers("dL_dalpha").iter().all(|layer| *layer >= 9));
    assert!(layers("dL_dtau").iter().all(|layer| *layer < 3));
    measured("sensitivity", &path, &out, &["--tau", "2"]).assert_fails(2, "0..1");
    measured("sensitivity", &path, &out, &["--tau-max", "0.1"]).assert_fails(2, "turns it on");
}
