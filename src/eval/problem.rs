//! Files of problems: one JSON object per line, a JSON array of them, or CSV with a header.
//!
//! Field names are those of the sets in use: MATH-500, AIME, GSM8K, GPQA and their like.

use std::collections::HashMap;

use serde_json::{Map, Value};

pub use super::fault::ProblemError;
use super::fault::{Fault, kind};
use super::fields::Fields;
pub use super::fields::Problem;

/// How a file of problems is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line, or one JSON array of objects.
    Jsonl,
    /// A header and one record per problem.
    Csv,
}

/// Reads the problems of a file. `name` is what errors call it; `shuffle_seed` determines the order of options.
///
/// A field is the first there is of: `problem`, `question`, `prompt`, `Question`, `Problem`; `answer`, `Answer`,
/// `target`, or a `solution` that ends in a box or in `#### 18`; `id`, `unique_id`, `ID`, `task_id`, `Record ID`. The
/// options of multiple choice are in `choices` or `options`, with the letter or the index from 0 of the right one as the
/// answer, in `A`, `B` and so on with the letter as the answer, or in `Correct Answer` and `Incorrect Answer 1` to `3`.
///
/// # Errors
/// At the first entry that is malformed, lacks a field, has an empty one or repeats an id, and when there is no entry.
pub fn read(name: &str, text: &str, format: Format, shuffle_seed: u64) -> Result<Vec<Problem>, ProblemError> {
    let text = text.trim_start_matches('\u{feff}');
    let entries = match format {
        Format::Jsonl if text.trim_start().starts_with('[') => array(name, text)?,
        Format::Jsonl => lines(name, text)?,
        Format::Csv => csv_records(name, text)?,
    };
    if entries.is_empty() {
        return Err(Fault::NoProblems.of(name));
    }
    let mut first: HashMap<String, String> = HashMap::new();
    let mut problems = Vec::with_capacity(entries.len());
    for Entry { place, number, fields } in entries {
        let problem = fields.problem(number, shuffle_seed).map_err(|fault| fault.at(name, &place))?;
        let id = problem.id.clone();
        if let Some(first) = first.insert(id.clone(), place.clone()) {
            return Err(Fault::Duplicate { id, first }.at(name, &place));
        }
        problems.push(problem);
    }
    Ok(problems)
}

/// What a file says of one problem.
struct Entry {
    /// Its line, or its place in an array.
    place: String,
    number: usize,
    fields: Fields,
}

/// The object that a line holds.
pub(super) fn object(line: &str) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(Fault::Json { found: kind(&other).to_owned() }),
        Err(error) => Err(Fault::Json { found: format!("text that is none: {error}") }),
    }
}

fn entry(name: &str, place: String, number: usize, value: Value) -> Result<Entry, ProblemError> {
    match value {
        Value::Object(fields) => Ok(Entry { place, number, fields: Fields::new(fields) }),
        other => Err(Fault::Json { found: kind(&other).to_owned() }.at(name, &place)),
    }
}

fn lines(name: &str, text: &str) -> Result<Vec<Entry>, ProblemError> {
    let filled = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    filled
        .map(|(at, line)| {
            let place = format!("line {}", at + 1);
            let fields = Fields::new(object(line).map_err(|fault| fault.at(name, &place))?);
            Ok(Entry { place, number: at + 1, fields })
        })
        .collect()
}

fn array(name: &str, text: &str) -> Result<Vec<Entry>, ProblemError> {
    let values: Vec<Value> = serde_json::from_str(text).map_err(|error| {
        let place = format!("line {}", error.line());
        Fault::Json { found: format!("an array that is malformed: {error}") }.at(name, &place)
    })?;
    let numbered = values.into_iter().enumerate();
    numbered.map(|(at, value)| entry(name, format!("entry {}", at + 1), at + 1, value)).collect()
}

fn csv_records(name: &str, text: &str) -> Result<Vec<Entry>, ProblemError> {
    let fault = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        Fault::Csv(error).at(name, &format!("line {line}"))
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(fault)?.clone();
    let entry = |record: csv::StringRecord| {
        let line = record.position().map_or(0, csv::Position::line);
        let fields = header.iter().zip(&record).map(|(name, text)| (name.trim().to_owned(), text.into())).collect();
        Entry { place: format!("line {line}"), number: line as usize, fields: Fields::new(fields) }
    };
    reader.records().map(|record| record.map(entry).map_err(fault)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::grade::Answer;
    use crate::eval::grade::is_correct;
    use proptest::prelude::*;

    fn jsonl(text: &str) -> Vec<Problem> {
        read("f.jsonl", text, Format::Jsonl, 1).unwrap()
    }

    fn refused(text: &str, format: Format) -> String {
        let message = read("f", text, format, 1).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }

    fn free(id: &str, question: &str, answer: &str) -> Problem {
        Problem { id: id.into(), question: question.into(), reference: Answer::Free(answer.into()) }
    }

    #[test]
    fn free_answers_of_all_shapes() {
        assert_eq!(
            jsonl(concat!(
                "\u{feff}{\"problem\": \"p\", \"solution\": \"s\", \"answer\": \"\\\\frac{1}{2}\", \"unique_id\": \"a/1\"}\n\n",
                "{\"ID\": \"2024-I-1\", \"Problem\": \"p\", \"Answer\": 204}\r\n",
                "{\"question\": \"q\", \"answer\": \"2 + 16 = 18\\n#### 18\"}\n",
                "{\"prompt\": \"q\", \"target\": \"yes\", \"task_id\": 7}\n",
                "{\"id\": null, \"problem\": \"q\", \"answer\": null, \"solution\": \"so $\\\\boxed{3}$.\"}",
            )),
            [
                free("a/1", "p", "\\frac{1}{2}"),
                free("2024-I-1", "p", "204"),
                free("4", "q", "18"),
                free("7", "q", "yes"),
                free("6", "q", "3"),
            ]
        );
        let array = "[\n {\"problem\": \"p\", \"answer\": 1},\n {\"problem\": \"q\", \"answer\": 2}\n]";
        assert_eq!(jsonl(array), [free("1", "p", "1"), free("2", "q", "2")]);
        let csv = "ID,Problem,Answer\n1,\"a, b\nc\",025\n";
        assert_eq!(read("f.csv", csv, Format::Csv, 1).unwrap(), [free("1", "a, b\nc", "025")]);
    }

    /// The option that a problem's letter stands for.
    fn right_option(problem: &Problem) -> String {
        let Answer::Choice(letter) = problem.reference else { panic!("{problem:?}") };
        let line = problem.question.lines().find_map(|line| line.strip_prefix(&format!("{letter}) ")));
        line.unwrap().to_owned()
    }

    #[test]
    fn options_are_shuffled_and_the_letter_follows() {
        let header = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n";
        let rows: String =
            (0..40).map(|i| format!("r{i},\"What\nis it?\",right,\"wrong, 1\",wrong 2,wrong 3\n")).collect();
        let csv = header.to_owned() + &rows;
        let problems = read("f.csv", &csv, Format::Csv, 1).unwrap();
        assert!(problems.iter().all(|p| right_option(p) == "right" && p.question.contains(") wrong, 1\n")));
        for letter in ['A', 'B', 'C', 'D'] {
            assert!(problems.iter().any(|p| is_correct(&letter.to_string(), &p.reference)), "{letter} is never right");
        }
        assert_eq!(problems, read("f.csv", &csv, Format::Csv, 1).unwrap());
        assert_ne!(problems, read("f.csv", &csv, Format::Csv, 2).unwrap());
        let last_alone = header.to_owned() + &rows[rows.rfind("r39").unwrap()..];
        assert!(read("f.csv", &last_alone, Format::Csv, 1).is_ok_and(|p| problems.ends_with(&p)));
    }

    #[test]
    fn options_as_lists_and_objects() {
        for (fields, right) in [
            (r#""choices": ["w", "x", "y"], "answer": "B""#, "x"),
            (r#""A": "w", "B": "x", "C": "y", "answer": "C""#, "y"),
            (r#""choices": ["w", "x", "y"], "answer": "(b)""#, "x"),
            (r#""choices": ["w", "x", "y"], "answer": 2"#, "y"),
            (r#""options": ["w", "x", "y"], "answer": "0""#, "w"),
            (r#""options": {"B": "x", "A": "w"}, "answer": "A""#, "w"),
            (r#""options": {"1": "w", "2": "x"}, "answer": "1""#, "w"),
            (r#""options": [10, 20], "answer": 1"#, "20"),
        ] {
            let problems = jsonl(&format!("{{\"question\": \"q\", {fields}}}"));
            assert_eq!(right_option(&problems[0]), right, "{fields}");
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        for (text, parts) in [
            ("", &["f: ", "found none"][..]),
            (" \n\n", &["f: ", "found none"]),
            ("[]", &["f: ", "found none"]),
            ("{\"problem\": \"p\", \"answer\": 1}\nx", &["f, line 2: ", "JSON object"]),
            ("[{\"problem\": \"p\"", &["f, line 1: ", "malformed"]),
            ("[3]", &["f, entry 1: ", "a number"]),
            ("\n7", &["f, line 2: ", "a number"]),
            ("{\"text\": \"p\", \"a\\nb\": 1}", &["f, line 1: ", "`problem`, `question`", "`text`, `a\\nb`"]),
            ("{}", &["no fields"]),
            ("{\"problem\": \"p\", \"x\": 1}", &["`answer`", "found `problem`, `x`"]),
            ("{\"problem\": \" \", \"answer\": 1}", &["`problem`", "empty"]),
            ("{\"problem\": \"p\", \"answer\": \"\"}", &["`answer`", "empty"]),
            ("{\"problem\": \"p\", \"answer\": [1]}", &["`answer`", "an array"]),
            ("{\"problem\": \"p\", \"solution\": \"it is 5\"}", &["`solution`", "neither"]),
            ("{\"problem\": \"p\", \"answer\": \"####\"}", &["`answer`", "neither"]),
            ("{\"question\": \"q\", \"choices\": [\"a\"], \"answer\": 0}", &["`choices`", "2 to 26", "1"]),
            ("{\"question\": \"q\", \"choices\": \"a\", \"answer\": 0}", &["`choices`", "a string"]),
            ("{\"question\": \"q\", \"choices\": [\"a\", \"\"], \"answer\": 0}", &["`choices`", "empty"]),
            ("{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 2}", &["one of 2", "\"2\""]),
            ("{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": \"C\"}", &["\"C\""]),
            ("{\"id\": 1, \"problem\": \"p\", \"answer\": 1}\n{\"id\": \"1\", \"problem\": \"q\", \"answer\": 1}", {
                &["f, line 2: ", "\"1\"", "line 1 already"]
            }),
        ] {
            let message = refused(text, Format::Jsonl);
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        }
        for (text, parts) in [
            ("", &["f: ", "found none"][..]),
            ("Problem,Answer\n", &["f: ", "found none"]),
            ("Problem,Answer\np,1\nq\n", &["f, line 3: "]),
            ("Problem,Answer\np,\n", &["f, line 2: ", "`Answer`", "empty"]),
            ("Question,Correct Answer,Incorrect Answer 1\nq,a,b\n", &["`Incorrect Answer 2`"]),
        ] {
            let message = refused(text, Format::Csv);
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        }
    }

    /// Pieces of both formats, so that random files come near to real ones.
    fn file() -> impl Strategy<Value = String> {
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\n",
            "\"",
            "\\",
            "null",
            "1",
            "-1",
            "1e999",
            "\"problem\":",
            "\"answer\":",
            "\"choices\":",
            "{\"question\":\"q\",\"choices\":[\"a\",\"b\"],\"answer\":",
            "{\"problem\":\"p\",\"answer\":",
            "\"A\"",
            "\"#### 5\"",
            "Problem,Answer\n",
            "p,5\n",
            "é",
            "\u{feff}",
            "Correct Answer",
            "\"\\\\boxed{\"",
            "{\"a\":\"b\"}",
        ];
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..16).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn never_panics(text in prop_oneof![".{0,60}", file()], seed: u64) {
            for format in [Format::Jsonl, Format::Csv] {
                match read("f", &text, format, seed) {
                    Ok(problems) => prop_assert!(!problems.is_empty()),
                    Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
                }
            }
        }
    }
}
