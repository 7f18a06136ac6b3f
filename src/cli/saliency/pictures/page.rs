//! One page to explore a run: nothing else is needed, no network either.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Pictures;
use super::svg::escape;

const TEMPLATE: &str = include_str!("page.html");
/// The map and the text beside it, which the server's page shows too.
const STYLE: &str = include_str!("../../../pages/map.css");
const SCRIPT: &str = include_str!("../../../pages/map.js");

/// The page, with the curves in it.
pub fn page(pictures: &Pictures<'_>, curves: &str) -> String {
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
        json!({ "layer": layer, "values": STANDARD.encode(values), "below": below })
    });
    let data = json!({
        "metric": pictures.title(),
        "unit": pictures.metric.unit(),
        "steps": steps.collect::<Vec<_>>(),
        "layers": layers.collect::<Vec<_>>(),
    });
    // A step's text could hold the end of the script that it stands in.
    let data = data.to_string().replace('<', "\\u003c");
    let caption = escape(&pictures.caption);
    // What has text of a trace or of a file's name in it may hold a mark of the template: it comes last.
    let parts = [
        ("{{style}}", STYLE),
        ("{{script}}", SCRIPT),
        ("{{data}}", &data),
        ("{{curves}}", curves),
        ("{{caption}}", &caption),
    ];
    parts.into_iter().fold(TEMPLATE.to_owned(), |page, (mark, part)| page.replacen(mark, part, 1))
}
