//! Formulas between their signs.

use super::joint::is_joint;
use super::running;

/// A formula between its signs: `$...$`, `$$...$$`, `\(...\)`, `\[...\]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Formula<'a> {
    /// Where its sign begins, and where the one ends that closes it.
    pub(super) start: usize,
    pub(super) end: usize,
    content: &'a str,
}

/// The first formula.
pub(super) fn first(text: &str) -> Option<Formula<'_>> {
    Formulas { text, at: 0 }.next()
}

/// The last formula, with those that are joined to it, or what stands in running text after it.
pub(super) fn last_value(text: &str) -> Option<&str> {
    let formulas: Vec<Formula<'_>> = Formulas { text, at: 0 }.collect();
    let number = running::last_value(text);
    let Some(last) = formulas.last() else { return number };
    if let Some(number) = number.filter(|number| number.as_ptr() as usize - text.as_ptr() as usize >= last.end) {
        return Some(number);
    }
    let joined = formulas.windows(2).rev().take_while(|pair| is_joint(&text[pair[0].end..pair[1].start])).count();
    let first = formulas[formulas.len() - 1 - joined];
    Some(if joined == 0 { last.content } else { &text[first.start..last.end] })
}

struct Formulas<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Formulas<'a> {
    type Item = Formula<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        // What was opened: its sign, where it begins and where its content does.
        let mut open: Option<(&str, usize, usize)> = None;
        while let Some((start, sign)) = next_sign(self.text, self.at) {
            let end = start + sign.len();
            self.at = end;
            if let Some((opening, from, content)) = open
                && closes(opening, sign)
            {
                let content = &self.text[content..start];
                // A sign before a digit is of a sum of money, and so is one before several words.
                let is_money =
                    sign == "$" && (self.text[end..].starts_with(|c: char| c.is_ascii_digit()) || is_prose(content));
                if !is_money && !content.trim().is_empty() {
                    return Some(Formula { start: from, end, content });
                }
            }
            open = matches!(sign, "$" | "$$" | "\\(" | "\\[").then_some((sign, start, end));
        }
        None
    }
}

fn next_sign(text: &str, from: usize) -> Option<(usize, &str)> {
    let bytes = text.as_bytes();
    let mut at = from;
    while let Some(offset) = text[at..].find(['$', '\\']) {
        at += offset;
        let next = bytes.get(at + 1);
        let length = match (bytes[at], next) {
            (b'$', Some(b'$')) => 2,
            (b'$', _) => 1,
            (_, Some(b'(' | b')' | b'[' | b']')) => 2,
            _ => 0,
        };
        if length > 0 {
            return Some((at, &text[at..at + length]));
        }
        // The character after a backslash belongs to it.
        at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8);
    }
    None
}

fn closes(opening: &str, sign: &str) -> bool {
    matches!((opening, sign), ("$", "$") | ("$$", "$$") | ("\\(", "\\)") | ("\\[", "\\]"))
}

/// Whether several words stand in text that are no arguments of commands.
fn is_prose(text: &str) -> bool {
    let outside = text.split(['\\', '{']).enumerate().map(|(i, part)| {
        let inside = if i == 0 { 0 } else { part.find(['}', ' ']).unwrap_or(part.len()) };
        &part[inside..]
    });
    let words =
        outside.flat_map(|part| part.split(|c: char| !c.is_alphabetic())).filter(|word| word.chars().nth(2).is_some());
    words.take(2).count() == 2
}
