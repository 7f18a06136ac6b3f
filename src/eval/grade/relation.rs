//! Equations and inequalities as a whole: `2x + 4y = 6` is `x = 3 - 2y`, `-x > -1` is `x < 1`.

use super::algebra::Algebra;
use super::assign::{is_name, last_word, split};

const SIGNS: [&str; 6] = ["=", "<", ">", "\\leq", "\\geq", "\\neq"];

/// One sign between two formulas.
#[derive(Debug)]
pub(super) struct Relation {
    /// `=`, `\neq`, `<` or `\leq`.
    sign: &'static str,
    /// The right side less the left one.
    difference: Algebra,
}

impl Relation {
    /// `None` where there are several signs or none, or a side cannot be computed.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (parts, signs) = split(text, &SIGNS);
        let ([left, right], [sign]) = (&parts[..], &signs[..]) else { return None };
        let (left, right) = (side(left)?, side(right)?);
        let (sign, left, right) = match *sign {
            ">" => ("<", right, left),
            "\\geq" => ("\\leq", right, left),
            sign => (sign, left, right),
        };
        Some(Self { sign, difference: right.plus(left.negative()) })
    }

    /// Whether one is the other multiplied with a number.
    pub(super) fn equals(&self, other: &Self) -> bool {
        let ratio = self.difference.ratio(&other.difference);
        self.sign == other.sign && ratio.is_some_and(|ratio| ratio > 0.0 || matches!(self.sign, "=" | "\\neq"))
    }
}

/// A side, a lone variable included.
fn side(text: &str) -> Option<Algebra> {
    Algebra::parse(text.trim()).or_else(|| Algebra::parse(&format!("({})", text.trim())))
}

/// The interval that bounds leave for what is named, and its name: `x \geq 5`, `1 < x \leq 2`, `1 < |x| < 2`.
pub(super) fn interval(text: &str) -> Option<(&str, String)> {
    let (mut parts, mut signs) = split(text, &SIGNS);
    if signs.iter().all(|sign| matches!(*sign, ">" | "\\geq")) {
        parts.reverse();
        signs.reverse();
    } else if !signs.iter().all(|sign| matches!(*sign, "<" | "\\leq")) {
        return None;
    }
    let is_open = |sign: Option<&&str>| sign.is_some_and(|sign| matches!(*sign, "<" | ">"));
    let (left, right) = (if is_open(signs.first()) { "(" } else { "[" }, if is_open(signs.last()) { ")" } else { "]" });
    match parts[..] {
        [name, high] if is_name(name) => Some((last_word(name), format!("(-\\infty,{high}{right}"))),
        [low, name] if is_name(name) => Some((last_word(name), format!("{left}{low},\\infty)"))),
        [low, name, high] if is_name(name) => {
            let interval = format!("{left}{low},{high}{right}");
            let mirrored = || {
                let (left, right) = (if right == ")" { "(" } else { "[" }, if left == "(" { ")" } else { "]" });
                format!("{left}-({high}),-({low}){right} \\cup {interval}")
            };
            let is_size = name.trim().starts_with('|') && name.trim().ends_with('|');
            Some((last_word(name), if is_size { mirrored() } else { interval }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_intervals() {
        for (text, name, expected) in [
            (r"x \geq 5", "x", r"[ 5,\infty)"),
            (r"5 > x", "x", r"(-\infty,5 )"),
            (r"0 < f(x) \leq 1", "f(x)", "(0 , 1]"),
            (r"2 \geq x > 1", "x", "( 1,2 ]"),
            (r"1 < |z| < 2", "|z|", r"(-( 2),-(1 )) \cup (1 , 2)"),
        ] {
            assert_eq!(interval(text), Some((name, expected.to_owned())), "{text}");
        }
        for text in ["5", "x = 5", "1 < x = 2", r"x \neq 5", "1 < 2"] {
            assert_eq!(interval(text), None, "{text}");
        }
    }

    #[test]
    fn relations_are_equal_up_to_a_factor() {
        let equal = |a, b| Relation::parse(a).zip(Relation::parse(b)).is_some_and(|(a, b)| a.equals(&b));
        for (a, b) in [
            ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"),
            ("x < 1", "-x > -1"),
            ("5 = x", "x = 5"),
            (r"x \neq 5", r"5 \neq x"),
        ] {
            assert!(equal(a, b), "{a} and {b}");
        }
        for (a, b) in
            [("x < 1", "x > 1"), ("x < 1", r"x \leq 1"), ("x = 1", "x = 2"), ("x = 1", "y = 1"), ("x < 1", "x = 1")]
        {
            assert!(!equal(a, b), "{a} and {b}");
        }
    }
}
