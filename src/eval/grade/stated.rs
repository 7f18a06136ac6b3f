//! The letter that a reply to a multiple-choice question states.

use super::boxes::Boxed;
use super::choice;

/// Words before a letter that state it.
const CUES: [&str; 9] = ["answer", "answers", "choose", "chose", "choosing", "conclude", "pick", "select", "####"];

/// Words that make `the correct option` and the like such a word.
const OPTIONS: [&str; 5] = ["option", "choice", "answer", "one", "statement"];

/// How many words may stand between such a word and the letter.
const MAX_BETWEEN: usize = 8;

const VERBS: [&str; 7] = ["is", "are", "was", "does", "must", "seems", "looks"];

/// What is said after a letter that is the answer.
const RIGHT: [&str; 7] = ["right", "correct", "best", "true", "answer", "choice", "fits"];

/// What is said after a letter that is not.
const WRONG: [&str; 13] = [
    "wrong",
    "incorrect",
    "false",
    "not",
    "isn't",
    "cannot",
    "can't",
    "doesn't",
    "fail",
    "fails",
    "excluded",
    "eliminated",
    "impossible",
];

/// What points at the letter after the verb that follows: `it is C`, `it must be C`.
const POINTERS: [&str; 4] = ["it", "that", "this", "must"];

/// What makes that depend on something.
const CONDITIONS: [&str; 4] = ["if", "only", "unless", "when"];

/// Words before a letter that take it back.
const DENIALS: [&str; 11] =
    ["not", "than", "of", "neither", "nor", "unlike", "isn't", "eliminate", "exclude", "out", "without"];

/// A letter in a reply, and what is known of it.
struct Candidate {
    /// Where it stands, and which word it is.
    start: usize,
    word: usize,
    stated: bool,
    denied: bool,
    in_parentheses: bool,
    /// Whether it goes on a list of letters.
    joined: bool,
}

/// A word of a reply.
struct Word<'a> {
    start: usize,
    /// With its punctuation.
    raw: &'a str,
    /// Without it.
    bare: &'a str,
    lower: String,
    /// Whether a line break follows.
    ends_line: bool,
}

/// The letter, or where a statement names several letters or none, what it says.
pub(super) fn letter(reply: &str, boxes: &[Boxed<'_>]) -> Option<String> {
    let boxed = boxes.iter().rev().find(|boxed| choice::letter(boxed.content).is_some());
    if let Some(boxed) = boxed {
        return Some(boxed.content.trim().to_owned());
    }
    let candidates = candidates(reply);
    let last = |fits: fn(&Candidate) -> bool| {
        candidates.iter().rev().find(|c| !c.denied && fits(c)).map(|c| &reply[c.start..])
    };
    let lines = || reply.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_answer = |line: &&str| choice::letter(line).is_some() && !line.starts_with("A ") && !line.starts_with("I ");
    let found = last(|c| c.stated)
        .or_else(|| lines().next_back().filter(|line| line.len() < 8).filter(is_answer))
        .or_else(|| lines().next().filter(is_answer).filter(|_| candidates.first().is_none_or(|first| !first.denied)))
        .or_else(|| last(|c| c.in_parentheses && !c.joined))
        .or_else(|| last(|c| !c.joined))?;
    // Emphasis of other kinds than `**C**`.
    Some(
        choice::letter(&found.replace("__", "**").replace("</", "**"))
            .map_or_else(|| sentence(found).to_owned(), String::from),
    )
}

fn sentence(text: &str) -> &str {
    let line = text.lines().next().unwrap_or(text);
    line.split(". ").next().unwrap_or(line).trim_end_matches(['.', ' ', '*'])
}

fn words(reply: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    for line in reply.split_inclusive('\n') {
        for raw in line.split(|c: char| c.is_whitespace() || matches!(c, '<' | '>')).filter(|raw| !raw.is_empty()) {
            let bare = raw.trim_matches(|c: char| !c.is_alphanumeric() && c != '#');
            let bare = ["text{", "textbf{", "mathbf{", "mathrm{"]
                .iter()
                .find_map(|command| bare.strip_prefix(command))
                .unwrap_or(bare);
            let bare = bare.trim_start_matches('(');
            let start = bare.as_ptr() as usize - reply.as_ptr() as usize;
            words.push(Word { start, raw, bare, lower: bare.to_lowercase(), ends_line: false });
        }
        if let Some(last) = words.last_mut().filter(|_| line.ends_with('\n')) {
            last.ends_line = true;
        }
    }
    words
}

fn candidates(reply: &str) -> Vec<Candidate> {
    let words = words(reply);
    let word = |at: usize| words.get(at).map_or("", |word| &word.lower);
    let mut found = Vec::new();
    // How many words ago a statement began.
    let mut cue: Option<usize> = None;
    for (at, this) in words.iter().enumerate() {
        let before = at.checked_sub(1).map_or("", word);
        cue = cue.map(|distance| distance + 1).filter(|&distance| distance <= MAX_BETWEEN);
        let is_announced = cue == Some(1) || (cue == Some(2) && VERBS.contains(&before));
        if is_letter(this, words.get(at + 1), is_announced) {
            let said = is_said(&words[at + 1..]);
            let asked = this.raw.ends_with('?');
            let denied = DENIALS.contains(&before) || said == Some(false) || asked;
            found.push(Candidate {
                start: this.start,
                word: at,
                stated: cue.is_some() || said == Some(true) || is_pointed_at(&words[..at]),
                denied,
                in_parentheses: this.raw.contains('('),
                joined: is_joined(&words[..at]),
            });
            cue = cue.filter(|_| denied && !asked);
        }
        let is_cue = CUES.contains(&word(at))
            || (matches!(word(at), "correct" | "right" | "best")
                && OPTIONS.contains(&word(at + 1))
                && !is_predicate(&words[..at]))
            || (word(at) == "with" && matches!(before, "go" | "going" | "goes"));
        if is_cue {
            cue = Some(0);
        } else if ends_sentence(this) || (this.ends_line && cue.is_some_and(|distance| distance > 1)) {
            cue = None;
        }
    }
    // Of `A, C and D fail`, what is said of the last is said of all.
    for at in (1..found.len()).rev() {
        let follows = found[at].joined && found[at].word - found[at - 1].word <= 2;
        found[at - 1].denied |= follows && found[at].denied;
    }
    found
}

fn ends_sentence(word: &Word<'_>) -> bool {
    word.raw.trim_end_matches(['*', ')', '"']).ends_with(['.', '!', '?'])
}

/// Whether a word is the letter of an option: a capital, or any in parentheses or right after what announces it. Without
/// punctuation, `A` before a word is an article, and `I` is a pronoun.
fn is_letter(word: &Word<'_>, next: Option<&Word<'_>>, is_announced: bool) -> bool {
    let mut chars = word.bare.chars();
    let (Some(letter), None) = (chars.next().filter(char::is_ascii_alphabetic), chars.next()) else { return false };
    let is_plain = word.raw.len() == 1;
    let before_word = next.is_some_and(|next| next.raw.starts_with(char::is_lowercase));
    match letter {
        'I' => !is_plain,
        'A' => {
            !is_plain
                || is_announced
                || !before_word
                || next.is_some_and(|next| next.lower == "it" || VERBS.contains(&&*next.lower))
        }
        'B'..='Z' => true,
        _ => (word.raw.contains('(') || word.raw.ends_with(')')) || (is_announced && !before_word),
    }
}

/// Whether the words before a letter point at it.
fn is_pointed_at(before: &[Word<'_>]) -> bool {
    match before {
        [.., pointer, verb] if VERBS.contains(&&*verb.lower) || verb.lower == "be" => {
            POINTERS.contains(&&*pointer.lower)
        }
        [.., pointer] => matches!(&*pointer.lower, "it's" | "it’s" | "leaves"),
        [] => false,
    }
}

/// Whether the words before `best option` say it of a letter: `B is the best option`.
fn is_predicate(before: &[Word<'_>]) -> bool {
    let before = match before {
        [before @ .., article] if matches!(&*article.lower, "the" | "a" | "our" | "my") => before,
        before => before,
    };
    matches!(before, [.., subject, verb] if VERBS.contains(&&*verb.lower) && is_letter(subject, Some(verb), false))
}

/// Whether the words before a letter end in another one and a comma, "and" or "or".
fn is_joined(before: &[Word<'_>]) -> bool {
    let is_letter = |word: &Word<'_>| word.bare.len() == 1 && word.bare.starts_with(|c: char| c.is_ascii_uppercase());
    match before {
        [.., letter, joint] if matches!(&*joint.lower, "and" | "or") => is_letter(letter),
        [.., letter] => is_letter(letter) && letter.raw.ends_with(','),
        [] => false,
    }
}

/// Whether the words after a letter say that it is right, or wrong.
fn is_said(after: &[Word<'_>]) -> Option<bool> {
    let first = after.first()?;
    // `A it is.`
    if first.lower == "it" && after.get(1).is_some_and(|next| next.lower == "is" && ends_sentence(next)) {
        return Some(true);
    }
    if !VERBS.contains(&&*first.lower) {
        let is_verdict = WRONG.contains(&&*first.lower) && first.lower != "not";
        return is_verdict.then_some(false);
    }
    for (at, word) in after.iter().enumerate().take(5).skip(1) {
        if WRONG.contains(&&*word.lower) {
            return Some(false);
        }
        if RIGHT.contains(&&*word.lower) {
            let next = after.get(at + 1).map_or("", |word| &*word.lower);
            return (!CONDITIONS.contains(&next)).then_some(true);
        }
        if ends_sentence(word) || word.raw.ends_with(',') {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::boxes;
    use super::*;

    #[test]
    fn letters_are_found_where_they_are_stated() {
        for (reply, expected) in [
            (r"So \boxed{\Delta E}. **Answer: D**", "D"),
            ("### Final Answer\n\nD", "D"),
            ("I choose D.", "D"),
            ("Option D is right, since A needs 3", "D"),
            (r"\boxed{C}\n\nAnswer: D is wrong.", "C"),
            ("D", "D"),
            ("(d)", "D"),
            ("A. Because B is not valid", "A"),
            ("Because B is valid", "B"),
            ("The answer is not B but D.", "D"),
            ("The answer is D, not A.", "D"),
            ("I would go with (C), as A and B are too small.", "C"),
            ("The correct option is B because of C.", "B"),
            ("A is wrong. B is wrong. So it must be C.", "C"),
            ("A triangle has three sides, so (B).", "B"),
            ("Answer: B. Had it been 7, the answer would differ.", "B"),
            ("Final answer: **(B)**", "B"),
            ("The final answer is $\\text{(B)}$.", "B"),
            ("answer: b", "B"),
            ("Of these, C is the best.", "C"),
            ("#### C", "C"),
            ("Answer: D\n\nB is right only if x is.", "D"),
            ("(A) is wrong, (B) is wrong, so (C).", "C"),
            ("The answer is B and C.", "B and C"),
            ("Not A. Not B. So C? Wait, no: A it is.", "A"),
            ("I think the answer is B. Actually, wait: it is C.", "C"),
            ("So B is the best option; C comes close.", "B"),
            ("Hence option B. Options A, C, and D fail.", "B"),
            ("A and C are too small. This leaves B.", "B"),
        ] {
            assert_eq!(letter(reply, &boxes::all(reply)).as_deref(), Some(expected), "{reply}");
        }
        for reply in ["", "No valid answer here", "I do not know.", "A pity.", r"\boxed{12}"] {
            assert_eq!(letter(reply, &boxes::all(reply)), None, "{reply}");
        }
    }
}
