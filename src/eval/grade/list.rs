//! Several answers in one: `3, -5`, `x = 3 or x = -5`, `\pm 2`, and what brackets hold.

use std::fmt::Display;

use super::assign::{assigned, last_word};
use super::rational::Rational;
use super::tokens::Tokens;
use super::{thousands, units};

/// Lists of no more numbers than this are compared element by element in every order; longer ones once sorted.
const FEW: usize = 48;

/// The brackets of sets.
pub(super) const SET: [&str; 2] = ["\\{", "\\}"];

/// No brackets: solutions one after another.
pub(super) const BARE: [&str; 2] = ["", ""];

/// The brackets of points and of open intervals.
pub(super) const TUPLE: [&str; 2] = ["(", ")"];

/// The elements between the brackets that enclose all of `text`.
pub(super) fn enclosed(text: &str) -> Option<([&'static str; 2], Vec<&str>)> {
    let open = ["(", "[", "\\{", "{"].into_iter().find(|open| text.starts_with(open))?;
    let close = [")", "]", "\\}", "}"].into_iter().find(|close| text.ends_with(close))?;
    let inner = text.get(open.len()..text.len() - close.len())?;
    // Braces that nobody escaped are LaTeX's own and do not show.
    Some((if (open, close) == ("{", "}") { BARE } else { [open, close] }, parts(inner)?))
}

/// The parts between commas, or semicolons where there are any, and the words "and" and "or", that no bracket holds;
/// `None` if brackets are not balanced.
pub(super) fn parts(text: &str) -> Option<Vec<&str>> {
    let semicolons = split(text, |at| usize::from(text[at..].starts_with(';')))?;
    if semicolons.len() > 1 {
        return Some(semicolons);
    }
    // Of `1,500 and 2,500`, the commas separate thousands.
    let spaced = split(text, |at| spaced_separator(text, at))?;
    let mut parts = Vec::new();
    for (i, part) in spaced.iter().enumerate() {
        // Of `1, and 2`, the word says no more than the comma.
        let is_idle = part.trim().is_empty() && i > 0 && joint(text, offset(text, part) + part.len()) > 0;
        if spaced.len() > 1 && thousands::is_one_number(first_word(part)) {
            parts.push(*part);
        } else if !is_idle {
            parts.extend(split(part, |at| usize::from(part[at..].starts_with(',')))?);
        }
    }
    Some(parts)
}

/// The length of what separates elements at an offset, other than a comma that no space follows. Lines of LaTeX are
/// elements, too, but those of a matrix.
fn spaced_separator(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    match () {
        () if rest.starts_with(", ") => 1,
        () if rest.starts_with(" & ") => 3,
        () if rest.starts_with("\\\\") && !text.starts_with("\\begin") => 2,
        () => joint(text, at),
    }
}

/// What stands before a unit, without its sign.
fn first_word(part: &str) -> &str {
    let word = part.split_whitespace().next().unwrap_or("");
    word.strip_prefix('-').unwrap_or(word)
}

fn offset(whole: &str, part: &str) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

/// The parts between separators that no bracket holds; `length` says how long the separator at an offset is.
fn split(text: &str, length: impl Fn(usize) -> usize) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            _ if depth == 0 && at >= start && length(at) > 0 => {
                parts.push(&text[start..at]);
                start = at + length(at);
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (depth == 0).then_some(parts)
}

/// The length of the word "and" or "or" at an offset: letters before it and small ones after it make another word.
pub(super) fn joint(text: &str, at: usize) -> usize {
    let Some((word, rest)) = ["and", "or"].into_iter().find_map(|word| Some((word, text[at..].strip_prefix(word)?)))
    else {
        return 0;
    };
    let is_word =
        !text[..at].ends_with(|c: char| c.is_alphabetic() || c == '\\') && !rest.starts_with(char::is_lowercase);
    if is_word { word.len() } else { 0 }
}

/// The elements that parts stand for, with their names where all have one or these differ, and with their units where these
/// differ: 3 cats and 5 dogs are not 5 cats and 3 dogs.
pub(super) fn items<'a>(parts: &[&'a str]) -> Vec<(Option<&'a str>, String)> {
    let named: Vec<(&str, &str)> = parts.iter().map(|part| name_and_value(without_lead(part.trim()))).collect();
    let mut names = named.iter().map(|(name, _)| *name).filter(|name| !name.is_empty());
    let first = names.next();
    let is_variable = parts.iter().all(|part| assigned(without_lead(part.trim())).0.is_some());
    let keep = names.any(|name| Some(name) != first) || is_variable;
    let values = named.iter().flat_map(|(name, value)| {
        let name = Some(*name).filter(|name| keep && !name.is_empty());
        alternatives(value).into_iter().map(move |value| (name, value))
    });
    values.collect()
}

/// Without the word that says that several follow.
fn without_lead(part: &str) -> &str {
    ["both ", "either "].iter().find_map(|lead| part.strip_prefix(lead)).unwrap_or(part)
}

fn name_and_value(part: &str) -> (&str, &str) {
    let (name, value) = assigned(part);
    let unit = || Some(part[units::strip(part, |value| Rational::parse(value).is_some())?.len()..].trim());
    (name.map(last_word).or_else(unit).unwrap_or(""), value)
}

/// Both values of `\pm`, the upper sign first.
pub(super) fn alternatives(text: &str) -> Vec<String> {
    let signs = Tokens::of(text).filter(|(_, token)| matches!(*token, "\\pm" | "\\mp")).count();
    // In a point, the signs may be chosen each for itself, or all as the first.
    if signs == 0 || (signs > 1 && text.contains(',')) {
        return vec![text.to_owned()];
    }
    let with = |pm: &str, mp: &str| {
        let tokens = Tokens::of(text).map(|(_, token)| match token {
            "\\pm" => pm,
            "\\mp" => mp,
            token => token,
        });
        tokens.collect::<String>()
    };
    vec![with("+", "-"), with("-", "+")]
}

/// Whether every element of one list equals one of the other, in any order. `leaves` tells how many values an element is
/// made of.
pub(super) fn equal_in_any_order<T: Display>(
    (a, b): (&[T], &[T]),
    leaves: fn(&T) -> usize,
    equals: fn(&T, &T) -> bool,
) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let all_leaves = |items: &[T]| items.iter().map(leaves).sum::<usize>();
    if all_leaves(a).max(all_leaves(b)) > FEW {
        let sorted = |items: &[T]| {
            let mut sorted: Vec<(String, usize)> = items.iter().map(T::to_string).zip(0..).collect();
            sorted.sort();
            sorted
        };
        return sorted(a).iter().zip(sorted(b)).all(|((_, i), (_, j))| equals(&a[*i], &b[j]));
    }
    // For each of b's, which of a's it is paired with.
    let mut partner = vec![None; b.len()];
    let equals = |i: usize, j: usize| equals(&a[i], &b[j]);
    (0..a.len()).all(|i| pair(i, &equals, &mut partner, &mut vec![false; b.len()]))
}

/// Finds a partner for the `i`th of a's, giving others new ones where need be: equality is not transitive (50% is 50 and
/// is 1/2), so the first that fits need not be the right one.
fn pair(i: usize, equals: &dyn Fn(usize, usize) -> bool, partner: &mut [Option<usize>], seen: &mut [bool]) -> bool {
    for j in 0..partner.len() {
        if seen[j] || !equals(i, j) {
            continue;
        }
        seen[j] = true;
        if partner[j].is_none_or(|other| pair(other, equals, partner, seen)) {
            partner[j] = Some(i);
            return true;
        }
    }
    false
}
