//! Boxes of a reply: `\boxed{...}`, `\fbox{...}`, `\boxed 5`.

use super::joint::is_joint;
use super::tokens::Tokens;

/// What stands after `\boxed` without braces is no longer than so many characters.
const MAX_WORD: usize = 100;

/// What a box holds.
pub(super) struct Boxed<'a> {
    /// Where its command begins, and where it ends.
    start: usize,
    pub(super) end: usize,
    pub(super) content: &'a str,
}

/// All boxes that are closed and not empty, in the order in which they close.
pub(super) fn all(reply: &str) -> Vec<Boxed<'_>> {
    let mut found = Vec::new();
    // For every open brace, where it opened and, of a box, where its command began.
    let mut open: Vec<(usize, Option<usize>)> = Vec::new();
    let mut command: Option<usize> = None;
    for (at, token) in Tokens::of(reply) {
        match token {
            "\\boxed" | "\\fbox" => {
                command = Some(at);
                continue;
            }
            " " if command.is_some() => continue,
            "{" => open.push((at + 1, command)),
            "}" => {
                if let Some((content, Some(start))) = open.pop()
                    && !reply[content..at].trim().is_empty()
                {
                    found.push(Boxed { start, end: at + 1, content: &reply[content..at] });
                }
            }
            _ => {
                let word = command.and_then(|start| Some((start, unbraced(&reply[at..])?)));
                found.extend(word.map(|(start, content)| Boxed { start, end: at + content.len(), content }));
            }
        }
        command = None;
    }
    found
}

/// What stands after `\boxed` without braces, up to white space or the end of the formula.
fn unbraced(rest: &str) -> Option<&str> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '$' | '{' | '}');
    let word: usize = rest.chars().take(MAX_WORD).take_while(|&c| !ends(c)).map(char::len_utf8).sum();
    let word = rest[..word].trim_end_matches(['.', ',', ')', ']', '\\']);
    (!word.is_empty()).then_some(word)
}

/// The last boxes, of which each is joined to the next: all of them are the answer.
pub(super) fn last<'b, 'a>(reply: &str, boxes: &'b [Boxed<'a>]) -> &'b [Boxed<'a>] {
    let is_joined = |pair: &[Boxed<'_>]| pair[0].end <= pair[1].start && is_joint(&reply[pair[0].end..pair[1].start]);
    let joined = boxes.windows(2).rev().take_while(|pair| is_joined(pair)).count();
    &boxes[boxes.len().saturating_sub(joined + 1)..]
}
