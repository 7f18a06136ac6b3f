//! Results in llama-bench's formats.

use std::io::{self, Write};

use serde_json::Value;

use super::super::output;
use super::args::BenchFormat;
use super::record::Record;

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
const COLUMNS: [Column; 15] = [
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
    ("all_layers", |r| r.setting.all_layers.to_string()),
    ("test", |r| r.test.label()),
    ("arm", |r| r.arm.to_owned()),
    ("t/s", |r| format!("{:.2} ± {:.2}", r.avg_ts, r.stddev_ts)),
];

/// Columns that are left out while they hold nothing but this.
const DEFAULTS: [(&str, &str); 7] = [
    ("all_layers", "true"),
    ("ngl", "-1"),
    ("n_batch", "2048"),
    ("n_ubatch", "512"),
    ("type_k", "f16"),
    ("type_v", "f16"),
    ("fa", "-1"),
];

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
    fn sizes_as_llama_bench_writes_them() {
        assert_eq!(size(96_576_768), "92.10 MiB");
        assert_eq!(size(20 << 30), "20.00 GiB");
        assert_eq!(count(134_515_008), "134.52 M");
        assert_eq!(count(32_763_876_352), "32.76 B");
    }
}
