//! Results in llama-bench's formats, with its field names.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use stepflow::llama::{ContextParams, FlashAttention, Model};

use super::super::args::BenchFormat;
use super::super::output;
use super::machine;
use super::measure::{Arm, Samples, median};
use super::plan::Test;

/// What all results have in common.
#[derive(Clone, Serialize)]
pub struct Setting {
    build_commit: &'static str,
    cpu_info: String,
    backends: String,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    n_batch: u32,
    n_ubatch: u32,
    n_threads: i32,
    type_k: &'static str,
    type_v: &'static str,
    n_gpu_layers: i32,
}

impl Setting {
    /// The setting of contexts made of `params`.
    pub fn new(model: &Model, params: &ContextParams, n_gpu_layers: u32) -> Self {
        Self {
            build_commit: env!("CARGO_PKG_VERSION"),
            cpu_info: machine::cpu_info(),
            backends: machine::backends(),
            model_filename: model.path().display().to_string(),
            model_type: model.description(),
            model_size: model.size(),
            model_n_params: model.n_params(),
            n_batch: params.n_batch,
            n_ubatch: params.n_ubatch,
            n_threads: params.n_threads,
            type_k: params.type_k.name(),
            type_v: params.type_v.name(),
            // llama-bench's number for all of them.
            n_gpu_layers: i32::try_from(n_gpu_layers).unwrap_or(-1),
        }
    }
}

/// The result of one arm in one test. Times are in nanoseconds, speeds in tokens per second.
#[derive(Serialize)]
pub struct Record {
    #[serde(flatten)]
    setting: Setting,
    flash_attn: i32,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: String,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    arm: &'static str,
    /// Speed over the baseline's; `None` for the baseline.
    ratio_median: Option<f64>,
    ratio_min: Option<f64>,
    ratio_max: Option<f64>,
    stepflow_memory_bytes: Option<u64>,
    #[serde(skip)]
    test: Test,
}

impl Record {
    /// The result of `arm`, which is the `index`th; the baseline is 0. `memory` is what StepFlow holds, in bytes.
    pub fn new(
        setting: &Setting,
        test: &Test,
        test_time: &str,
        arm: &Arm,
        index: usize,
        samples: &Samples,
        memory: Option<u64>,
    ) -> Self {
        let ns: Vec<f64> = samples.times[index].iter().map(|time| time.as_nanos() as f64).collect();
        let n_tokens = (test.n_prompt + test.n_gen) as f64;
        let ts: Vec<f64> = ns.iter().map(|ns| n_tokens * 1e9 / ns.max(1.0)).collect();
        let compared = |of: fn(&[f64]) -> f64| (index > 0).then(|| of(&samples.ratios));
        Self {
            setting: setting.clone(),
            flash_attn: match arm.flash_attention {
                FlashAttention::Auto => -1,
                FlashAttention::Off => 0,
                FlashAttention::On => 1,
            },
            n_prompt: test.n_prompt,
            n_gen: test.n_gen,
            n_depth: test.n_depth,
            test_time: test_time.to_owned(),
            avg_ns: mean(&ns) as u64,
            stddev_ns: deviation(&ns) as u64,
            avg_ts: mean(&ts),
            stddev_ts: deviation(&ts),
            samples_ns: ns.iter().map(|&ns| ns as u64).collect(),
            samples_ts: ts,
            arm: arm.name,
            ratio_median: compared(|ratios| median(ratios.to_vec())),
            ratio_min: compared(|ratios| ratios.iter().copied().fold(f64::INFINITY, f64::min)),
            ratio_max: compared(|ratios| ratios.iter().copied().fold(0.0, f64::max)),
            stepflow_memory_bytes: memory.filter(|_| index > 0),
            test: *test,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation of a sample; 0 of one value.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if values.len() < 2 { 0.0 } else { (squares / (values.len() - 1) as f64).sqrt() }
}

/// Writes all results.
///
/// # Errors
/// When `out` fails.
pub fn write(format: BenchFormat, records: &[Record], out: &mut dyn Write) -> io::Result<()> {
    match format {
        BenchFormat::Md => write_table(records, out),
        BenchFormat::Csv => write_csv(records, out),
        BenchFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, records).map_err(io::Error::from).and_then(|()| writeln!(out))
        }
        BenchFormat::Jsonl => records.iter().try_for_each(|record| {
            serde_json::to_writer(&mut *out, record)?;
            writeln!(out)
        }),
    }
}

/// The scalar fields; a cell holds no array.
fn write_csv(records: &[Record], out: &mut dyn Write) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    for (i, record) in records.iter().enumerate() {
        let Value::Object(mut fields) = serde_json::to_value(record)? else { continue };
        fields.retain(|_, value| !value.is_array());
        if i == 0 {
            csv.write_record(fields.keys())?;
        }
        csv.write_record(fields.values().map(|value| match value {
            Value::String(text) => output::cell(text).into_owned(),
            Value::Null => String::new(),
            number => number.to_string(),
        }))?;
    }
    csv.flush()
}

/// A column of the table: its title, and its cell of a result.
type Column = (&'static str, fn(&Record) -> String);

/// The columns that are always there stand at both ends; those in the middle appear where they say more than a default.
const COLUMNS: [Column; 14] = [
    ("model", |r| r.setting.model_type.replace('|', "/")),
    ("size", |r| size(r.setting.model_size)),
    ("params", |r| count(r.setting.model_n_params)),
    ("backend", |r| r.setting.backends.clone()),
    ("ngl", |r| r.setting.n_gpu_layers.to_string()),
    ("threads", |r| r.setting.n_threads.to_string()),
    ("n_batch", |r| r.setting.n_batch.to_string()),
    ("n_ubatch", |r| r.setting.n_ubatch.to_string()),
    ("type_k", |r| r.setting.type_k.to_owned()),
    ("type_v", |r| r.setting.type_v.to_owned()),
    ("fa", |r| r.flash_attn.to_string()),
    ("test", |r| r.test.label()),
    ("arm", |r| r.arm.to_owned()),
    ("t/s", |r| format!("{:.2} ± {:.2}", r.avg_ts, r.stddev_ts)),
];

/// Columns that are left out while they hold nothing but this.
const DEFAULTS: [(&str, &str); 6] =
    [("ngl", "-1"), ("n_batch", "2048"), ("n_ubatch", "512"), ("type_k", "f16"), ("type_v", "f16"), ("fa", "0")];

fn write_table(records: &[Record], out: &mut dyn Write) -> io::Result<()> {
    let says_more = |(title, cell): &Column| match DEFAULTS.iter().find(|(name, _)| name == title) {
        Some((_, default)) => records.iter().any(|record| cell(record) != *default),
        None => true,
    };
    let mut columns: Vec<Column> = COLUMNS.into_iter().filter(says_more).collect();
    columns.push(("ratio", ratio));
    let widths: Vec<usize> = columns
        .iter()
        .map(|(title, cell)| records.iter().map(|r| cell(r).chars().count()).fold(title.len(), usize::max))
        .collect();
    let line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match is_text(columns[i].0) {
            true => format!(" {cell:<width$} |"),
            false => format!(" {cell:>width$} |"),
        });
        format!("|{}", padded.collect::<String>())
    };
    writeln!(out, "{}", line(columns.iter().map(|(title, _)| (*title).to_owned()).collect()))?;
    let rule = columns.iter().zip(&widths).map(|((title, _), &width)| match is_text(title) {
        true => format!(" {} |", "-".repeat(width)),
        false => format!(" {}: |", "-".repeat(width - 1)),
    });
    writeln!(out, "|{}", rule.collect::<String>())?;
    for record in records {
        writeln!(out, "{}", line(columns.iter().map(|(_, cell)| cell(record)).collect()))?;
    }
    writeln!(out, "\nbuild: stepflow {}", env!("CARGO_PKG_VERSION"))
}

/// Text is set to the left, numbers to the right.
fn is_text(title: &str) -> bool {
    matches!(title, "model" | "backend" | "arm")
}

fn ratio(record: &Record) -> String {
    match (record.ratio_median, record.ratio_min, record.ratio_max) {
        (Some(median), Some(min), Some(max)) => format!("{median:.3} [{min:.3}, {max:.3}]"),
        _ => String::new(),
    }
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    if mib < 1024.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn count(n: u64) -> String {
    let millions = n as f64 / 1e6;
    if millions < 1000.0 { format!("{millions:.2} M") } else { format!("{:.2} B", millions / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_of_a_sample() {
        assert_eq!(deviation(&[5.0]), 0.0);
        // The deviations of 1 and 3 from 2 are 1 each; their squares over one degree of freedom give 2.
        assert!((deviation(&[1.0, 3.0]) - 2f64.sqrt()).abs() <= 1e-12);
    }

    #[test]
    fn sizes_as_llama_bench_writes_them() {
        assert_eq!(size(96_576_768), "92.10 MiB");
        assert_eq!(size(20 << 30), "20.00 GiB");
        assert_eq!(count(134_515_008), "134.52 M");
        assert_eq!(count(32_763_876_352), "32.76 B");
    }
}
