//! `/stats`: what StepFlow did in this chat, in words or as a table.

use std::collections::BTreeMap;

use indicatif::HumanCount;
use stepflow::engine::Control;
use stepflow::stepflow::{Kernels, LayerStats, Stats};

/// Says it in words.
pub fn say_words(stepflow: Option<&Control>) {
    if let Some(control) = said_of(stepflow) {
        words(&control.stats()).iter().for_each(|line| say!("{line}"));
    }
}

/// Says it as a table with a row for each layer.
pub fn say_table(stepflow: Option<&Control>) {
    let Some(control) = said_of(stepflow) else { return };
    say!("layer  rows seen  bridged  pB before  pB after  injections  norm    kernels");
    for (layer, s) in &control.stats().layers {
        say!(
            "{layer:5}  {:9}  {:7}  {:9.4}  {:8.4}  {:10}  {:.4}  {}",
            s.rows_seen,
            s.rows_bridged,
            s.mean_bridge_before(),
            s.mean_bridge_after(),
            s.injections,
            s.mean_injected_norm(),
            s.kernels.map_or("-", Kernels::name)
        );
    }
}

/// StepFlow, if it is part of the session and something can be said of it.
fn said_of(stepflow: Option<&Control>) -> Option<&Control> {
    match stepflow {
        None => say!("StepFlow is not part of this session; /stepflow on makes it so."),
        Some(control) if !control.is_on() => say!("StepFlow is off now. Before:"),
        Some(_) => {}
    }
    stepflow
}

fn words(stats: &Stats) -> Vec<String> {
    let layers_with = |has: fn(&LayerStats) -> bool| -> BTreeMap<usize, LayerStats> {
        stats.layers.iter().filter(|(_, stats)| has(stats)).map(|(&layer, &stats)| (layer, stats)).collect()
    };
    let (oeb, smi) = (layers_with(|stats| stats.rows_seen > 0), layers_with(|stats| stats.injections > 0));
    let mut lines = Vec::new();
    if !oeb.is_empty() {
        lines.extend(oeb_words(&oeb));
    }
    if !smi.is_empty() {
        lines.push(smi_words(&smi));
    }
    match lines.is_empty() {
        true => lines.push("StepFlow has had nothing to do so far.".to_owned()),
        false => lines.push("/stats table has a row for each layer.".to_owned()),
    }
    lines
}

fn oeb_words(layers: &BTreeMap<usize, LayerStats>) -> [String; 2] {
    let total = Stats { layers: layers.clone() }.total();
    let (seen, bridged) = (HumanCount(total.rows_seen), HumanCount(total.rows_bridged));
    let [before, after] = percentages(total.mean_bridge_before(), total.mean_bridge_after());
    let layers = layer_names(layers.keys().copied());
    let first = match total.rows_bridged {
        0 => format!(
            "OEB changed none of {seen} rows of {layers}: the share of attention on the question is {before} already."
        ),
        _ => {
            format!(
                "OEB raised the share of attention on the question from {before} to {after} in {bridged} of {seen} rows of {layers}."
            )
        }
    };
    [
        first,
        "  (A row is one head at one token; shares are means over all rows. For an answer the thinking is the question.)"
            .to_owned(),
    ]
}

fn smi_words(layers: &BTreeMap<usize, LayerStats>) -> String {
    let total = Stats { layers: layers.clone() }.total();
    let each = total.injections / layers.len() as u64;
    let steps = match layers.values().all(|layer| layer.injections == each) {
        true => format!("of {} {} in", HumanCount(each), if each == 1 { "step" } else { "steps" }),
        false => format!("of steps {} times in all, in", HumanCount(total.injections)),
    };
    let norm = 100.0 * total.mean_injected_norm();
    format!(
        "SMI added a summary of the step before to the first token {steps} {}, {norm:.1}% of the head outputs' norm.",
        layer_names(layers.keys().copied())
    )
}

/// Two shares in whole percents, or with as many digits as it takes to tell them apart.
fn percentages(a: f64, b: f64) -> [String; 2] {
    let with = |digits: usize| [a, b].map(|share| format!("{:.digits$}%", 100.0 * share));
    (0..2).map(with).find(|[a, b]| a != b).unwrap_or_else(|| with(2))
}

/// `layer 3`, `layers 0 to 2 and 5`.
fn layer_names(layers: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let name = |&(first, last): &(usize, usize)| match last - first {
        0 => first.to_string(),
        _ => format!("{first} to {last}"),
    };
    let names: Vec<String> = runs.iter().map(name).collect();
    match names.split_last() {
        Some((only, [])) if runs[0].0 == runs[0].1 => format!("layer {only}"),
        Some((only, [])) => format!("layers {only}"),
        Some((last, others)) => format!("layers {} and {last}", others.join(", ")),
        None => "no layer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(layers: &[usize], one: LayerStats) -> Stats {
        Stats { layers: layers.iter().map(|&layer| (layer, one)).collect() }
    }

    #[test]
    fn what_oeb_did_is_a_sentence() {
        let one = LayerStats {
            rows_seen: 364,
            rows_bridged: 202,
            bridge_before: 33.0,
            bridge_after: 54.0,
            ..LayerStats::default()
        };
        let sentence =
            "OEB raised the share of attention on the question from 9% to 15% in 606 of 1,092 rows of layers 0 to 2.";
        assert_eq!(words(&stats(&[0, 1, 2], one))[0], sentence);
        let none = LayerStats { rows_bridged: 0, bridge_after: 33.0, ..one };
        assert!(words(&stats(&[4], none))[0].starts_with("OEB changed none of 364 rows of layer 4: the share"));
    }

    #[test]
    fn what_smi_did_is_a_sentence() {
        let one = LayerStats { injections: 4, injected_norm: 0.16, ..LayerStats::default() };
        let said = words(&stats(&[9, 10, 11], one));
        assert!(said[0].contains("the first token of 4 steps in layers 9 to 11, 4.0% of"), "{said:?}");
        let mut uneven = stats(&[9, 11], one);
        uneven.layer(11).injections = 1;
        assert!(words(&uneven)[0].contains("of steps 5 times in all, in layers 9 and 11,"));
        assert!(words(&stats(&[3], LayerStats { injections: 1, ..one }))[0].contains("of 1 step in layer 3,"));
    }

    #[test]
    fn nothing_done_is_said() {
        assert_eq!(words(&Stats::default()), ["StepFlow has had nothing to do so far."]);
        assert_eq!(words(&stats(&[1], LayerStats::default())), ["StepFlow has had nothing to do so far."]);
    }

    #[test]
    fn small_differences_are_told_apart() {
        assert_eq!(percentages(0.42, 0.45), ["42%", "45%"]);
        assert_eq!(percentages(0.4201, 0.4243), ["42.0%", "42.4%"]);
        assert_eq!(percentages(0.42011, 0.42034), ["42.01%", "42.03%"]);
        assert_eq!(layer_names([0, 1, 2, 5, 7, 8].into_iter()), "layers 0 to 2, 5 and 7 to 8");
    }
}
