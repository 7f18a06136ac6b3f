//! A summary as people read it: an aligned table that is Markdown as well.

use std::fmt::Write;

use super::speed::Speed;
use super::stats::{self, Interval};
use super::summary::{Outcome, Summary};

/// The summary as an aligned Markdown table, then which problems flipped.
pub fn markdown(summary: &Summary) -> String {
    let mut text = format!("{} on {}, {} problems", summary.model, summary.problems, summary.n_problems);
    if summary.n_missing > 0 {
        let _ = write!(text, " ({} more are not complete)", summary.n_missing);
    }
    text.push_str("\n\n");
    text.push_str(&results(summary));
    for outcome in &summary.results {
        let Some(difference) = &outcome.difference else { continue };
        for (what, problems) in [("gained", &difference.gained), ("lost", &difference.lost)] {
            if !problems.is_empty() {
                let _ = write!(text, "\n{}, {what} {}: {}\n", name(outcome), problems.len(), problems.join(" "));
            }
        }
    }
    text
}

/// The table alone.
pub fn results(summary: &Summary) -> String {
    let header = [
        "arm",
        "correct",
        "accuracy",
        "95% interval",
        "difference",
        "95% interval",
        "p",
        "gained/lost",
        "tokens",
        "no answer",
        "unfinished",
    ];
    let rows: Vec<Vec<String>> = summary.results.iter().map(|outcome| row(outcome, summary.n_problems)).collect();
    aligned(&header, &rows)
}

fn row(outcome: &Outcome, n: usize) -> Vec<String> {
    let mut row = vec![
        name(outcome),
        format!("{}/{n}", outcome.correct),
        percent(outcome.accuracy),
        interval(outcome.interval, percent),
    ];
    match &outcome.difference {
        Some(d) => row.extend([
            points(d.accuracy),
            interval(d.interval, points),
            format!("{:.3}", d.p),
            format!("+{} -{}", d.gained.len(), d.lost.len()),
        ]),
        None => row.extend(std::iter::repeat_n(String::new(), 4)),
    }
    row.extend([format!("{:.1}", outcome.tokens), outcome.without_answer.to_string(), outcome.unfinished.to_string()]);
    row
}

/// Speeds, as an aligned Markdown table.
pub fn speeds(speeds: &[Speed]) -> String {
    let header = ["arm", "tokens/s", "seconds a problem", "cost of a token"];
    let row = |speed: &Speed| {
        let cost = speed.cost.map(|cost| format!("{cost:.3}")).unwrap_or_default();
        vec![
            speed.arm.clone(),
            format!("{:.1}", speed.tokens_per_second),
            format!("{:.3}", speed.seconds_per_problem),
            cost,
        ]
    };
    aligned(&header, &speeds.iter().map(row).collect::<Vec<_>>())
}

fn name(outcome: &Outcome) -> String {
    match outcome.votes {
        1 => outcome.arm.clone(),
        votes => format!("{}, vote of {votes}", outcome.arm),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn points(difference: f64) -> String {
    format!("{:+.1}", difference * 100.0)
}

/// How many are right, as one line: "3 of 4 right: 75.0% (95% interval 30.1% to 95.4%)".
pub fn right(correct: usize, total: usize) -> String {
    let bounds = interval(stats::wilson(correct as u64, total as u64), percent);
    format!("{correct} of {total} right: {} (95% interval {bounds})", percent(correct as f64 / total.max(1) as f64))
}

fn interval(interval: Interval, write: fn(f64) -> String) -> String {
    format!("{} to {}", write(interval.low), write(interval.high))
}

/// Columns as wide as their widest cell; the first to the left, the others to the right.
fn aligned(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<_> = cells.collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    let cell = |column: usize, text: &str| match column {
        0 => format!("{text:<width$}", width = widths[0]),
        _ => format!("{text:>width$}", width = widths[column]),
    };
    line(&mut header.iter().enumerate().map(|(column, text)| cell(column, text)));
    line(&mut widths.iter().enumerate().map(|(column, &width)| match column {
        0 => "-".repeat(width),
        _ => format!("{}:", "-".repeat(width - 1)),
    }));
    for row in rows {
        line(&mut row.iter().enumerate().map(|(column, text)| cell(column, text)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let table = aligned(&["arm", "n"], &[vec!["baseline".into(), "12".into()], vec!["x".into(), "1".into()]]);
        assert_eq!(table, "| arm      |   n |\n| -------- | --: |\n| baseline |  12 |\n| x        |   1 |\n");
    }
}
