//! Finding the final answer in a reply.

use super::choice;
use super::tokens::Tokens;

/// What announces an answer, in lower case.
const MARKS: [&str; 4] = ["answer is", "answer:", "answer**", "####"];

/// The final answer in the text that follows the thinking, as it is written there.
///
/// It is what the last `\boxed{...}` or `\fbox{...}` holds (`\boxed 5` too); without any box, the rest of the sentence
/// after the last "answer is", "Answer:", "**Final Answer**" or "####"; without these, a reply of one word itself, and
/// of any other reply the last number. Where a sentence goes on in words, the answer is its last formula or number. A box
/// that is empty or never closed is no answer, nor is what follows it.
pub fn extract(reply: &str) -> Option<String> {
    let answer = last_box(reply).or_else(|| unboxed(reply))?;
    Some(answer.trim().to_owned())
}

/// The answer of a reply without a complete box. What may stand in an incomplete one is no answer.
fn unboxed(reply: &str) -> Option<&str> {
    let end = ["\\boxed", "\\fbox"].iter().filter_map(|command| reply.find(command)).min();
    let reply = reply[..end.unwrap_or(reply.len())].trim();
    match after_mark(reply) {
        Some(rest) => sentence(rest),
        None if is_one_word(reply) => Some(reply),
        None => last_number(reply),
    }
}

fn is_one_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

/// What the box that closes last holds.
fn last_box(reply: &str) -> Option<&str> {
    let mut found = None;
    // For every open brace, where it opened and whether it is of a box.
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut after_command = false;
    for (at, token) in Tokens::of(reply) {
        match token {
            "\\boxed" | "\\fbox" => {
                after_command = true;
                continue;
            }
            " " if after_command => continue,
            "{" => open.push((at + 1, after_command)),
            "}" => {
                if let Some((start, true)) = open.pop() {
                    found = Some(&reply[start..at]).filter(|content| !content.trim().is_empty()).or(found);
                }
            }
            _ if after_command => found = unbraced(&reply[at..]).or(found),
            _ => {}
        }
        after_command = false;
    }
    found
}

/// What stands after `\boxed` without braces, up to white space or the end of the formula.
fn unbraced(rest: &str) -> Option<&str> {
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '$' | '{' | '}')).unwrap_or(rest.len());
    let word = rest[..end].trim_end_matches(['.', ',', ')', ']', '\\']);
    (!word.is_empty()).then_some(word)
}

/// What follows the last mark.
fn after_mark(reply: &str) -> Option<&str> {
    let lower = reply.to_ascii_lowercase();
    let end = MARKS.iter().filter_map(|mark| Some(lower.rfind(mark)? + mark.len())).max()?;
    Some(&reply[end..])
}

/// The answer that a sentence gives: itself, or the last formula or number in it if it is in words.
fn sentence(rest: &str) -> Option<&str> {
    let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ':' | '*'));
    let line = rest.lines().next()?;
    let line = &line[..line.find(". ").unwrap_or(line.len())];
    let line = line.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '.' | '*'));
    let first = line.find(|c: char| !c.is_alphabetic()).unwrap_or(line.len());
    let in_words = line[..first].chars().nth(1).is_some() && line[first..].starts_with(' ');
    let inside = || last_formula(line).or_else(|| last_number(line));
    Some(if in_words && choice::letter(line).is_none() { inside().unwrap_or(line) } else { line })
        .filter(|l| !l.is_empty())
}

/// The last formula between dollar signs.
fn last_formula(line: &str) -> Option<&str> {
    let (before, after) = line.rsplit_once('$')?;
    let (_, formula) = before.rsplit_once('$')?;
    // A sign before a digit is of a sum of money, not the end of a formula.
    (!formula.trim().is_empty() && !after.starts_with(|c: char| c.is_ascii_digit())).then_some(formula)
}

/// The last number: digits with thousands separators, decimals, a denominator, a sign before and `%` after it. Digits
/// after a letter, `^` or `_` belong to a name or a formula.
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
    while bytes.get(end) == Some(&b',') && digits(end + 1) == 3 {
        end += 4;
    }
    for sign in [b'.', b'/'] {
        if bytes.get(end) == Some(&sign) && digits(end + 1) > 0 {
            end += 1 + digits(end + 1);
        }
    }
    let percent = ["%", "\\%"].into_iter().find(|sign| text[end..].starts_with(sign));
    end + percent.map_or(0, str::len)
}
