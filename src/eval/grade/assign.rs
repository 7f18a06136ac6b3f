//! What an answer is called: `x = 5`, `f(x) = 5`, `(p, q) = (3, 2)`, `x \in [1, 2]`, `2 + 3 = 5`.

use super::algebra::Algebra;
use super::rational::Rational;
use super::tokens::Tokens;
use super::{text, units};

/// What a name says of what it is compared with, so that it is no name of a value.
const NO_NAMES: [&str; 22] = [
    "+", "-", "*", "/", "^", "<", ">", "!", "=", "%", "&", ";", "\\sqrt", "\\pm", "\\log", "\\ln", "\\sin", "\\cos",
    "\\tan", "\\leq", "\\geq", "\\neq",
];

/// A value and the name that it is given, if any: what stands after the one equals sign. Of several, what stands after the
/// last, if a calculation leads up to it; before a sign that it is about equal, what stands there.
pub(super) fn assigned(text: &str) -> (Option<&str>, &str) {
    let text = match outside_brackets(text, &["\\approx"])[..] {
        [left, right, ..] if is_name(left) && says_something(right) => return (Some(left.trim()), right.trim()),
        [left, _, ..] if says_something(left) => left,
        _ => text,
    };
    if let [left, right] = outside_brackets(text, &["\\in"])[..]
        && is_name(left)
        && says_something(right)
    {
        return (Some(left.trim()), right.trim());
    }
    let parts = outside_brackets(text, &["="]);
    let [first, between @ .., last] = &parts[..] else { return (None, text) };
    let named = is_name(first);
    let fits = match between {
        _ if parts.len() == 1 || !says_something(last) => false,
        [] => named || (is_calculation(first) && is_result(last)),
        _ if named => between.iter().all(|part| is_calculation(part)),
        _ => {
            is_calculation(first) && is_result(last) && between.iter().all(|part| is_calculation(part) || is_name(part))
        }
    };
    if fits { (named.then_some(first.trim()), last.trim()) } else { (None, text) }
}

/// The parts between signs that no bracket holds.
fn outside_brackets<'a>(text: &'a str, signs: &[&'static str]) -> Vec<&'a str> {
    split(text, signs).0
}

/// The parts between signs that no bracket holds, and those signs.
pub(super) fn split<'a>(text: &'a str, signs: &[&'static str]) -> (Vec<&'a str>, Vec<&'static str>) {
    let (mut parts, mut found, mut start, mut depth) = (Vec::new(), Vec::new(), 0, 0usize);
    for (at, token) in Tokens::of(text) {
        match token {
            "(" | "[" | "{" | "\\{" => depth += 1,
            ")" | "]" | "}" | "\\}" => depth = depth.saturating_sub(1),
            token if depth == 0 => {
                if let Some(sign) = signs.iter().find(|sign| **sign == token) {
                    parts.push(&text[start..at]);
                    found.push(*sign);
                    start = at + sign.len();
                }
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (parts, found)
}

/// A name without the words before it: `so x` is `x`. The spaces in brackets are no ends of words.
pub(super) fn last_word(name: &str) -> &str {
    let name = name.trim();
    if name.ends_with([')', ']', '}', '|']) { name } else { name.rsplit(' ').next().unwrap_or(name) }
}

fn says_something(text: &str) -> bool {
    !text::compact(text.trim()).is_empty()
}

fn is_calculation(text: &str) -> bool {
    Algebra::parse(text.trim()).is_some_and(|value| value.is_constant)
}

fn is_result(text: &str) -> bool {
    is_calculation(text) || units::strip(text.trim(), |value| Rational::parse(value).is_some()).is_some()
}

/// Whether text names something: `x`, `x_1`, `AB`, `|AB|`, `f(2)`, `(p, q)`, `V_1:V_2`, `\theta`, `Area`.
pub(super) fn is_name(text: &str) -> bool {
    let (mut has_letter, mut is_index, mut in_argument, mut depth) = (false, false, 0usize, 0usize);
    for (_, token) in Tokens::of(text.trim()) {
        let is_letter = token.starts_with(|c: char| c.is_alphabetic() || c == '\\');
        match token {
            "(" | "{" | "[" => {
                depth += 1;
                if is_index || (token == "(" && has_letter) {
                    in_argument = in_argument.max(depth);
                }
            }
            ")" | "}" | "]" => {
                in_argument = if in_argument == depth { 0 } else { in_argument };
                let Some(outer) = depth.checked_sub(1) else { return false };
                depth = outer;
            }
            _ if in_argument > 0 || is_index => {}
            _ if NO_NAMES.contains(&token) || token.starts_with(|c: char| c.is_ascii_digit()) => return false,
            "," if depth == 0 => return false,
            _ => has_letter |= is_letter,
        }
        is_index = token == "_";
    }
    has_letter && depth == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_from_their_names() {
        for (text, name, value) in [
            ("x = 5", "x", "5"),
            (r"\theta = \pi", r"\theta", r"\pi"),
            ("x_{12} = 5", "x_{12}", "5"),
            ("f(2) = 5", "f(2)", "5"),
            ("(p, q) = (3, 2)", "(p, q)", "(3, 2)"),
            (r"|AB| = 1", "|AB|", "1"),
            (r"V_{1}:V_{2}=11:21", "V_{1}:V_{2}", "11:21"),
            (r"\frac{NO}{BO}=3", r"\frac{NO}{BO}", "3"),
            (r"x \in [1, 2]", "x", "[1, 2]"),
            ("x = 5 + 2 = 7", "x", "7"),
            (r"x = 1/3 \approx 0.3", "x", "1/3"),
            (r"x \approx 11", "x", "11"),
            ("total cost = 5", "total cost", "5"),
        ] {
            assert_eq!(assigned(text), (Some(name), value), "{text}");
        }
        assert_eq!(assigned("2 + 3 = 5 apples"), (None, "5 apples"));
    }

    #[test]
    fn equations_stay_whole() {
        for text in [
            "5",
            "5 = x",
            "x = y = 5",
            "2x + z = 1",
            "a^2 = 0",
            "7 = 11a + c",
            "-x = 1",
            r"\sqrt{x} = 3",
            "x =",
            "= 5",
            "2x = 4",
        ] {
            assert_eq!(assigned(text), (None, text), "{text}");
        }
    }
}
