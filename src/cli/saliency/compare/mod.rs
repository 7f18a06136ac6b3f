//! `saliency compare`: two runs, or two groups of runs, side by side.

mod difference;
mod metrics;
mod pictures;
mod read;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use stepflow::saliency::LayerMetrics;
use stepflow::trace::Segment;

use super::args::CompareArgs;
use crate::cli::{exit, output};
use difference::Differences;
use metrics::Row;
use read::Run;

/// A row of `differences.csv`: shares of a query's saliency that a key gets, in both and B's less A's.
#[derive(Serialize)]
struct DifferenceRow<'a> {
    layer: usize,
    query: &'a str,
    key: &'a str,
    query_segment: Segment,
    key_segment: Segment,
    a: Option<f64>,
    b: Option<f64>,
    difference: Option<f64>,
}

/// Runs the command.
pub fn run(args: &CompareArgs) -> anyhow::Result<u8> {
    let (a, b) = (read::runs(&args.a)?, read::runs(&args.b)?);
    let layers = layers(&a, &b)?;
    let differences = Differences::new(&a, &b, &layers);
    let names = LayerMetrics::default().named().map(|(name, _)| name);
    let metrics: Vec<Vec<Row>> = names.into_iter().map(|metric| metrics::of(metric, &a, &b, &layers)).collect();
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make the folder {}", args.output.display()))?;
    let write_rows = |out: &mut dyn std::io::Write| {
        let mut csv = csv::Writer::from_writer(out);
        metrics.iter().flatten().try_for_each(|row| csv.serialize(row))?;
        csv.flush()
    };
    output::write_file(&args.output.join("metrics.csv"), write_rows)?;
    output::write_file(&args.output.join("differences.csv"), |out| write_differences(&differences, out))?;
    let about = json!({
        "stepflow_comparison": 1,
        "stepflow": env!("CARGO_PKG_VERSION"),
        "method": a[0].about.method,
        "metric": a[0].metric,
        "a": a.iter().map(described).collect::<Vec<_>>(),
        "b": b.iter().map(described).collect::<Vec<_>>(),
    });
    output::write_file(&args.output.join("comparison.json"), |out| writeln!(out, "{about:#}"))?;
    let caption = format!("A: {} ({}), B: {} ({})", args.a.display(), runs(&a), args.b.display(), runs(&b));
    pictures::write(&args.output, &caption, &metrics, &differences)?;
    let of = if differences.by_step { "steps" } else { "segments" };
    let folder = args.output.display();
    say!("stepflow: {caption}; {folder}/curves.svg and differences.svg show both, by layers and {of}");
    let words: String = metrics.iter().map(|rows| metrics::in_words(rows)).collect();
    output::write_result(None, |out| out.write_all(words.as_bytes()))?;
    Ok(exit::OK)
}

fn runs(side: &[Run]) -> String {
    if side.len() == 1 { "1 run".to_owned() } else { format!("{} runs", side.len()) }
}

fn described(run: &Run) -> serde_json::Value {
    json!({ "folder": run.path.display().to_string(), "run_id": run.about.run_id, "trace_sha256": run.about.trace_sha256 })
}

/// The layers of all runs. Those of a side must be measured alike in everything, both sides by the same method in the same
/// layers.
fn layers(a: &[Run], b: &[Run]) -> anyhow::Result<Vec<usize>> {
    for side in [a, b] {
        if let Some(other) = side.iter().find(|run| run.how() != side[0].how()) {
            return Err(unlike(&side[0], other));
        }
    }
    let measured = |run: &Run| (run.metric.clone(), run.about.method.clone(), run.layers().clone());
    if measured(&a[0]) != measured(&b[0]) {
        return Err(unlike(&a[0], &b[0]));
    }
    if a[0].how() != b[0].how() {
        say!("stepflow: A is {}; B is {}", a[0].how(), b[0].how());
    }
    Ok(a[0].layers().iter().copied().collect())
}

fn unlike(one: &Run, other: &Run) -> anyhow::Error {
    let (path, other_path) = (one.path.display(), other.path.display());
    anyhow::anyhow!("{path} is {}, {other_path} is {}; expected them to be measured alike", one.how(), other.how())
}

fn write_differences(differences: &Differences, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    let known = |share: f64| (!share.is_nan()).then_some(share);
    for (layer, map) in &differences.layers {
        for (query, key) in (0..map.n_steps()).flat_map(|query| (0..=query).map(move |key| (query, key))) {
            let pair = map.get(query, key);
            csv.serialize(DifferenceRow {
                layer: *layer,
                query: &differences.name(query),
                key: &differences.name(key),
                query_segment: differences.segments[query],
                key_segment: differences.segments[key],
                a: known(pair.a),
                b: known(pair.b),
                difference: known(pair.difference()),
            })?;
        }
    }
    csv.flush()
}
