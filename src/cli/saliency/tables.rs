//! The tables of a saliency run: tidy CSV, one row a number; and where asked for, the same as Parquet and as matrices.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use stepflow::saliency::{LayerMetrics, Pattern, Run, Saliency, Untold, Verdict};
use stepflow::stepflow::StepFlowConfig;
use stepflow::trace::{Segment, TraceFile};

use super::measure::{Method, Task};
use super::parquet;
use crate::cli::output;

/// Of the format of these files.
const VERSION: u32 = 1;

/// Everything that a run has to show.
pub struct Tables<'a> {
    pub task: &'a Task<'a>,
    pub trace: &'a TraceFile,
    pub method: Method,
    pub saliency: &'a Saliency,
    /// Of every layer.
    pub metrics: &'a [(usize, LayerMetrics)],
    pub even: &'a LayerMetrics,
    pub verdict: &'a Verdict,
}

/// A row of `steps.csv`; `end` is the token after the last.
#[derive(Serialize)]
struct StepRow<'a> {
    run_id: &'a str,
    step: usize,
    segment: Segment,
    start: usize,
    end: usize,
    text: &'a str,
}

/// A row of `layers.csv`.
#[derive(Serialize)]
struct LayerRow<'a> {
    run_id: &'a str,
    method: &'a str,
    layer: usize,
    metric: &'a str,
    value: Option<f64>,
    /// What it would be if every token were looked at alike.
    even: Option<f64>,
}

impl Tables<'_> {
    /// Writes all files into the folder of the run.
    pub fn write(&self) -> anyhow::Result<()> {
        let run = self.run()?;
        let id = run["run_id"].as_str().unwrap_or_default();
        self.file("steps.csv", |out| self.steps(id, out))?;
        self.file("layers.csv", |out| self.layers(id, out))?;
        self.file("cells.csv", |out| self.run_of(id).write_csv(&self.saliency.layers, out))?;
        let parquet = self.task.tables.parquet;
        if parquet {
            let groups = self.saliency.layers.iter().map(|layer| self.run_of(id).cells(layer));
            let bytes = parquet::table(groups)?;
            self.file("cells.parquet", |out| out.write_all(&bytes))?;
        }
        if self.task.args.heads && parquet {
            let groups = self.saliency.layers.iter().map(|layer| self.run_of(id).heads(layer));
            let bytes = parquet::heads(groups)?;
            self.file("heads.parquet", |out| out.write_all(&bytes))?;
        } else if self.task.args.heads {
            self.file("heads.csv", |out| self.run_of(id).write_heads(&self.saliency.layers, out))?;
        }
        if self.task.tables.wide {
            self.matrices()?;
        }
        self.file("run.json", |out| writeln!(out, "{run:#}"))
    }

    fn file(&self, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
        output::write_file(&self.task.out.join(name), |out| {
            let mut buffered = io::BufWriter::new(out);
            write(&mut buffered)?;
            buffered.flush()
        })
    }

    /// What the run was.
    fn run(&self) -> anyhow::Result<serde_json::Value> {
        let loss = self.saliency.loss.map(|nats| json!({ "of": self.task.loss().to_string(), "mean_nats": nats }));
        let mut run = json!({
            "stepflow_saliency": VERSION,
            "stepflow": env!("CARGO_PKG_VERSION"),
            "model": {
                "file": self.task.model.path().file_name().map(|name| name.to_string_lossy()),
                "description": self.task.model.description(),
                "sha256": output::sha256_of(self.task.model.path())?,
            },
            "trace_sha256": self.trace_sha256()?,
            "method": self.method.name(),
            "probe": self.probe(),
            "stepflow_settings": self.stepflow(),
            "interrupted": self.task.interrupt.was_pressed(),
            "loss": loss,
            "layers": self.saliency.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(),
            "verdict": {
                "shallow_lock_in": pattern(&self.verdict.shallow_lock_in),
                "deep_decay": pattern(&self.verdict.deep_decay),
            },
            "n_tokens": self.trace.tokens.len(),
            "n_steps": self.task.pool.n_steps(),
        });
        let id = output::hex(&Sha256::digest(run.to_string())[..6]);
        run["run_id"] = json!(id);
        // How and when it was made is no part of what it is.
        let line = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>();
        run["command"] = json!(line);
        run["date"] = json!(output::utc_now());
        run["settings"] = self.settings();
        Ok(run)
    }

    /// What the flags say, those left out as they are by default.
    fn settings(&self) -> serde_json::Value {
        let args = self.task.args;
        json!({
            "layers": args.layers.as_ref().map_or_else(|| "all".to_owned(), ToString::to_string),
            "loss": self.task.loss().to_string(),
            "memory": args.memory,
            "heads": args.heads,
            "threads": args.threads,
            "parquet": self.task.tables.parquet,
            "wide": self.task.tables.wide,
        })
    }

    /// The repairs that the model was measured with; none where it was measured as it is.
    fn stepflow(&self) -> serde_json::Value {
        let StepFlowConfig { oeb, smi } = self.task.stepflow;
        let oeb = oeb.as_ref().map(|oeb| json!({ "layers": oeb.layers.to_string(), "tau_max": oeb.tau_max }));
        let smi = smi.as_ref().map(
            |smi| json!({ "layers": smi.layers.to_string(), "alpha": smi.alpha, "window": smi.window.to_string() }),
        );
        json!({ "oeb": oeb, "smi": smi })
    }

    /// How probes were made.
    fn probe(&self) -> Option<serde_json::Value> {
        let probe = &self.task.args.probe;
        let settings = json!({
            "estimator": probe.estimator(),
            "pairs": probe.pairs(),
            "budget": probe.budget,
            "activations": probe.activations(),
            "seed": probe.seed(),
        });
        (self.method == Method::Probe).then_some(settings)
    }

    /// Of the trace as `--save-trace` writes it, wherever it came from.
    fn trace_sha256(&self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.trace.write(&mut bytes)?;
        Ok(output::hex(&Sha256::digest(&bytes)))
    }

    fn steps(&self, run_id: &str, out: &mut dyn Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        for (step, span) in self.trace.steps.iter().enumerate() {
            let text = super::step_text(self.trace, step);
            let (start, end) = (span.tokens.start, span.tokens.end);
            csv.serialize(StepRow { run_id, step, segment: span.segment, start, end, text: &output::cell(&text) })?;
        }
        csv.flush()
    }

    fn layers(&self, run_id: &str, out: &mut dyn Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        let method = self.method.name();
        for (layer, metrics) in self.metrics {
            for ((metric, value), (_, even)) in metrics.named().into_iter().zip(self.even.named()) {
                csv.serialize(LayerRow { run_id, method, layer: *layer, metric, value, even })?;
            }
        }
        csv.flush()
    }

    /// What all rows of `cells.csv` share.
    fn run_of<'a>(&'a self, id: &'a str) -> Run<'a> {
        Run { id, method: self.method.name(), steps: &self.trace.steps, pool: &self.task.pool }
    }

    /// Each layer's most telling map as a matrix: a row for each query step, a column for each key step.
    fn matrices(&self) -> anyhow::Result<()> {
        let folder = self.task.out.join("layers");
        std::fs::create_dir_all(&folder)?;
        for layer in &self.saliency.layers {
            let Some((_, map)) = layer.most_telling() else { continue };
            output::write_file(&folder.join(format!("{:02}.csv", layer.layer)), |out| {
                let mut csv = csv::Writer::from_writer(out);
                let keys = (0..map.n_steps()).map(|key| key.to_string());
                csv.write_record(std::iter::once("query_step".to_owned()).chain(keys))?;
                for query in 0..map.n_steps() {
                    let measured = |value: &f64| if value.is_nan() { String::new() } else { value.to_string() };
                    let masked = std::iter::repeat_n(String::new(), map.n_steps() - query - 1);
                    let row = std::iter::once(query.to_string()).chain(map.row(query).iter().map(measured));
                    csv.write_record(row.chain(masked))?;
                }
                csv.flush()
            })?;
        }
        Ok(())
    }
}

fn pattern(found: &Result<Pattern, Untold>) -> serde_json::Value {
    let pattern = match found {
        Ok(pattern) => pattern,
        Err(untold) => return json!({ "shown": null, "reason": untold.to_string() }),
    };
    let (mean, least, most) = pattern.range();
    json!({
        "shown": pattern.is_shown(),
        "layers": pattern.layers,
        "layers_looked_at": pattern.shares.iter().map(|(layer, _)| layer).collect::<Vec<_>>(),
        "mean": mean,
        "least": least,
        "most": most,
        "even": pattern.even,
        "deeper": pattern.others.map(|others| json!({ "mean": others.mean, "deviation": others.deviation })),
    })
}
