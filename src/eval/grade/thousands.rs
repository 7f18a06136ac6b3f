//! Commas between digits: `1,234` is one number, `3,5` are two, and `100,200` may be either.
//!
//! Groups of three digits after a first of one to three are thousands, unless every group is a round number of three
//! digits: `100,200` is two numbers, as it is wherever it is compared with a list. Beside a currency or a unit, or with
//! LaTeX's `{,}`, it is one again.

use super::rational::Rational;

/// The groups of digits of what is either one number with thousands separators or a list of numbers.
pub(super) fn groups(text: &str) -> Option<Vec<&str>> {
    let is_number = text.contains(',') && text.bytes().all(|b| b.is_ascii_digit() || b == b',');
    (is_number && Rational::parse(text).is_some()).then(|| text.split(',').collect())
}

/// Whether digits with commas are one number.
pub(super) fn is_one_number(text: &str) -> bool {
    groups(text).is_some_and(|groups| !groups.iter().all(|group| is_round(group)))
}

/// Whether a group of digits is as often an element of its own: `100`, `250`, not `1` or `000`.
fn is_round(group: &str) -> bool {
    group.len() == 3 && group.ends_with('0') && !group.starts_with('0')
}

/// Whether how it is written shows that an answer is a single number: as money, or with LaTeX's comma without a space.
pub(super) fn is_marked(answer: &str) -> bool {
    let is_money = answer.contains("\\$") || answer.contains(['€', '£']) || answer.matches('$').count() % 2 == 1;
    is_money || answer.contains("{,}") || answer.contains(",\\!")
}

/// A number whose decimals a comma begins. One decimal is too few to tell: `0,1` is a list more often.
pub(super) fn decimal(text: &str) -> Option<Rational> {
    let (whole, decimals) = text.split_once(',')?;
    let unsigned = whole.strip_prefix('-').unwrap_or(whole);
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let fits = is_digits(unsigned) && is_digits(decimals) && decimals.len() > 1 && groups(text).is_none();
    fits.then(|| Rational::parse(&format!("{whole}.{decimals}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_from_lists() {
        for text in ["1,234", "12,345", "123,456", "100,000", "1,000,000", "299,792,458"] {
            assert!(is_one_number(text), "{text}");
        }
        for text in ["100,200", "100,200,300", "150,250", "1,2", "12,34", "0,123", "1234,567", "1234", "1,234 kg"] {
            assert!(!is_one_number(text), "{text}");
        }
    }

    #[test]
    fn commas_before_decimals() {
        for (text, expected) in
            [("1,22", Some("61/50")), ("1000,99", Some("100099/100")), ("-0,111", Some("-111/1000"))]
        {
            assert_eq!(decimal(text).map(|n| n.to_string()).as_deref(), expected, "{text}");
        }
        for text in ["0,5", "1,234", "1,2,3", ",5", "1,", "a,55"] {
            assert_eq!(decimal(text), None, "{text}");
        }
    }
}
