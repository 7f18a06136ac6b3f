//! Layers down, heads across: where the loss would fall and where it would rise.

use std::path::Path;

use super::table::{Quantity, Table};
use crate::cli::saliency::pictures::both;
use crate::cli::saliency::pictures::svg::Svg;

/// Values beyond the largest hundredth part are as bright as its smallest.
const BRIGHTEST: f64 = 0.99;

/// Writes `sensitivity` as SVG and PNG.
pub fn write(folder: &Path, table: &Table, caption: &str) -> anyhow::Result<()> {
    both(&folder.join("sensitivity"), &draw(table, caption))
}

fn draw(table: &Table, caption: &str) -> String {
    let (n_layer, n_head) = table.shape();
    let quantities = table.quantities();
    let (left, top, gap) = (56.0, 84.0, 40.0);
    let square = (420.0 / n_layer.max(1) as f64).clamp(5.0, 16.0);
    let (width, height) = ((square * n_head as f64).max(120.0), square * n_layer as f64);
    let mut svg = Svg::new((left + (width + gap) * quantities.len() as f64).max(420.0), top + height + 46.0);
    svg.text(left, 22.0, "start", 15.0, "How the loss hangs on StepFlow, by layer and head");
    svg.text(left, 40.0, "start", 10.0, caption);
    for (i, quantity) in quantities.into_iter().enumerate() {
        let x = left + (width + gap) * i as f64;
        let limit = limit(table, quantity);
        svg.text(x, top - 20.0, "start", 11.0, &title(quantity));
        svg.text(x, top - 6.0, "start", 10.0, &format!("\u{b1} {limit:.1e} nats"));
        svg.squares((x, top), (width, height), (n_head, n_layer), |head, layer| {
            table.mean(layer, head, quantity).map(|found| colour(found.mean / limit))
        });
        svg.rectangle((x, top), (width, height), r##"fill="none" stroke="#888" stroke-width="0.6""##);
        svg.text(x + width / 2.0, top + height + 16.0, "middle", 10.0, &format!("heads 0 to {}", n_head.max(1) - 1));
    }
    for layer in (0..n_layer).step_by(n_layer.div_ceil(16).max(1)) {
        svg.text(left - 6.0, top + square * (layer as f64 + 0.5) + 3.5, "end", 10.0, &layer.to_string());
    }
    svg.upright_text(18.0, top + height / 2.0, 12.0, "layer");
    svg.finish()
}

fn title(quantity: Quantity) -> String {
    match quantity {
        Quantity::ByAlpha => "dL/dalpha".to_owned(),
        Quantity::ByTau => "dL/dtau".to_owned(),
        Quantity::EffectOfTau(tau) => format!("effect of tau {tau}"),
    }
}

/// The value of the brightest colours.
fn limit(table: &Table, quantity: Quantity) -> f64 {
    let (n_layer, n_head) = table.shape();
    let heads = (0..n_layer).flat_map(|layer| (0..n_head).map(move |head| (layer, head)));
    let mut sizes: Vec<f64> =
        heads.filter_map(|(layer, head)| Some(table.mean(layer, head, quantity)?.mean.abs())).collect();
    sizes.sort_by(f64::total_cmp);
    let place = (BRIGHTEST * (sizes.len().max(1) - 1) as f64).round() as usize;
    sizes.get(place).copied().filter(|size| *size > 0.0).unwrap_or(1.0)
}

/// White at 0, blue at -1, red at 1.
fn colour(value: f64) -> [u8; 3] {
    let share = ((value.clamp(-1.0, 1.0) + 1.0) / 2.0).clamp(0.0, 1.0);
    colorous::RED_BLUE.eval_continuous(1.0 - share).as_array()
}
