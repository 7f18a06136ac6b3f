//! Units after a value: `12 cm`, `36 coins`, `60 miles per hour`, `5 m/s^2`.

use super::tokens::Tokens;

/// Units of one letter, taken for such only after a space and a number: elsewhere a letter is a variable.
const LETTERS: [&str; 12] = ["m", "g", "s", "h", "L", "J", "N", "W", "V", "K", "C", "F"];

/// Units that may stand at a number without a space.
const ABBREVIATIONS: [&str; 25] = [
    "mm", "cm", "dm", "km", "mg", "kg", "ml", "mL", "cl", "ft", "in", "yd", "mi", "lb", "lbs", "oz", "hr", "hrs",
    "min", "sec", "ms", "kW", "Hz", "mph", "kph",
];

/// Short words inside a unit: `boxes of pens`.
const FILLERS: [&str; 5] = ["a", "an", "of", "sq", "cu"];

/// Words that change a value or join two.
const NO_UNITS: [&str; 30] = [
    "and",
    "or",
    "not",
    "mod",
    "over",
    "times",
    "plus",
    "minus",
    "choose",
    "factorial",
    "squared",
    "cubed",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "log",
    "exp",
    "max",
    "hundred",
    "thousand",
    "million",
    "billion",
    "trillion",
    "dozen",
    "half",
    "halves",
    "thirds",
    "fourths",
    "fifths",
];

/// More words than this are no unit but a sentence.
const MAX_WORDS: usize = 5;

/// The value in front of a unit, or `None` if there is no unit. `is_number` knows numbers.
pub(super) fn strip(text: &str, is_number: impl Fn(&str) -> bool) -> Option<&str> {
    let (value, unit) = text.split_at(first_word(text)?);
    let (attached, value) = (!value.ends_with(' '), value.trim_end());
    let unit = unit.replace("^2", "").replace("^3", "");
    let words: Vec<&str> = unit.split([' ', '/', '*', '-']).filter(|w| !w.is_empty()).take(MAX_WORDS + 1).collect();
    let number = is_number(value);
    let is_unit = |word: &&str| {
        let word = word.trim_end_matches('.');
        let is_word = word.chars().count() > 2 && word.chars().all(char::is_alphabetic);
        ABBREVIATIONS.contains(&word)
            || (number && LETTERS.contains(&word))
            || FILLERS.contains(&word)
            || (is_word && !NO_UNITS.contains(&word.to_lowercase().as_str()))
    };
    let fits = words.len() <= MAX_WORDS && words.iter().all(is_unit) && words.iter().any(|w| !FILLERS.contains(w));
    let stands_off = !attached || words.first().is_some_and(|word| ABBREVIATIONS.contains(word));
    let has_value = value.contains(|c: char| c.is_ascii_digit() || c == '\\');
    (fits && stands_off && has_value).then_some(value)
}

/// Whether text begins with a word that changes the value before it: `million dollars`.
pub(super) fn changes_value(text: &str) -> bool {
    let word = text.trim_start();
    let word = &word[..word.find(|c: char| !c.is_alphabetic()).unwrap_or(word.len())];
    NO_UNITS.contains(&word.to_lowercase().as_str())
}

/// Where the first letter is that belongs to no control sequence.
fn first_word(text: &str) -> Option<usize> {
    Tokens::of(text).find(|(_, token)| token.starts_with(char::is_alphabetic)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<&str> {
        strip(text, |t| t.parse::<f64>().is_ok())
    }

    #[test]
    fn units_leave_their_value() {
        for text in [
            "5 cm",
            "5cm",
            "5 cm^2",
            "5 m",
            "5 m/s^2",
            "5 miles per hour",
            "5 square inches",
            "5 boxes of pens",
            "5 kg*m",
            "5 sq. ft.",
        ] {
            assert_eq!(value(text), Some("5"), "{text}");
        }
        assert_eq!(value(r"3\pi cm^2"), Some(r"3\pi"));
    }

    #[test]
    fn what_is_no_unit_stays() {
        for text in [
            "5",
            "5x",
            "5 x",
            "5 ab",
            "5 a",
            "5 of a",
            "5m",
            "cm",
            "5 million",
            "5 and more",
            "5 or 7",
            "5 apples, 3 pears",
            "5 apples 3",
            "of cm",
            r"3\pi m",
            r"3\sqrt{x} cm",
            "5 because it is what was asked for",
            "x cm",
        ] {
            assert_eq!(value(text), None, "{text}");
        }
    }
}
