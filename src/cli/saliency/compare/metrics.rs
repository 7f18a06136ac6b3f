//! The metrics of both sides, layer by layer, and whether they differ.

use std::fmt::Write as _;

use serde::Serialize;
use stepflow::saliency::{RankTest, holm};
use stepflow::stepflow::LayerSelection;

use super::read::Run;

/// A chance of a false alarm below which a difference is spoken of.
const SURE: f64 = 0.05;

/// A row of `metrics.csv`; empty where a side has no such steps, or too few runs for a test.
#[derive(Serialize)]
pub struct Row {
    pub metric: &'static str,
    pub layer: usize,
    pub n_a: usize,
    pub n_b: usize,
    pub mean_a: Option<f64>,
    pub mean_b: Option<f64>,
    pub difference: Option<f64>,
    pub delta: Option<f64>,
    pub p: Option<f64>,
    /// `p` after Holm's correction over the metric's layers.
    pub p_holm: Option<f64>,
}

/// All rows of one metric.
pub fn of(metric: &'static str, a: &[Run], b: &[Run], layers: &[usize]) -> Vec<Row> {
    let mut rows: Vec<Row> = layers.iter().map(|&layer| row(metric, layer, a, b)).collect();
    let tested: Vec<f64> = rows.iter().filter_map(|row| row.p).collect();
    let mut corrected = holm(&tested).into_iter();
    rows.iter_mut().filter(|row| row.p.is_some()).for_each(|row| row.p_holm = corrected.next());
    rows
}

fn row(metric: &'static str, layer: usize, a: &[Run], b: &[Run]) -> Row {
    let values = |side: &[Run]| -> Vec<f64> {
        side.iter().filter_map(|run| run.layers.get(&(metric.to_owned(), layer)).copied()).collect()
    };
    let (a, b) = (values(a), values(b));
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let test = RankTest::new(&a, &b);
    Row {
        metric,
        layer,
        n_a: a.len(),
        n_b: b.len(),
        mean_a,
        mean_b,
        difference: mean_a.zip(mean_b).map(|(a, b)| b - a),
        delta: test.map(|test| test.delta),
        p: test.map(|test| test.p),
        p_holm: None,
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl Row {
    /// Whether the sides differ, chance set aside.
    pub fn is_sure(&self) -> bool {
        self.p_holm.is_some_and(|p| p < SURE)
    }
}

/// A share, or an intensity, which is far smaller.
pub fn number(value: f64) -> String {
    if value == 0.0 || value >= 0.001 { format!("{value:.3}") } else { format!("{value:.1e}") }
}

/// A line on one metric's rows.
pub fn in_words(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let both = || rows.iter().filter(|row| row.difference.is_some());
    let over_layers = |of: fn(&Row) -> Option<f64>| mean(&both().filter_map(of).collect::<Vec<_>>());
    let (Some(a), Some(b)) = (over_layers(|row| row.mean_a), over_layers(|row| row.mean_b)) else {
        return format!("{}: not known of both; they have no such steps, or noise hides it\n", first.metric);
    };
    let mut line = format!("{}: {} in A, {} in B, mean over layers; ", first.metric, number(a), number(b));
    // By ranks, as the test goes: a few large values may move the mean the other way.
    let differing = |sign: f64| -> Vec<usize> {
        let sure = rows.iter().filter(|row| row.is_sure() && row.delta.is_some_and(|delta| delta * sign > 0.0));
        sure.map(|row| row.layer).collect()
    };
    let tested = rows.iter().filter(|row| row.p.is_some()).count();
    let largest = both().max_by(|x, y| {
        let size = |row: &Row| row.difference.unwrap_or(0.0).abs();
        size(x).total_cmp(&size(y))
    });
    if let Some((row, difference)) = largest.and_then(|row| Some((row, row.difference?))) {
        let sign = if difference < 0.0 { "-" } else { "+" };
        let _ = match difference == 0.0 {
            true => write!(line, "the same in every layer"),
            false => write!(line, "most apart in layer {}, {sign}{}", row.layer, number(difference.abs())),
        };
    }
    let list = |layers: Vec<usize>| layers.into_iter().collect::<LayerSelection>();
    let _ = match (tested, differing(1.0), differing(-1.0)) {
        (0, ..) => Ok(()),
        (_, up, down) if up.is_empty() && down.is_empty() => {
            write!(line, "; no layer of {tested} differs beyond chance")
        }
        (_, up, down) if down.is_empty() => write!(line, "; B is above A in layers {}", list(up)),
        (_, up, down) if up.is_empty() => write!(line, "; B is below A in layers {}", list(down)),
        (_, up, down) => write!(line, "; B is above A in layers {}, below in {}", list(up), list(down)),
    };
    line.push('\n');
    line
}
