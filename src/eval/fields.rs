//! The fields of one problem, under the names that sets in use give them.

use serde_json::{Map, Value};

use super::fault::{Fault, kind};
use super::grade::{Answer, Kind, extract};
use super::options::lettered;

/// A question and what answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What the file calls it, else the number of its line. No two of a file are equal.
    pub id: String,
    /// What to ask the model; for multiple choice with the options and a word on how to answer.
    pub question: String,
    /// The right answer.
    pub reference: Answer,
}

const IDS: &[&str] = &["id", "unique_id", "ID", "task_id", "Record ID"];
const QUESTIONS: &[&str] = &["problem", "question", "prompt", "Question", "Problem"];
const ANSWERS: &[&str] = &["answer", "Answer", "target", "solution", "Solution"];
const REPLY: &[&str] = &["reply"];
const OPTIONS: &[&str] = &["choices", "options"];
/// Options in fields of their own, the right one first.
const OPTION_FIELDS: &[&str] = &["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"];
/// Options in fields of their own, the right one named by the answer.
const LETTERS: &[&str] = &["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

/// What a file says of one problem.
pub(super) struct Fields(Map<String, Value>);

/// Options with the letters that the file gives them.
struct Options {
    letters: Vec<String>,
    texts: Vec<String>,
}

impl Fields {
    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// The problem; `number` is its id if no field is, `seed` determines the order of options.
    pub(super) fn problem(&self, number: usize, seed: u64) -> Result<Problem, Fault> {
        let id = if self.first(IDS).is_some() { self.text(IDS)? } else { number.to_string() };
        let question = self.text(QUESTIONS)?;
        let (texts, right) = if self.0.contains_key(OPTION_FIELDS[0]) {
            let texts: Result<Vec<_>, _> =
                OPTION_FIELDS.iter().map(|field| self.text(std::slice::from_ref(field))).collect();
            (texts?, 0)
        } else if let Some(options) = self.options()? {
            let right = self.right_option(&options)?;
            (options.texts, right)
        } else {
            return Ok(Problem { id, question, reference: Answer::Free(self.answer()?) });
        };
        let (question, letter) = lettered(&question, &texts, right, &id, seed);
        Ok(Problem { id, question, reference: Answer::Choice(letter) })
    }

    /// What was replied; it may be empty.
    pub(super) fn reply(&self) -> Result<&str, Fault> {
        match self.0.get(REPLY[0]) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(Fault::NoText { field: REPLY[0], found: kind(other) }),
            None => Err(Fault::Missing { expected: REPLY, found: self.0.keys().cloned().collect() }),
        }
    }

    /// The right answer where options keep their order: the letter of one, if there are any.
    pub(super) fn reference(&self) -> Result<Answer, Fault> {
        let Some(options) = self.options()? else { return Ok(Answer::Free(self.answer()?)) };
        let right = self.right_option(&options)?;
        Ok(('A'..='Z').nth(right).map_or_else(|| Answer::Free(options.texts[right].clone()), Answer::Choice))
    }

    /// The first of the fields that is there and not null.
    fn first(&self, names: &'static [&'static str]) -> Option<(&'static str, &Value)> {
        let field = |&name| Some((name, self.0.get(name).filter(|value| !value.is_null())?));
        names.iter().find_map(field)
    }

    fn text(&self, names: &'static [&'static str]) -> Result<String, Fault> {
        let found = || self.0.keys().cloned().collect();
        let (field, value) = self.first(names).ok_or_else(|| Fault::Missing { expected: names, found: found() })?;
        text(field, value)
    }

    /// The answer as it is given, or the final one of a worked solution.
    fn answer(&self) -> Result<String, Fault> {
        let answer = self.text(ANSWERS)?;
        let field = self.first(ANSWERS).map_or("answer", |(field, _)| field);
        if ["\\boxed", "\\fbox", "####"].iter().any(|mark| answer.contains(mark)) {
            return extract(&answer, Kind::Free).ok_or(Fault::NoFinalAnswer { field });
        }
        if field.eq_ignore_ascii_case("solution") { Err(Fault::NoFinalAnswer { field }) } else { Ok(answer) }
    }

    fn options(&self) -> Result<Option<Options>, Fault> {
        let Some((field, value)) = self.first(OPTIONS) else { return self.lettered_fields() };
        let mut options: Vec<(String, &Value)> = match value {
            Value::Array(values) => ('A'..='Z').map(String::from).zip(values).collect(),
            Value::Object(values) => values.iter().map(|(letter, value)| (letter.clone(), value)).collect(),
            other => return Err(Fault::Options { field, found: kind(other).to_owned() }),
        };
        let count = value.as_array().map_or(options.len(), Vec::len);
        if !(2..=26).contains(&count) {
            return Err(Fault::Options { field, found: count.to_string() });
        }
        options.sort_by(|(a, _), (b, _)| a.cmp(b));
        let texts = options.iter().map(|(_, value)| text(field, value)).collect::<Result<_, _>>()?;
        Ok(Some(Options { letters: options.into_iter().map(|(letter, _)| letter).collect(), texts }))
    }

    /// Options in fields `A`, `B` and so on.
    fn lettered_fields(&self) -> Result<Option<Options>, Fault> {
        let given = LETTERS.iter().take_while(|letter| self.0.contains_key(**letter)).count();
        if given < 2 {
            return Ok(None);
        }
        let texts = LETTERS[..given].iter().map(|letter| self.text(std::slice::from_ref(letter)));
        let letters = LETTERS[..given].iter().map(ToString::to_string).collect();
        Ok(Some(Options { letters, texts: texts.collect::<Result<_, _>>()? }))
    }

    /// The index of the option that the answer names by letter or by index.
    fn right_option(&self, options: &Options) -> Result<usize, Fault> {
        let answer = self.text(ANSWERS)?;
        let name = answer.trim_matches(['(', ')', '.', ' ']);
        let by_letter = options.letters.iter().position(|letter| letter.trim().eq_ignore_ascii_case(name));
        let index = by_letter.or_else(|| name.parse().ok()).filter(|&index| index < options.texts.len());
        index.ok_or(Fault::NoOption { count: options.texts.len(), found: answer })
    }
}

/// The text of a field; a number is text as well.
fn text(field: &'static str, value: &Value) -> Result<String, Fault> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(Fault::NoText { field, found: kind(other) }),
    }
}
