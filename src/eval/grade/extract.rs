//! Finding the final answer in a reply.

use super::boxes::{self, Boxed};
use super::form::Form;
use super::{clause, formulas, stated, text};

/// What announces an answer, in lower case.
const MARKS: [&str; 17] = [
    "answer is",
    "answers are",
    "answer should be",
    "answer must be",
    "answer would be",
    "answer will be",
    "answer equals",
    "answer comes to",
    "answer:",
    "answers:",
    "answer：",
    "answer**",
    "answer =",
    "answer\n",
    "answer\r",
    "answer #",
    "####",
];

/// Marks of an answer that stands even after a box.
const FINAL: [&str; 4] = ["final answer is", "final answer:", "final answer**", "final answer\n"];

/// So many marks are looked at, the last first, so that time stays linear.
const MAX_MARKS: usize = 8;

/// What is said about an answer rather than the answer.
const REMARKS: [&str; 24] = [
    "above",
    "as",
    "below",
    "clear",
    "close",
    "consistent",
    "correct",
    "given",
    "helpful",
    "here",
    "in",
    "incorrect",
    "indeed",
    "obvious",
    "reasonable",
    "right",
    "shown",
    "this",
    "true",
    "unique",
    "valid",
    "verified",
    "what",
    "wrong",
];

/// Answers in words that begin with a small letter.
const VERDICTS: [&str; 8] = ["yes", "no", "true", "false", "even", "odd", "always", "never"];

/// Words with which a sentence begins that is no name.
const OPENINGS: [&str; 24] = [
    "a",
    "about",
    "all",
    "an",
    "each",
    "every",
    "exactly",
    "hence",
    "he",
    "her",
    "his",
    "in",
    "it",
    "only",
    "she",
    "so",
    "that",
    "the",
    "there",
    "therefore",
    "they",
    "this",
    "thus",
    "we",
];

/// A name has no more words.
const MAX_NAME: usize = 3;

/// What kind of answer a problem has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number, a formula or words.
    Free,
    /// The letter of an option.
    Choice,
}

/// The final answer in the text that follows the thinking, as it is written there.
///
/// A free answer is what the last `\boxed{...}` or `\fbox{...}` holds (`\boxed 5` too), with those that "and", "or" or a
/// comma join to it, unless a number or formula follows the words "final answer" after it. Without any box, it is the
/// sentence after the last "answer is", "Answer:", "**Final Answer**" or "####", without the clauses that follow a number or
/// formula; without these, the reply itself if it is nothing but an answer, and of any other reply the last number or
/// formula. Where a sentence is in words, the answer is the last formula or number in it. A box that is empty or never
/// closed is no answer, nor is what follows it.
///
/// The letter of a choice is the one in the last box that holds a letter; else the last one that is stated: after "answer",
/// "choose" and the like, or before "is right"; else the one that the reply consists of, begins or ends with, or the last
/// in parentheses or standing alone. What is said to be wrong is not stated.
pub fn extract(reply: &str, kind: Kind) -> Option<String> {
    let boxes = boxes::all(reply);
    match kind {
        Kind::Choice => stated::letter(reply, &boxes),
        Kind::Free => {
            let answer = after_boxes(reply, &boxes).or_else(|| boxed(reply, &boxes));
            Some(answer.or_else(|| unboxed(reply).map(str::to_owned))?.trim().to_owned())
        }
    }
}

/// The last boxes that belong together.
fn boxed(reply: &str, boxes: &[Boxed<'_>]) -> Option<String> {
    let mut contents: Vec<&str> = boxes::last(reply, boxes).iter().map(|boxed| boxed.content).collect();
    contents.dedup_by(|a, b| a.trim() == b.trim());
    (!contents.is_empty()).then(|| contents.join(", "))
}

/// A final answer that is stated after the last box.
fn after_boxes(reply: &str, boxes: &[Boxed<'_>]) -> Option<String> {
    let rest = complete(&reply[boxes.last()?.end..]);
    let lower = rest.to_ascii_lowercase();
    let end = FINAL.iter().filter_map(|mark| Some(lower.rfind(mark)? + mark.len())).max()?;
    let begins = without_decoration(&rest[end..])
        .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '\\' | '(' | '[' | '-'));
    sentence(&rest[end..]).filter(|answer| begins && Form::of(answer).is_understood()).map(str::to_owned)
}

/// A reply up to a box that is never closed: what may stand there is no answer.
fn complete(reply: &str) -> &str {
    let end = ["\\boxed", "\\fbox"].iter().filter_map(|command| reply.find(command)).min();
    &reply[..end.unwrap_or(reply.len())]
}

/// The answer of a reply without a complete box.
fn unboxed(reply: &str) -> Option<&str> {
    let reply = complete(reply).trim();
    if let Some(rest) = after_mark(reply) {
        return sentence(rest);
    }
    let is_word = !reply.is_empty() && !reply.contains(char::is_whitespace);
    if is_word {
        Some(reply)
    } else if Form::of(reply).is_understood() {
        Some(clause::value(reply))
    } else {
        let reply = clause::without_last_denial(clause::without_last_remark(reply));
        formulas::last_value(reply).or_else(|| verdict(reply))
    }
}

/// "Yes" and the like, with which a reply begins.
fn verdict(reply: &str) -> Option<&str> {
    let end = reply.find(|c: char| !c.is_alphabetic())?;
    let (word, rest) = reply.split_at(end);
    (VERDICTS.contains(&&*word.to_lowercase()) && rest.starts_with([',', '.', '!', ':'])).then_some(word)
}

/// What follows the last mark that announces an answer, rather than something that is said about one.
fn after_mark(reply: &str) -> Option<&str> {
    let lower = reply.to_ascii_lowercase();
    let mut end = lower.len();
    let mut ends = std::iter::from_fn(|| {
        let (at, length) = MARKS.iter().filter_map(|mark| Some((lower[..end].rfind(mark)?, mark.len()))).max()?;
        end = at;
        Some(at + length)
    })
    .take(MAX_MARKS)
    .filter(|end| !lower[*end..].starts_with("n't") && !lower[*end..].starts_with("n’t"))
    .peekable();
    let last = *ends.peek()?;
    Some(&reply[ends.find(|end| !is_remark(&lower[*end..])).unwrap_or(last)..])
}

/// Whether what follows a mark only says how the answer is.
fn is_remark(rest: &str) -> bool {
    let line = without_decoration(rest).lines().next().unwrap_or("");
    let word = line.find(|c: char| !c.is_alphabetic()).map_or(line, |end| &line[..end]);
    let sentence = line.split(". ").next().unwrap_or(line);
    REMARKS.contains(&word) && !sentence.contains(|c: char| c.is_ascii_digit() || c == '$' || c == '\\')
}

fn without_decoration(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ':' | '：' | ',' | '*' | '"' | '#'))
}

/// The answer that a sentence gives: itself, without the clauses that follow a value, or the last formula or number in it
/// if it is in words.
fn sentence(rest: &str) -> Option<&str> {
    if let Some(bold) = bold(rest) {
        return Some(bold);
    }
    let line = first_sentence(without_decoration(rest));
    // In a formula, `!` would be a factorial.
    let line = line.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '.' | '*' | '"' | '!'));
    let first = line.find(|c: char| !c.is_alphabetic()).unwrap_or(line.len());
    let in_words =
        line[..first].chars().nth(1).is_some() && (line[first..].is_empty() || line[first..].starts_with([' ', ',']));
    if !in_words || text::without_minus(line).is_some() {
        return Some(clause::value(line)).filter(|line| !line.is_empty());
    }
    // A name or a verdict is an answer, whatever is said of it.
    let main = clause::main(line);
    let is_name = line.starts_with(char::is_uppercase)
        && !OPENINGS.contains(&&*line[..first].to_lowercase())
        && main.split(' ').nth(MAX_NAME).is_none();
    let is_answer = is_name || VERDICTS.contains(&&*line[..first].to_lowercase());
    if is_answer && main.len() < line.len() && formulas::last_value(main).is_none() {
        return Some(main);
    }
    Some(formulas::last_value(clause::affirmed(line)).unwrap_or(main))
}

/// What is in bold at the beginning, if it is a value: `**42** apples`.
fn bold(rest: &str) -> Option<&str> {
    let bold = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ':').strip_prefix("**")?;
    let (bold, _) = bold.split_once("**")?;
    (!bold.starts_with(char::is_whitespace) && Form::of(bold).is_understood()).then_some(bold)
}

/// The first sentence on the first line; a formula at its beginning may hold line breaks and full stops.
fn first_sentence(text: &str) -> &str {
    let start = formulas::first(text).filter(|formula| formula.start == 0).map_or(0, |formula| formula.end);
    let line = text[start..].lines().next().unwrap_or("");
    // The full stops of `i.e.` end no sentence.
    let is_stop =
        |(at, stop): &(usize, &str)| *stop != ". " || ![".e", ".g"].iter().any(|end| line[..*at].ends_with(end));
    let stops = [". ", "? ", "! ", "。"].iter().filter_map(|stop| line.match_indices(stop).find(is_stop));
    let stop = stops.map(|(at, _)| at).min();
    &text[..start + stop.unwrap_or(line.len())]
}
