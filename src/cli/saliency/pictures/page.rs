//! One page to explore a run: nothing else is needed, no network either.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Pictures;
use super::scale::Scale;
use super::svg::escape;

const TEMPLATE: &str = include_str!("page.html");

/// Colours between which the page does not tell positions apart.
const COLOURS: usize = 256;

/// The page, with the curves in it.
pub fn page(pictures: &Pictures<'_>, scale: &Scale, curves: &str) -> String {
    let steps = pictures.trace.steps.iter().enumerate().map(|(step, span)| {
        let (start, end) = (span.tokens.start, span.tokens.end);
        json!({ "segment": span.segment, "start": start, "end": end, "text": super::super::step_text(pictures.trace, step) })
    });
    let layers = pictures.maps.iter().zip(&pictures.below_noise).map(|((layer, map), below)| {
        let cells = (0..map.n_steps()).flat_map(|query| map.row(query));
        let values: Vec<u8> = cells.flat_map(|&value| (value as f32).to_le_bytes()).collect();
        let below = below.as_ref().map(|below| {
            let cells = (0..below.n_steps()).flat_map(|query| below.row(query));
            STANDARD.encode(cells.map(|&below| u8::from(below)).collect::<Vec<u8>>())
        });
        json!({ "layer": layer, "values": STANDARD.encode(values), "below_noise": below })
    });
    let position = |i: usize| i as f64 / (COLOURS - 1) as f64;
    let data = json!({
        "metric": pictures.title(),
        "unit": pictures.metric.unit(),
        "low": scale.low,
        "high": scale.high,
        "colours": (0..COLOURS).map(|i| Scale::colour(position(i))).collect::<Vec<_>>(),
        "steps": steps.collect::<Vec<_>>(),
        "layers": layers.collect::<Vec<_>>(),
    });
    // A step's text could hold the end of the script that it stands in.
    let data = data.to_string().replace('<', "\\u003c");
    // The data come last: their text may hold a mark of the template.
    let parts = [("{{caption}}", escape(&pictures.caption)), ("{{curves}}", curves.to_owned()), ("{{data}}", data)];
    parts.into_iter().fold(TEMPLATE.to_owned(), |page, (mark, part)| page.replacen(mark, &part, 1))
}
