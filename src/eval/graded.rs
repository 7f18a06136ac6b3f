//! Replies that were made anywhere: a file of them, graded line by line.

use serde_json::{Map, Value};

use crate::trace::{Family, Segment, Tracker};

use super::fault::{Fault, ProblemError};
use super::fields::Fields;
use super::grade::{extract, is_correct};
use super::problem::object;

/// The fields that grading adds.
const ADDED: [&str; 2] = ["extracted", "correct"];

/// What ends a model's turn, where the text of such tokens was kept.
const ENDS: [&str; 8] = [
    "<|return|>",
    "<|end|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// A graded file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graded {
    /// The lines as they were, each with the answer `extracted` from its reply (a string, or null) and whether it is
    /// `correct`.
    pub lines: String,
    /// How many are right.
    pub correct: usize,
    /// Of how many.
    pub total: usize,
}

/// Grades the replies of a file of one JSON object per line. `name` is what errors call it.
///
/// A line has a `reply`; its right answer is found as [`problem::read`](super::problem::read) finds it, except that options
/// keep their order, so the answer is the letter that the reply should name, or the option's index from 0. Thinking in a
/// reply is no part of it, and where thinking is never closed there is no answer.
///
/// # Errors
/// At the first line that is malformed or lacks a field, and when there is no line.
pub fn grade(name: &str, text: &str) -> Result<Graded, ProblemError> {
    let mut graded = Graded { lines: String::new(), correct: 0, total: 0 };
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (line, correct) = graded_line(line).map_err(|fault| fault.at(name, &format!("line {}", at + 1)))?;
        graded.lines += &line;
        graded.lines.push('\n');
        graded.correct += usize::from(correct);
        graded.total += 1;
    }
    if graded.total == 0 { Err(Fault::NoReplies.of(name)) } else { Ok(graded) }
}

/// A line with its verdict, and whether it is right.
fn graded_line(line: &str) -> Result<(String, bool), Fault> {
    let object = object(line)?;
    let fields = Fields::new(object.clone());
    let reference = fields.reference()?;
    let extracted = after_thinking(before_end(fields.reply()?)).and_then(|reply| extract(reply, reference.kind()));
    let correct = extracted.as_deref().is_some_and(|found| is_correct(found, &reference));
    Ok((with_verdict(line, object, extracted.into(), correct.into()), correct))
}

/// The line with two more fields. Its others stay as they are written, numbers of any length included.
fn with_verdict(line: &str, mut fields: Map<String, Value>, extracted: Value, correct: Value) -> String {
    if ADDED.iter().any(|field| fields.contains_key(*field)) {
        fields.extend(ADDED.map(str::to_owned).into_iter().zip([extracted, correct]));
        return Value::Object(fields).to_string();
    }
    let open = line.strip_suffix('}').unwrap_or(line).trim_end();
    let [first, second] = ADDED;
    format!("{open}, \"{first}\": {extracted}, \"{second}\": {correct}}}")
}

/// A reply without what ends its turn.
fn before_end(reply: &str) -> &str {
    let reply = reply.trim_end();
    ENDS.iter().find_map(|end| reply.strip_suffix(end)).unwrap_or(reply)
}

/// What follows the thinking in a reply, by the markers of the families that have some. Of a reply that only closes its
/// thinking, the prompt has opened it. `None` where thinking is never closed.
fn after_thinking(reply: &str) -> Option<&str> {
    let families = [Family::Harmony, Family::ThinkTags].map(Family::markers);
    let markers = families.into_iter().find(|markers| {
        let opens = markers.think_start.as_ref().is_some_and(|start| reply.contains(start));
        opens || reply.contains(&markers.think_end)
    });
    let Some(markers) = markers else { return Some(reply) };
    let start = markers.think_start.clone().unwrap_or_default();
    let opens = reply.find(&start).is_some_and(|at| reply.find(&markers.think_end).is_none_or(|end| at < end));
    let mut tracker = Tracker::new(markers);
    if !opens {
        tracker.push(start.as_bytes(), false);
    }
    for (at, c) in reply.char_indices() {
        tracker.push(c.encode_utf8(&mut [0; 4]).as_bytes(), true);
        if tracker.next_segment() == Segment::Summary {
            return Some(&reply[at + c.len_utf8()..]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_what_they_hold() {
        let graded = grade(
            "f",
            concat!(
                "\u{feff}{\"id\": 12345678901234567890123, \"reply\": \"\\\\boxed{5}\", \"answer\": 5.0 }\r\n\r\n",
                "{\"reply\":\"B\",\"choices\":[\"x\",\"y\"],\"answer\":\"A\",\"correct\":true,\"z\":1}\n",
                "{\"reply\": \"\", \"answer\": \"7\"}",
            ),
        );
        let lines = concat!(
            "{\"id\": 12345678901234567890123, \"reply\": \"\\\\boxed{5}\", \"answer\": 5.0, \"extracted\": \"5\", \"correct\": true}\n",
            "{\"reply\":\"B\",\"choices\":[\"x\",\"y\"],\"answer\":\"A\",\"correct\":false,\"z\":1,\"extracted\":\"B\"}\n",
            "{\"reply\": \"\", \"answer\": \"7\", \"extracted\": null, \"correct\": false}\n",
        );
        assert_eq!(graded.unwrap(), Graded { lines: lines.to_owned(), correct: 1, total: 3 });
    }

    #[test]
    fn thinking_is_no_part_of_a_reply() {
        for (reply, expected) in [
            ("5", Some("5")),
            ("<think>4</think>5", Some("5")),
            ("4</think>\n5", Some("\n5")),
            ("<think>4", None),
            ("<think></think>5 <think>", Some("5 <think>")),
            ("<|channel|>analysis<|message|>4<|end|><|start|>assistant<|channel|>final<|message|>5", Some("5")),
            ("<|channel|>final<|message|>5", Some("5")),
            ("<|channel|>analysis<|message|>4", None),
        ] {
            assert_eq!(after_thinking(reply), expected, "{reply}");
        }
    }

    #[test]
    fn the_end_of_a_turn_is_no_part_of_a_reply() {
        for end in ENDS {
            let line = format!("{{\"reply\": \"The answer is 5.{end}\\n\", \"answer\": 5}}");
            assert_eq!(grade("f", &line).unwrap().correct, 1, "{end}");
        }
    }

    #[test]
    fn options_by_letter_and_by_index() {
        for (answer, correct) in [("\"B\"", 1), ("\"(b)\"", 1), ("1", 1), ("\"0\"", 0), ("\"A\"", 0)] {
            let line = format!("{{\"reply\": \"Answer: B\", \"choices\": [\"x\", \"y\"], \"answer\": {answer}}}");
            assert_eq!(grade("f", &line).unwrap().correct, correct, "{answer}");
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        for (text, parts) in [
            ("", &["f: ", "replies", "found none"][..]),
            ("\n \r\n", &["found none"]),
            ("{\"reply\": \"5\", \"answer\": 5}\n{", &["f, line 2: ", "JSON object"]),
            ("[]", &["f, line 1: ", "an array"]),
            ("{\"answer\": 5}", &["`reply`", "found `answer`"]),
            ("{\"reply\": 5, \"answer\": 5}", &["`reply`", "a number"]),
            ("{\"reply\": null, \"answer\": 5}", &["`reply`", "null"]),
            ("{\"reply\": \"5\"}", &["`answer`", "found `reply`"]),
            ("{\"reply\": \"5\", \"answer\": \"\"}", &["`answer`", "empty"]),
            ("{\"reply\": \"A\", \"answer\": \"x\", \"choices\": [\"x\", \"y\"]}", &["one of 2 options", "\"x\""]),
            ("{\"reply\": \"A\", \"answer\": \"A\", \"choices\": [\"x\"]}", &["`choices`", "2 to 26"]),
            ("{\"reply\": \"A\", \"answer\": \"A\", \"choices\": \"x\"}", &["`choices`", "a string"]),
        ] {
            let message = grade("f", text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}
