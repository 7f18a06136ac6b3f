//! Where an answer ends and what is said of it begins: `72, in total`, `18 dollars because ...`, `40 (10 + 30)`.

use super::form::Form;
use super::{formulas, units};

/// What a clause begins with that goes on after an answer.
const CLAUSES: [&str; 29] = [
    "after", "as", "assuming", "at", "because", "before", "but", "by", "due", "for", "from", "given", "if", "instead",
    "not", "on", "rather", "since", "so", "than", "that", "thus", "unless", "when", "where", "which", "while", "who",
    "with",
];

/// Words of a clause that says how an answer compares with another value.
const COMPARISONS: [&str; 5] = ["being", "fewer", "less", "more", "than"];

/// A comparison is one of the first words of its clause.
const MAX_BETWEEN: usize = 5;

/// As much of a line that begins with a value as is the value.
pub(super) fn value(line: &str) -> &str {
    let line = without_remark(line);
    if let Some(first) = compared(line) {
        return first;
    }
    if Form::of(line).is_understood() {
        return line;
    }
    let main = without_remark(main(line));
    let first = first_word(main);
    let head = trimmed(&main[..first]);
    let rest = &main[first..];
    let goes_on = rest.contains(|c: char| c.is_ascii_digit()) || units::changes_value(rest);
    if Form::of(main).is_understood() {
        main
    } else if head.contains(|c: char| c.is_ascii_digit() || c == '\\') && Form::of(head).is_understood() && !goes_on {
        head
    } else if let Some(first) = first_part(main) {
        first
    } else if goes_on || main.chars().nth(1).is_some() {
        main
    } else {
        line
    }
}

/// What stands before the first comma, if it is a value and what follows compares it with another.
fn compared(line: &str) -> Option<&str> {
    let (first, rest) = line.split_once(", ")?;
    let compares = rest.split(' ').take(MAX_BETWEEN).any(|word| COMPARISONS.contains(&word));
    (compares && Form::of(first).is_understood()).then_some(first)
}

/// A line up to the first clause that goes on after what it says.
pub(super) fn main(line: &str) -> &str {
    let formula = formulas::first(line).filter(|formula| formula.start == 0).map_or(0, |formula| formula.end);
    let mut before = "";
    let mut at = formula;
    for word in line[formula..].split_inclusive(' ') {
        let bare = word.trim_matches(|c: char| c.is_whitespace() || c == ',' || c == '(');
        let bare = bare.trim_end_matches([':', ';', '.']);
        let is_word = bare.chars().all(char::is_alphabetic) && bare.chars().nth(1).is_some();
        let joins = matches!(bare, "and" | "or");
        let after_comma = before.ends_with([',', ';', ':', '-', '–', '—']);
        let after_joint = matches!(before, "and" | "or") && bare.starts_with(char::is_lowercase);
        if at > 0 && is_word && !joins && (after_comma || after_joint || CLAUSES.contains(&bare)) {
            let end = if after_joint { line[..at].trim_end().len() - before.len() } else { at };
            return trimmed(&line[..end]);
        }
        before = word.trim_end();
        at += word.len();
    }
    trimmed(line)
}

/// What stands before the first comma, if it is a value and what follows is none.
fn first_part(line: &str) -> Option<&str> {
    let (first, rest) = line.split_once(", ")?;
    let next = rest.split_once(", ").map_or(rest, |(next, _)| next);
    (Form::of(first).is_understood() && !Form::of(next).is_understood()).then_some(first)
}

/// What begins to say what an answer is not.
const DENIALS: [&str; 4] = [", not ", " instead of ", " rather than ", " (not "];

/// A text without what its last clause says a value before is not: `It costs $1,250 rather than $1,300.`
pub(super) fn without_last_denial(text: &str) -> &str {
    let end = DENIALS.iter().filter_map(|denial| Some(text.rfind(denial)? + 1)).max().unwrap_or(text.len());
    let (head, denial) = text.split_at(end);
    let goes_on = denial.trim_end().contains([';', '\n', '?'])
        || denial.contains(". ")
        || denial[1.min(denial.len())..].contains(", ");
    let sentence = head.rsplit(['\n', '?']).next().and_then(|line| line.rsplit(". ").next()).unwrap_or(head);
    if !goes_on && formulas::last_value(sentence).is_some() { head.trim_end_matches([' ', ',']) } else { text }
}

/// A sentence without what it says the answer is not.
pub(super) fn affirmed(line: &str) -> &str {
    let end = DENIALS.iter().filter_map(|denial| line.find(denial)).min();
    end.map(|end| &line[..end]).filter(|line| formulas::last_value(line).is_some()).unwrap_or(line)
}

/// A text without what its last sentence says in words, in parentheses, of a value before: `18 apples (6 bags of 3)`.
pub(super) fn without_last_remark(text: &str) -> &str {
    let end = text.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '.' | '!' | '*'));
    let Some((head, remark)) = end.strip_suffix(')').and_then(|end| end.rsplit_once(" (")) else { return text };
    let is_word = |word: &str| word.chars().nth(1).is_some() && !matches!(word, "and" | "or");
    let has_words = remark.split(|c: char| !c.is_alphabetic()).any(is_word)
        && !remark.contains(['\\', ')'])
        && remark.matches('$').count() < 2;
    let sentence = head.rsplit(['\n', '?']).next().and_then(|line| line.rsplit(". ").next()).unwrap_or(head);
    if has_words && formulas::last_value(sentence).is_some() { head } else { text }
}

/// A value without what stands in parentheses after it, unless that is a factor: `40 (10 + 30)`, but `2 (x + 1)`.
fn without_remark(line: &str) -> &str {
    let Some(at) = line.find(" (") else { return line };
    let (value, remark) = (line[..at].trim_end_matches('*'), &line[at + 2..]);
    let has_variable = remark
        .split(|c: char| !c.is_alphanumeric())
        .any(|word| word.len() == 1 && word.starts_with(char::is_alphabetic));
    let has_words = remark.split(|c: char| !c.is_alphabetic()).any(|word| word.chars().nth(2).is_some());
    let is_remark = has_words
        || remark.starts_with(['i', 'e', '=']) && remark[1..].starts_with(['.', ' '])
        || (!has_variable && !remark.contains(',') && Form::of(value).is_number());
    if is_remark && Form::of(value).is_understood() { value } else { line }
}

/// Where the first word of several letters begins that is no command of LaTeX.
fn first_word(text: &str) -> usize {
    let (mut start, mut length, mut in_command) = (0, 0, false);
    for (at, c) in text.char_indices() {
        if c.is_alphabetic() && !in_command {
            start = if length == 0 { at } else { start };
            length += 1;
            if length == 2 {
                return start;
            }
        } else {
            length = 0;
            in_command = c == '\\' || (in_command && c.is_alphabetic());
        }
    }
    text.len()
}

fn trimmed(text: &str) -> &str {
    text.trim_end_matches([' ', ',', ';', ':', '-', '–', '—', '*', '(', '.'])
}
