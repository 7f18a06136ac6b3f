//! Numbers and formulas in running text that no signs enclose: `9 are left`, `the point is (3, 4)`, `the area is 9π`.

use super::compound;
use super::form::Form;

/// What joins two words of a formula, at the end of the first or the beginning of the second.
const OPERATORS: [char; 10] = ['+', '-', '−', '*', '/', '^', '×', '·', '√', ':'];

/// A formula in running text has no more words.
const MAX_WORDS: usize = 64;

/// Names of several letters that a formula may hold.
const NAMES: [&str; 7] = ["sqrt", "pi", "sin", "cos", "tan", "log", "ln"];

/// The last number, or the formula, point, ratio or time of day that it is part of.
pub(super) fn last_value(text: &str) -> Option<&str> {
    let number = last_number(text)?;
    Some(around(text, number).unwrap_or(number))
}

/// The last number: digits with thousands separators or several with commas alone between them, decimals, a denominator,
/// a sign before and `%` after it. Digits after a letter, `^` or `_` belong to a name or a formula.
fn last_number(text: &str) -> Option<&str> {
    let (mut found, mut at) = (None, 0);
    while let Some(offset) = text[at..].find(|c: char| c.is_ascii_digit()) {
        let end = number_end(text, at + offset);
        let before = &text[..at + offset];
        let is_inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '^' | '_');
        if !before.ends_with(is_inside) {
            let unsigned = before.strip_suffix('.').filter(|b| !b.ends_with(is_inside)).unwrap_or(before);
            let sign =
                unsigned.strip_suffix(['-', '−']).filter(|b| !b.ends_with(|c| is_inside(c) || matches!(c, ')' | '}')));
            found = Some(&text[sign.unwrap_or(unsigned).len()..end]);
        }
        at = end;
    }
    found
}

/// Where the number ends whose first digit is at `start`.
fn number_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let digits = |at: usize| bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = start + digits(start);
    // `1.234,50`
    while bytes.get(end) == Some(&b'.') && digits(end + 1) == 3 && matches!(bytes.get(end + 4), Some(b'.' | b',')) {
        end += 4;
    }
    while bytes.get(end) == Some(&b',') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    for sign in [b'.', b'/'] {
        if bytes.get(end) == Some(&sign) && digits(end + 1) > 0 {
            end += 1 + digits(end + 1);
        }
    }
    let percent = ["%", "\\%"].into_iter().find(|sign| text[end..].starts_with(sign));
    end + percent.map_or(0, str::len)
}

/// What a number is a part of, if that is more than a number or a calculation.
fn around<'a>(text: &'a str, number: &str) -> Option<&'a str> {
    let at = number.as_ptr() as usize - text.as_ptr() as usize;
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let line = text[start..].lines().next()?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let offset = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    let own = words.iter().rposition(|word| offset(word) <= at)?;
    if let Some(first) = quantity(&words, own) {
        return Some(trimmed(&text[offset(words[first])..offset(words[own + 1]) + words[own + 1].len()]));
    }
    let (mut first, mut last) = (own, own);
    while first > 0
        && own - first < MAX_WORDS
        && goes_on(words[first - 1], words[first], depth(&words[first..=last]) < 0)
    {
        first -= 1;
    }
    while let Some(next) = words.get(last + 1).filter(|_| last - own < MAX_WORDS)
        && (goes_on(words[last], next, depth(&words[first..=last]) > 0) || is_half_of_day(next))
    {
        last += 1;
    }
    first = alternatives(&words, first);
    let found = trimmed(&text[offset(words[first])..offset(words[last]) + words[last].len()]);
    (is_more(found) && (Form::of(found).is_understood() || is_ratio(found))).then_some(found)
}

/// Where a quantity of two units begins whose last number is a word: `5 feet 6 inches`, `2 hours and 30 minutes`.
fn quantity(words: &[&str], own: usize) -> Option<usize> {
    let first = own.checked_sub(if own > 0 && words[own - 1] == "and" { 3 } else { 2 })?;
    let parts: Vec<&str> = words.get(first..own + 2)?.iter().map(|word| trimmed(word)).collect();
    compound::parse(&parts.join(" ")).map(|_| first)
}

/// Whether one word of a formula continues in the next.
fn goes_on(word: &str, next: &str, is_open: bool) -> bool {
    let is_bare = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let is_operated = word.ends_with(OPERATORS) && (word == ":" || !word.ends_with(':'))
        || next.starts_with(OPERATORS) && (next.len() == 1 || !next.starts_with(['-', '−', ':']));
    let is_mixed = is_bare(word) && next.split_once('/').is_some_and(|(a, b)| is_bare(a) && is_bare(trimmed(b)));
    is_formula(word) && is_formula(next) && (is_open || is_operated || is_mixed)
}

/// Whether a word holds nothing but numbers, signs, single letters and names of functions.
fn is_formula(word: &str) -> bool {
    let is_sign = |c: char| c.is_ascii_digit() || OPERATORS.contains(&c) || "()[]{}.,;π∞%°²³".contains(c);
    word.chars().all(|c| is_sign(c) || c.is_ascii_alphabetic())
        && word.split(|c: char| !c.is_ascii_alphabetic()).all(|letters| letters.len() < 2 || NAMES.contains(&letters))
}

/// How many brackets are open after some words, or how many are missing before them.
fn depth(words: &[&str]) -> isize {
    let depth = |word: &str| {
        let (open, close) = (word.matches(['(', '[', '{']).count(), word.matches([')', ']', '}']).count());
        open.cast_signed() - close.cast_signed()
    };
    words.iter().map(|word| depth(word)).sum()
}

fn is_half_of_day(word: &str) -> bool {
    matches!(trimmed(word).to_ascii_lowercase().as_str(), "am" | "pm" | "a.m" | "p.m")
}

/// Where what is one of two begins: `either 2 or 3`, `(1, 2) and (3, 4)`.
fn alternatives(words: &[&str], first: usize) -> usize {
    let Some([before @ .., "and" | "or"]) = words.get(..first) else { return first };
    match before {
        [.., "either" | "both", _] => first - 2,
        [.., last] if words[first].starts_with('(') && last.ends_with(')') => {
            let mut start = before.len() - 1;
            while start > 0 && before.len() - start < MAX_WORDS && depth(&before[start..]) < 0 {
                start -= 1;
            }
            if depth(&before[start..]) == 0 && before[start].starts_with('(') { start } else { first }
        }
        _ => first,
    }
}

/// Whether what was found is more than a number or a calculation with numbers: those are rather a step than a result.
fn is_more(text: &str) -> bool {
    let holds = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    let is_point = text.starts_with(['(', '[']) && text.ends_with([')', ']']) && text.contains(',');
    let has_variable = text.contains(|c: char| c.is_ascii_lowercase()) && text.contains(['+', '-', '−', '^']);
    let is_mixed =
        text.contains(' ') && text.contains('/') && !text.contains(OPERATORS.map(|c| if c == '/' { '+' } else { c }));
    let is_scientific = text.split_once(['e', 'E']).is_some_and(|(a, b)| {
        a.ends_with(|c: char| c.is_ascii_digit())
            && b.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit())
    });
    is_point
        || is_mixed
        || has_variable
        || is_scientific
        || is_ratio(text)
        || holds(&["√", "π", "sqrt", "pi", "10^", " or ", " and "])
}

/// `3:4`, `2:3:5`, `3:45 PM`
fn is_ratio(text: &str) -> bool {
    let numbers = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || matches!(c, '.' | ' '));
    let is_number = |part: &str| !part.trim().is_empty() && part.trim().bytes().all(|b| b.is_ascii_digit());
    numbers.contains(':') && numbers.split(':').all(is_number)
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| matches!(c, '.' | ',' | ';' | ':' | '!' | '?' | '*' | '"') || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_prose() {
        for (text, expected) in [
            ("She has 12 apples and eats 3, so 9 are left.", "9"),
            ("It costs 1,250 dollars.", "1,250"),
            ("So it is −4%!", "−4%"),
            ("The point is (3, 4).", "(3, 4)"),
            ("They meet at (1, 2) and (3, -4).", "(1, 2) and (3, -4)"),
            ("The interval is [1, 2).", "[1, 2)"),
            ("x equals 3+√2.", "3+√2"),
            ("x equals 3 + sqrt(2)", "3 + sqrt(2)"),
            ("The area is 9π cm.", "9π"),
            ("The total is 1.5e3 metres.", "1.5e3"),
            ("It is 3×10^8 m/s", "3×10^8"),
            ("It takes 3 1/2 hours.", "3 1/2"),
            ("The ratio is 3:4.", "3:4"),
            ("The ratio is 3 : 4.", "3 : 4"),
            ("It arrives at 3:45 PM.", "3:45 PM"),
            ("Its derivative is 2x + 3.", "2x + 3"),
            ("Hence x is either 2 or 3.", "2 or 3"),
            ("He pays 1.234,50 euros", "1.234,50"),
            ("Step 2: 5 apples", "5"),
            ("It takes 2 hours and 30 minutes.", "2 hours and 30 minutes"),
            ("He is 5 feet 6 inches tall.", "5 feet 6 inches"),
            ("18 apples (6 bags of 3)", "3"),
            ("It is 20 * 3", "3"),
            ("from 3 to 5 - 7", "7"),
            ("In room B-12 are 5x as many", "5"),
        ] {
            assert_eq!(last_value(text), Some(expected), "{text}");
        }
        assert_eq!(last_value("none"), None);
    }
}
