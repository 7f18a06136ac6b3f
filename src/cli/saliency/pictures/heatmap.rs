//! Heatmaps: query steps down, key steps across.

use super::Pictures;
use super::scale::Scale;
use super::svg::Svg;

const DASHED: &str = r##"stroke="#d33" stroke-width="1" stroke-dasharray="4 3""##;
/// Grey, which no value has.
const UNMEASURED: [u8; 3] = [235, 235, 235];
/// Between two numbers beside the scale.
const ROOM: f64 = 12.0;
const FRAME: &str = r##"fill="none" stroke="#888" stroke-width="0.6""##;

/// One layer, with its axes.
pub fn single(pictures: &Pictures<'_>, index: usize, scale: &Scale) -> String {
    let (layer, map) = &pictures.maps[index];
    let (left, top, side) = (64.0, 64.0, 520.0);
    let mut svg = Svg::new(left + side + 110.0, top + side + 56.0);
    svg.text(left, 22.0, "start", 15.0, &format!("Layer {layer}: {}", pictures.title()));
    svg.text(left, 40.0, "start", 10.0, &pictures.caption);
    panel(&mut svg, pictures, index, scale, (left, top), side);
    let n = map.n_steps();
    let middle = |step: usize| side * (step as f64 + 0.5) / n as f64;
    for step in (0..n).step_by(n.div_ceil(20).max(1)) {
        svg.text(left + middle(step), top + side + 14.0, "middle", 10.0, &step.to_string());
        svg.text(left - 6.0, top + middle(step) + 3.5, "end", 10.0, &step.to_string());
    }
    let boundaries = pictures.boundaries();
    for (i, (step, segment)) in boundaries.iter().enumerate() {
        let end = boundaries.get(i + 1).map_or(n, |next| next.0);
        let centre = left + side * (step + end) as f64 / 2.0 / n as f64;
        svg.text(centre, top - 6.0, "middle", 10.0, &segment.to_string());
    }
    svg.text(left + side / 2.0, top + side + 36.0, "middle", 12.0, "key step");
    svg.upright_text(20.0, top + side / 2.0, 12.0, "query step");
    bar(&mut svg, scale, (left + side + 24.0, top), side, pictures.metric.unit());
    svg.finish()
}

/// All layers, on one scale.
pub fn grid(pictures: &Pictures<'_>, scale: &Scale) -> String {
    let (side, gap, left, top) = (150.0, 26.0, 20.0, 66.0);
    let columns = (pictures.maps.len() as f64).sqrt().ceil().clamp(1.0, 8.0) as usize;
    let rows = pictures.maps.len().div_ceil(columns).max(1);
    let size = |n: usize| n as f64 * (side + gap);
    let mut svg = Svg::new((left + size(columns) + 90.0).max(480.0), top + size(rows) + 10.0);
    svg.text(left, 22.0, "start", 15.0, &format!("{}: query step down, key step across", pictures.title()));
    svg.text(left, 40.0, "start", 10.0, &pictures.caption);
    for (i, (layer, _)) in pictures.maps.iter().enumerate() {
        let (x, y) = (left + size(i % columns), top + size(i / columns));
        svg.text(x, y - 4.0, "start", 11.0, &format!("layer {layer}"));
        panel(&mut svg, pictures, i, scale, (x, y), side);
    }
    let height = size(rows) - gap;
    bar(&mut svg, scale, (left + size(columns), top), height.min(400.0), pictures.metric.unit());
    svg.finish()
}

/// The squares, and dashed lines where segments begin.
fn panel(svg: &mut Svg, pictures: &Pictures<'_>, index: usize, scale: &Scale, (x, y): (f64, f64), side: f64) {
    let (map, below_noise) = (&pictures.maps[index].1, &pictures.below_noise[index]);
    let n = map.n_steps();
    svg.squares((x, y), (side, side), (n, n), |key, query| {
        let position = (key <= query).then(|| scale.position(map.get(query, key)))?;
        let below = below_noise.as_ref().is_some_and(|below| below.get(query, key));
        Some(position.map_or(UNMEASURED, |at| if below { pale(Scale::colour(at)) } else { Scale::colour(at) }))
    });
    svg.rectangle((x, y), (side, side), FRAME);
    for (step, _) in pictures.boundaries().into_iter().skip(1) {
        let at = side * step as f64 / n as f64;
        svg.line((x + at, y), (x + at, y + side), DASHED);
        svg.line((x, y + at), (x + side, y + at), DASHED);
    }
}

/// A colour most of the way to white.
fn pale(colour: [u8; 3]) -> [u8; 3] {
    colour.map(|part| 255 - (255 - part) / 4)
}

/// The scale: its ends, and the powers of ten that have room between them.
fn bar(svg: &mut Svg, scale: &Scale, (x, y): (f64, f64), height: f64, unit: &str) {
    let colours = 128;
    svg.squares((x, y), (14.0, height), (1, colours), |_, row| {
        Some(Scale::colour(1.0 - row as f64 / (colours - 1) as f64))
    });
    svg.rectangle((x, y), (14.0, height), FRAME);
    let mut mark = |at: f64, name: String| {
        svg.line((x + 14.0, at), (x + 18.0, at), r##"stroke="#222" stroke-width="0.8""##);
        svg.text(x + 21.0, at + 3.5, "start", 10.0, &name);
    };
    mark(y, format!("{:.1e}", scale.high));
    mark(y + height, format!("{:.1e}", scale.low));
    for power in scale.ticks() {
        let at = y + height * (1.0 - scale.position(10f64.powi(power)).unwrap_or(0.0));
        if (y + ROOM..=y + height - ROOM).contains(&at) {
            mark(at, format!("1e{power}"));
        }
    }
    svg.text(x, y - 8.0, "start", 10.0, unit);
}
