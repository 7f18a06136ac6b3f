//! Curves over layers: what each layer's map says in a few shares.

use stepflow::saliency::LayerMetrics;

use super::Pictures;
use super::svg::Svg;

/// Colours that people with any colour vision can tell apart (Okabe and Ito), and names that say what the shares are.
const CURVES: [(&str, &str); 3] = [
    ("#d55e00", "thinking step: to itself and the step before"),
    ("#0072b2", "thinking step: to the question"),
    ("#009e73", "summary: to the thinking"),
];

/// Nothing to be seen, but on a page, which shows with it what layers its map is of.
const SHOWN: &str = r#"id="layers-shown" fill="none""#;

/// The shares of every layer, each with what an even map would give as a dashed line.
pub fn curves(pictures: &Pictures<'_>) -> String {
    let (left, top, width, height) = (56.0, 56.0, 560.0, 300.0);
    let mut svg = Svg::new(left + width + 30.0, top + height + 44.0 + 18.0 * CURVES.len() as f64);
    svg.text(left, 22.0, "start", 15.0, &format!("Shares of {} by layer", pictures.title()));
    svg.text(left, 40.0, "start", 10.0, &format!("dashed: if all were looked at alike. {}", pictures.caption));
    svg.rectangle((left, top), (width, height), SHOWN);
    let y = |share: f64| top + height * (1.0 - share);
    for tenth in (0..=10).step_by(2) {
        let share = f64::from(tenth) / 10.0;
        svg.line((left, y(share)), (left + width, y(share)), r##"stroke="#ddd" stroke-width="0.8""##);
        svg.text(left - 6.0, y(share) + 3.5, "end", 10.0, &format!("{}%", tenth * 10));
    }
    let layers: Vec<usize> = pictures.layers.iter().map(|(layer, _)| *layer).collect();
    let (first, last) = (layers.first().copied().unwrap_or(0), layers.last().copied().unwrap_or(0));
    let x = |layer: usize| left + width * (layer - first) as f64 / (last - first).max(1) as f64;
    for layer in layers.iter().step_by(layers.len().div_ceil(20).max(1)) {
        svg.text(x(*layer), top + height + 14.0, "middle", 10.0, &layer.to_string());
    }
    svg.text(left + width / 2.0, top + height + 30.0, "middle", 12.0, "layer");
    for (i, (colour, name)) in CURVES.iter().enumerate() {
        let share = |metrics: &LayerMetrics| metrics.named()[i].1;
        if let Some(even) = share(&pictures.even) {
            let dashed = format!(r#"stroke="{colour}" stroke-width="1" stroke-dasharray="4 3""#);
            svg.line((left, y(even)), (left + width, y(even)), &dashed);
        }
        let known = pictures.layers.iter().filter_map(|(layer, metrics)| Some((x(*layer), y(share(metrics)?))));
        let known: Vec<_> = known.collect();
        for (x, y) in &known {
            svg.rectangle((x - 2.0, y - 2.0), (4.0, 4.0), &format!(r#"fill="{colour}""#));
        }
        svg.path(known.into_iter(), &format!(r#"stroke="{colour}" stroke-width="1.8""#));
        let at = top + height + 48.0 + 18.0 * i as f64;
        svg.line((left, at - 4.0), (left + 24.0, at - 4.0), &format!(r#"stroke="{colour}" stroke-width="1.8""#));
        svg.text(left + 32.0, at, "start", 11.0, name);
    }
    svg.finish()
}
