//! `saliency compare`: two runs, or two groups of runs, side by side.

mod difference;
mod metrics;
mod pictures;
mod read;

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
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
    let layers = common_layers(&a, &b)?;
    let differences = Differences::new(&a, &b, &layers);
    let names = LayerMetrics::default().named().map(|(name, _)| name);
    let metrics: Vec<Vec<Row>> = names.into_iter().map(|metric| metrics::of(metric, &a, &b, &layers)).collect();
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let write_rows = |out: &mut dyn std::io::Write| {
        let mut csv = csv::Writer::from_writer(out);
        metrics.iter().flatten().try_for_each(|row| csv.serialize(row))?;
        csv.flush()
    };
    output::write_file(&args.out.join("metrics.csv"), write_rows)?;
    output::write_file(&args.out.join("differences.csv"), |out| write_differences(&differences, out))?;
    let about = json!({
        "stepflow_comparison": 1,
        "stepflow": env!("CARGO_PKG_VERSION"),
        "method": a[0].about.method,
        "metric": a[0].metric,
        "a": a.iter().map(described).collect::<Vec<_>>(),
        "b": b.iter().map(described).collect::<Vec<_>>(),
    });
    output::write_file(&args.out.join("comparison.json"), |out| writeln!(out, "{about:#}"))?;
    let caption = format!("A: {} ({}), B: {} ({})", args.a.display(), runs(&a), args.b.display(), runs(&b));
    pictures::write(&args.out, &caption, &metrics, &differences)?;
    let of = if differences.by_step { "steps" } else { "segments" };
    let folder = args.out.display();
    say!("stepflow: {caption}; {folder}/curves.svg and differences.svg show both, by layers and {of}");
    let words: String = metrics.iter().map(|rows| metrics::in_words(rows)).collect();
    output::write_result(None, |out| out.write_all(words.as_bytes()))?;
    Ok(exit::OK)
}

fn runs(side: &[Run]) -> String {
    if side.len() == 1 { "1 run".to_owned() } else { format!("{} runs", side.len()) }
}

fn described(run: &Run) -> serde_json::Value {
    json!({ "folder": run.path, "run_id": run.about.run_id, "trace_sha256": run.about.trace_sha256 })
}

/// The layers that all runs have. All must be measured alike.
fn common_layers(a: &[Run], b: &[Run]) -> anyhow::Result<Vec<usize>> {
    let first = &a[0];
    for run in a.iter().chain(b) {
        if (&run.about.method, &run.metric) != (&first.about.method, &first.metric) {
            bail!(
                "{} is {} by {}, {} is {} by {}; expected all to be measured alike, with the same --method",
                first.path.display(),
                first.metric,
                first.about.method,
                run.path.display(),
                run.metric,
                run.about.method
            );
        }
    }
    let layers = |run: &Run| run.shares.keys().copied().collect::<BTreeSet<usize>>();
    let common = a.iter().chain(b).map(layers).reduce(|common, layers| &common & &layers).unwrap_or_default();
    if common.is_empty() {
        bail!("expected a layer that all runs have, found none; measure them with the same --layers");
    }
    Ok(common.into_iter().collect())
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
