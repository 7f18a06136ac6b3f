//! Whether an answer is right: finding it in a reply and comparing it with the reference.
//!
//! Two answers are equal when they are the same number, the same list of equal elements, or the same text once both are
//! written alike. Beyond that:
//!
//! - Numbers are compared exactly: integers, decimals, fractions, mixed numbers, scientific notation, thousands
//!   separators. One too large for 128 bits is compared digit by digit. A decimal of some twelve digits or more also
//!   equals what it is rounded from; a shorter one does not.
//! - Commas between digits are read as what the other answer is: beside a list, `1,234` is `234, 1`; beside a number it is
//!   1234, unless all groups are round numbers of three digits (`100,200` is no number without a currency, a unit or
//!   LaTeX's `{,}`). Two or more digits after a comma that separates no thousands equal that decimal: `1,25` is `1.25`.
//! - Numbers in words are numbers (`forty-two`), and quantities of two units are of the first: `2 h 30 min` is 2.5 hours.
//! - A percentage equals the number it stands for and the bare number before its sign: `50%` is `1/2` and is `50`.
//! - Units, currency signs and degrees after or before a value do not count, nor does a name that it is given: `x = 5`,
//!   `f(2) = 5`, `5 cm` and `$5` are `5`, and so is `2 + 3 = 5`. Words of scale do: `5 million` is not `5`.
//! - Tuples and intervals need the same brackets and order; sets, unions, and solutions listed without brackets, by commas,
//!   "and", "or" or `\pm`, no order. Solutions with different names, or beside a tuple, have the order they are written in:
//!   `x = 3, y = -5` is `3, -5` and neither `-5, 3` nor `x = 3 or x = -5`. Different units are such names; `x_1`, `x_2` and
//!   so on only count.
//! - Elements and the entries of matrices are compared as answers are; which brackets a matrix has does not count.
//! - Bounds of a variable are the interval they leave it; equations and inequalities are equal up to a factor.
//! - Formulas are equal that have the same value, exactly or, with radicals, functions and variables, to eleven digits at
//!   three points; see `parser.rs` for what is read. A power is not the plain number that it makes: `2^{10}` is not
//!   `1024`. All other formulas are compared as text.
//!
//! Time grows linearly with the length of an answer, whatever is in it.
//!
//! docs/grading.md compares this with Math-Verify and lm-eval.

mod algebra;
mod assign;
mod boxes;
mod choice;
mod clause;
mod compound;
mod extract;
mod form;
mod formulas;
mod joint;
mod list;
mod matrix;
mod parser;
mod plain;
mod rational;
mod relation;
mod running;
mod stated;
mod text;
mod thousands;
mod tokens;
mod units;
mod value;
mod words;

pub use extract::{Kind, extract};

use form::Form;

/// The right answer to a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A number, a formula or words, as text or LaTeX.
    Free(String),
    /// The letter of an option, in upper case.
    Choice(char),
}

impl Answer {
    /// What kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Free(_) => Kind::Free,
            Self::Choice(_) => Kind::Choice,
        }
    }
}

/// Whether `found` is the answer that `reference` asks for. Nothing found is never right.
pub fn is_correct(found: &str, reference: &Answer) -> bool {
    match reference {
        Answer::Choice(right) => choice::letter(found) == Some(*right),
        Answer::Free(reference) => Form::of(found).equals(&Form::of(reference)),
    }
}

/// One spelling for all answers that are equal, to count votes by.
///
/// Every right answer gets the spelling of the reference; a wrong one its own. Grading the spelling gives the same
/// verdict as grading the answer.
pub fn canonical(found: &str, reference: &Answer) -> String {
    let spelling = match reference {
        Answer::Choice(_) => choice::letter(found).map_or_else(|| text::normalise(found), String::from),
        Answer::Free(reference) => {
            let (found, reference) = (Form::of(found), Form::of(reference));
            if found.equals(&reference) { reference.to_string() } else { found.to_string() }
        }
    };
    // What is left of odd LaTeX can itself be LaTeX that means something: `B{^\circ}` becomes `B{}`, and that `B`.
    match is_correct(&spelling, reference) == is_correct(found, reference) {
        true => spelling,
        false => found.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    /// Pieces that answers are made of, so that random ones reach every rule.
    fn answer() -> impl Strategy<Value = String> {
        let pieces = [
            "\\frac",
            "\\sqrt",
            "\\text",
            "\\boxed",
            "\\pi",
            "\\infty",
            "\\cup",
            "\\{",
            "\\}",
            "\\left",
            "\\,",
            "\\!",
            "^\\circ",
            "\\%",
            "\\$",
            "\\",
            "{",
            "}",
            "(",
            ")",
            "[",
            "]",
            ",",
            ".",
            "/",
            "*",
            "=",
            "+",
            "-",
            "^",
            "_",
            "%",
            "$",
            " ",
            "x",
            "e",
            "B",
            "cm",
            "apples",
            "percent",
            "0",
            "1",
            "2",
            "50",
            "007",
            "1,234",
            "10^{5}",
            "3.50",
            "é",
            "√",
            "−",
            "答",
            "\n",
            "####",
            "answer is",
            "\\pm",
            "\\begin{pmatrix}",
            "\\end{pmatrix}",
            "\\\\",
            "&",
            "|",
            "<",
            "\\leq",
            "\\approx",
            "\\in",
            "\\sin",
            ";",
            " and ",
            " or ",
            ", ",
            "not ",
            "because ",
            "Option ",
            " is right",
            "100,200",
            "1,22",
            "y",
            "D",
            "**",
            "i",
        ];
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn nothing_panics(reply in ".{0,80}", other in ".{0,40}") {
            extract(&reply, Kind::Choice);
            let found = extract(&reply, Kind::Free).unwrap_or(reply);
            for reference in [Answer::Free(other), Answer::Choice('B')] {
                is_correct(&found, &reference);
                canonical(&found, &reference);
            }
        }

        #[test]
        fn equality_is_symmetric_and_holds_for_itself(a in answer(), b in answer()) {
            for kind in [Kind::Free, Kind::Choice] {
                extract(&a, kind);
            }
            let (free_a, free_b) = (Answer::Free(a.clone()), Answer::Free(b.clone()));
            prop_assert_eq!(is_correct(&a, &free_b), is_correct(&b, &free_a));
            prop_assert!(is_correct(&a, &free_a) || !text::normalise(&a).contains(char::is_alphanumeric));
        }

        #[test]
        fn the_canonical_form_has_the_same_verdict(a in answer(), b in answer()) {
            for reference in [Answer::Free(b), Answer::Choice('B')] {
                let spelled = canonical(&a, &reference);
                prop_assert_eq!(is_correct(&a, &reference), is_correct(&spelled, &reference), "{} as {}", a, spelled);
            }
        }
    }

    #[test]
    fn what_spelling_would_make_right_stays_as_it_is() {
        assert_eq!(canonical(r"B{^\circ}", &Answer::Choice('B')), r"B{^\circ}");
        assert_eq!(canonical(r"\text{B}", &Answer::Choice('C')), "B");
    }

    /// The worst there is takes no longer than anything else of its length.
    #[test]
    fn hostile_answers_take_linear_time() {
        let started = Instant::now();
        for piece in [
            "{",
            "}",
            "(",
            ")",
            "\\{",
            "[1,",
            "((1),",
            "\\frac",
            "\\frac{",
            "\\frac1",
            "\\sqrt",
            "\\sqrt[",
            "\\boxed{",
            "\\boxed ",
            "\\text{",
            "\\",
            "9",
            "9,",
            "1,234,",
            "1/",
            "-",
            "x=",
            "10^",
            "5 cm ",
            "5 ",
            "a b ",
            "$",
            "%",
            "答",
            "^\\circ",
            "*",
            "answer is ",
            "answer is",
            "####",
            "(A) ",
            "A, ",
            "{1}",
            "1 \\frac{1}{2} ",
            ". ",
            "{{1},",
            "\\pm ",
            "1\\pm2,",
            "\\begin{pmatrix}",
            "1&",
            "1\\\\",
            "\\begin{pmatrix}1\\end{pmatrix}",
            "|",
            "|x",
            "<",
            "x<",
            "1=",
            "x=1,",
            "x \\in ",
            "1\\approx",
            "[1,2]\\cup",
            " and ",
            "1 or ",
            "1;",
            "answer is 1 because ",
            "answer\n",
            "final answer: 5",
            "\\boxed{5}",
            "\\boxed5",
            "\\boxed{5} and ",
            "$x$ and ",
            "$ ",
            "5 (",
            ", not ",
            "**",
            "D is wrong ",
            "answer D ",
            "x^",
            "\\sin ",
            "x_",
            "1+",
            "100,200,",
        ] {
            let text = piece.repeat((1 << 17) / piece.len());
            for kind in [Kind::Free, Kind::Choice] {
                extract(&text, kind);
            }
            for reference in [Answer::Free(text.clone()), Answer::Choice('A')] {
                is_correct(&text, &reference);
                canonical(&text, &reference);
            }
        }
        // Ten seconds without optimisation on a slow machine; anything quadratic would need hours.
        assert!(started.elapsed() < Duration::from_secs(90), "{:?}", started.elapsed());
    }
}
