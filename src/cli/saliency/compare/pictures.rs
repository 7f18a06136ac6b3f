//! Pictures of a comparison: metrics by layer, and difference maps.

use std::path::Path;

use stepflow::saliency::StepMap;

use super::difference::{Differences, Pair};
use super::metrics::{Row, number};
use crate::cli::saliency::pictures::{both, svg::Svg};

/// Colours of A and B that people with any colour vision can tell apart (Okabe and Ito).
const SIDES: [(&str, &str); 2] = [("#0072b2", "A"), ("#d55e00", "B")];
const FRAME: &str = r##"fill="none" stroke="#888" stroke-width="0.6""##;
const DASHED: &str = r##"stroke="#333" stroke-width="1" stroke-dasharray="4 3""##;
/// Grey, which no difference has.
const UNKNOWN: [u8; 3] = [200, 200, 200];

/// Writes `curves` and `differences`, each as SVG and PNG.
pub fn write(folder: &Path, caption: &str, metrics: &[Vec<Row>], differences: &Differences) -> anyhow::Result<()> {
    both(&folder.join("curves"), &curves(caption, metrics))?;
    both(&folder.join("differences"), &maps(caption, differences))
}

/// A panel for each metric: both sides by layer, with a dot where they differ beyond chance.
fn curves(caption: &str, metrics: &[Vec<Row>]) -> String {
    let (left, top, width, height, gap) = (56.0, 66.0, 300.0, 150.0, 62.0);
    let known: Vec<&Vec<Row>> = metrics.iter().filter(|rows| rows.iter().any(|row| row.difference.is_some())).collect();
    let place = |i: usize| (left + (i % 2) as f64 * (width + gap + 20.0), top + (i / 2) as f64 * (height + gap));
    let rows = known.len().div_ceil(2) as f64;
    let mut svg = Svg::new(left + 2.0 * width + gap + 60.0, top + rows * (height + gap) + 10.0);
    let tested = metrics.iter().flatten().any(|row| row.p.is_some());
    let dots = if tested { "; large dots: they differ, p < 0.05 after Holm's correction" } else { "" };
    svg.text(left, 22.0, "start", 15.0, &format!("Metrics by layer{dots}"));
    svg.text(left, 40.0, "start", 10.0, caption);
    for (i, (colour, name)) in SIDES.iter().enumerate() {
        let x = left + 2.0 * width + gap - 60.0 + 50.0 * i as f64;
        svg.line((x, 18.0), (x + 22.0, 18.0), &format!(r#"stroke="{colour}" stroke-width="1.8""#));
        svg.text(x + 27.0, 22.0, "start", 12.0, name);
    }
    for (i, rows) in known.iter().enumerate() {
        panel(&mut svg, rows, place(i), (width, height));
    }
    svg.finish()
}

fn panel(svg: &mut Svg, rows: &[Row], (left, top): (f64, f64), (width, height): (f64, f64)) {
    let sides: [fn(&Row) -> Option<f64>; 2] = [|row| row.mean_a, |row| row.mean_b];
    let highest = rows.iter().flat_map(|row| [row.mean_a, row.mean_b]).flatten().fold(0.0, f64::max);
    let (first, last) = (rows[0].layer, rows[rows.len() - 1].layer);
    let x = |layer: usize| left + width * (layer - first) as f64 / (last - first).max(1) as f64;
    let y = |value: f64| top + height * (1.0 - value / highest.max(f64::MIN_POSITIVE));
    svg.text(left, top - 6.0, "start", 12.0, rows[0].metric);
    svg.rectangle((left, top), (width, height), FRAME);
    for share in [0.0, 0.5, 1.0] {
        let value = share * highest;
        svg.text(left - 5.0, y(value) + 3.5, "end", 10.0, &number(value));
    }
    svg.text(left + width / 2.0, top + height + 26.0, "middle", 9.0, "layer");
    for row in rows.iter().step_by(rows.len().div_ceil(15).max(1)) {
        svg.text(x(row.layer), top + height + 13.0, "middle", 9.0, &row.layer.to_string());
    }
    for ((colour, _), side) in SIDES.iter().zip(sides) {
        let known: Vec<_> = rows.iter().filter_map(|row| Some((row, x(row.layer), y(side(row)?)))).collect();
        svg.path(known.iter().map(|(_, x, y)| (*x, *y)), &format!(r#"stroke="{colour}" stroke-width="1.8""#));
        for (row, x, y) in &known {
            let size = if row.is_sure() { 6.0 } else { 2.0 };
            svg.rectangle((x - size / 2.0, y - size / 2.0), (size, size), &format!(r#"fill="{colour}""#));
        }
    }
}

/// For every layer, where B's shares are larger (red) and smaller (blue).
fn maps(caption: &str, differences: &Differences) -> String {
    let (side, gap, left, top) = (150.0, 26.0, 20.0, 66.0);
    let n = differences.layers.len();
    let columns = (n as f64).sqrt().ceil().clamp(1.0, 8.0) as usize;
    let size = |n: usize| n as f64 * (side + gap);
    let limit = limit(differences);
    let mut svg = Svg::new((left + size(columns) + 90.0).max(520.0), top + size(n.div_ceil(columns)) + 10.0);
    let what = if differences.by_step { "step" } else { "segment (question, thinking, summary)" };
    svg.text(left, 22.0, "start", 15.0, "B's shares less A's: query down, key across");
    svg.text(left, 40.0, "start", 10.0, &format!("each cell a {what}. {caption}"));
    for (i, (layer, map)) in differences.layers.iter().enumerate() {
        let (x, y) = (left + size(i % columns), top + size(i / columns));
        svg.text(x, y - 4.0, "start", 11.0, &format!("layer {layer}"));
        squares(&mut svg, differences, map, limit, (x, y), side);
    }
    bar(&mut svg, limit, (left + size(columns), top));
    svg.finish()
}

fn squares(svg: &mut Svg, differences: &Differences, map: &StepMap<Pair>, limit: f64, (x, y): (f64, f64), side: f64) {
    let n = map.n_steps();
    svg.squares((x, y), (side, side), (n, n), |key, query| {
        let difference = (key <= query).then(|| map.get(query, key).difference())?;
        Some(if difference.is_nan() { UNKNOWN } else { colour(difference / limit) })
    });
    svg.rectangle((x, y), (side, side), FRAME);
    let segments = &differences.segments;
    for step in (1..n).filter(|&step| differences.by_step && segments[step] != segments[step - 1]) {
        let at = side * step as f64 / n as f64;
        svg.line((x + at, y), (x + at, y + side), DASHED);
        svg.line((x, y + at), (x + side, y + at), DASHED);
    }
}

/// The largest difference that is told apart by its colour: all but a hundredth are within.
fn limit(differences: &Differences) -> f64 {
    let rows = differences.layers.iter().flat_map(|(_, map)| (0..map.n_steps()).flat_map(|query| map.row(query)));
    let mut sizes: Vec<f64> = rows.map(|pair| pair.difference().abs()).filter(|size| !size.is_nan()).collect();
    sizes.sort_by(f64::total_cmp);
    let at = (0.99 * (sizes.len().max(1) - 1) as f64).round() as usize;
    sizes.get(at).copied().filter(|size| *size > 0.0).unwrap_or(1.0)
}

/// From blue at -1 over white to red at 1.
fn colour(difference: f64) -> [u8; 3] {
    colorous::RED_BLUE.eval_continuous((0.5 - difference / 2.0).clamp(0.0, 1.0)).as_array()
}

fn bar(svg: &mut Svg, limit: f64, (x, y): (f64, f64)) {
    let (height, colours) = (150.0, 101);
    svg.squares((x, y), (14.0, height), (1, colours), |_, row| {
        Some(colour(1.0 - 2.0 * row as f64 / (colours - 1) as f64))
    });
    svg.rectangle((x, y), (14.0, height), FRAME);
    for (share, at) in [(limit, y), (0.0, y + height / 2.0), (-limit, y + height)] {
        svg.text(x + 20.0, at + 3.5, "start", 10.0, &format!("{:+.2} points", 100.0 * share));
    }
}
