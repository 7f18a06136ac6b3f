//! What a trace shows, in words with numbers.

use stepflow::saliency::{Pattern, Untold, Verdict};
use stepflow::stepflow::LayerSelection;

/// One line for each failure.
pub fn in_words(verdict: &Verdict) -> String {
    let lock_in = line(
        "Shallow Lock-in",
        &verdict.shallow_lock_in,
        "thinking steps look at themselves and the step before for",
        "more than half and standing out",
    );
    let decay =
        line("Deep Decay", &verdict.deep_decay, "the summary looks at the thinking for", "less than half of that");
    format!("{lock_in}\n{decay}\n")
}

fn line(name: &str, found: &Result<Pattern, Untold>, what: &str, threshold: &str) -> String {
    let pattern = match found {
        Ok(pattern) => pattern,
        Err(untold) => return format!("{name}: {untold}."),
    };
    let (mean, least, most) = pattern.range();
    let answer = if pattern.is_shown() { "yes" } else { "no" };
    let looked_at: Vec<usize> = pattern.shares.iter().map(|(layer, _)| *layer).collect();
    let percent = |share: f64| format!("{:.0}%", 100.0 * share);
    let others = pattern.others.map(|others| {
        format!("; in the deeper ones {}, give or take {}", percent(others.mean), percent(others.deviation))
    });
    format!(
        "{name}: {answer}. In layers {}, {what} {} ({} to {}; {} if all were looked at alike){}; {threshold} in {}.",
        list(&looked_at),
        percent(mean),
        percent(least),
        percent(most),
        percent(pattern.even),
        others.unwrap_or_default(),
        if pattern.layers.is_empty() { "none".to_owned() } else { format!("layers {}", list(&pattern.layers)) },
    )
}

fn list(layers: &[usize]) -> LayerSelection {
    layers.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stepflow::saliency::Spread;

    #[test]
    fn a_verdict_is_two_lines() {
        let shares = vec![(0, 0.7), (1, 0.6), (2, 0.2)];
        let others = Some(Spread { mean: 0.4, deviation: 0.1 });
        let shallow_lock_in = Ok(Pattern { shares, even: 0.3, others, layers: vec![0, 1] });
        assert_eq!(
            in_words(&Verdict { shallow_lock_in, deep_decay: Err(Untold::NoSummary) }),
            "Shallow Lock-in: yes. In layers 0-2, thinking steps look at themselves and the step before for 50% (20% to \
             70%; 30% if all were looked at alike); in the deeper ones 40%, give or take 10%; more than half and standing \
             out in layers 0-1.\n\
             Deep Decay: cannot be told: the trace has no summary.\n"
        );
        let short = Err(Untold::TooShort(2));
        assert_eq!(
            in_words(&Verdict { shallow_lock_in: short.clone(), deep_decay: short }).lines().next(),
            Some("Shallow Lock-in: too short to tell: a verdict takes 4 steps of thinking, and the trace has 2.")
        );
    }
}
