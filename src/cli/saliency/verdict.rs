//! What a trace shows, in words with numbers.

use stepflow::saliency::{Pattern, Verdict};
use stepflow::stepflow::LayerSelection;

/// One line for each failure.
pub fn in_words(verdict: &Verdict) -> String {
    let lock_in = line(
        "Shallow Lock-in",
        verdict.shallow_lock_in.as_ref(),
        "thinking steps look at themselves and the step before for",
        "more than half",
        "the trace has no second thinking step, no shallow layer was measured, or noise hides it",
    );
    let decay = line(
        "Deep Decay",
        verdict.deep_decay.as_ref(),
        "the summary looks at the thinking for",
        "less than half of that",
        "the trace has no thinking or no summary, no deep layer was measured, or noise hides it",
    );
    format!("{lock_in}\n{decay}\n")
}

fn line(name: &str, pattern: Option<&Pattern>, what: &str, threshold: &str, unknown: &str) -> String {
    let Some(pattern) = pattern else { return format!("{name}: cannot be told; {unknown}.") };
    let (mean, least, most) = pattern.range();
    let answer = if pattern.is_shown() { "yes" } else { "no" };
    let looked_at: Vec<usize> = pattern.shares.iter().map(|(layer, _)| *layer).collect();
    let percent = |share: f64| format!("{:.0}%", 100.0 * share);
    format!(
        "{name}: {answer}. In layers {}, {what} {} ({} to {}; {} if all were looked at alike); {threshold} in {}.",
        list(&looked_at),
        percent(mean),
        percent(least),
        percent(most),
        percent(pattern.even),
        if pattern.layers.is_empty() { "none".to_owned() } else { list(&pattern.layers).to_string() },
    )
}

fn list(layers: &[usize]) -> LayerSelection {
    layers.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_two_lines() {
        let shares = vec![(0, 0.7), (1, 0.6), (2, 0.2)];
        let shallow_lock_in = Some(Pattern { shares, even: 0.3, layers: vec![0, 1] });
        let words = in_words(&Verdict { shallow_lock_in, deep_decay: None });
        assert_eq!(
            words,
            "Shallow Lock-in: yes. In layers 0-2, thinking steps look at themselves and the step before for 50% (20% to \
             70%; 30% if all were looked at alike); more than half in 0-1.\n\
             Deep Decay: cannot be told; the trace has no thinking or no summary, no deep layer was measured, or noise hides it.\n"
        );
    }
}
