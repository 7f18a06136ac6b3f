//! The trace file: a tracked sequence as JSON, to be analysed later.

use std::io::{self, BufWriter, Write};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Family, Markers, Segment, Step};

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// The most tokens a trace file may hold.
pub const MAX_TOKENS: usize = 10_000_000;

/// A sequence of tokens with their segments and steps, and the model that they belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceFile {
    /// What is known of the model: `name`, `architecture`, `sha256` of the file if computed, and whatever else helps.
    pub model: Map<String, Value>,
    /// The family whose rules gave the segments.
    pub family: Family,
    /// The markers in force.
    pub markers: Markers,
    /// The sequence.
    pub tokens: Vec<TraceToken>,
    /// The partition that [`Tracker::steps`](super::Tracker::steps) gave.
    pub steps: Vec<Step>,
}

/// One token of a [`TraceFile`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceToken {
    /// The token's number in the model's vocabulary, 0 or more.
    pub id: i32,
    /// Its rendered text: a string in the file when that is UTF-8, else an array of byte values.
    #[serde(with = "piece")]
    pub piece: Vec<u8>,
    /// Its segment.
    pub segment: Segment,
}

/// Why bytes are no [`TraceFile`].
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No JSON, or a field is missing or of the wrong type.
    #[error("not a stepflow trace: {0}; use a file written by --save-trace")]
    Json(String),
    /// A later format.
    #[error("stepflow trace of version {0}, but this program reads version {VERSION}: use the stepflow that wrote it")]
    Version(u64),
    /// More tokens than a trace may hold.
    #[error("trace of {0} tokens, but at most {MAX_TOKENS} are read: split it")]
    TooLong(usize),
    /// A token that no vocabulary holds.
    #[error("token {position} has the id {id}, expected 0 or more: the trace is damaged, write it again")]
    TokenId {
        /// The token's position.
        position: usize,
        /// Its id.
        id: i32,
    },
    /// A segment that comes after a later one.
    #[error(
        "token {position} is {found} after {before}, expected question, thinking, summary in this order: \
         the trace is damaged, write it again"
    )]
    SegmentOrder {
        /// The token's position.
        position: usize,
        /// Its segment.
        found: Segment,
        /// The segment of the token before.
        before: Segment,
    },
    /// A step that is empty, leaves a gap, overlaps or runs past the last token.
    #[error(
        "step {step} holds tokens {start} to {end}, expected it to start at {expected} and to end after that, \
         at {tokens} at most: the trace is damaged, write it again"
    )]
    Span {
        /// The step's index.
        step: usize,
        /// Its first token.
        start: usize,
        /// The end of its tokens, exclusive.
        end: usize,
        /// The end of the step before.
        expected: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// A step whose segment is not that of its first token.
    #[error("step {step} is {found}, but its first token is {token}: the trace is damaged, write it again")]
    StepSegment {
        /// The step's index.
        step: usize,
        /// Its segment.
        found: Segment,
        /// The segment of its first token.
        token: Segment,
    },
    /// Tokens after the last step.
    #[error(
        "the steps end at token {end} of {tokens}, expected all to be covered: the trace is damaged, write it again"
    )]
    Uncovered {
        /// The end of the last step.
        end: usize,
        /// The number of tokens.
        tokens: usize,
    },
}

impl From<serde_json::Error> for TraceError {
    /// Keeps the message to one line: it may quote names from the file, line breaks and all.
    fn from(error: serde_json::Error) -> TraceError {
        TraceError::Json(error.to_string().replace(char::is_control, " "))
    }
}

impl TraceFile {
    /// Reads a trace file and checks all of it: version, number and order of the tokens' segments, and that the steps
    /// cover every token once, in order, each with the segment of its first token.
    pub fn read(json: &[u8]) -> Result<TraceFile, TraceError> {
        // The version goes first, for a later one may have other fields.
        let Header { stepflow_trace } = serde_json::from_slice(json)?;
        if stepflow_trace != u64::from(VERSION) {
            return Err(TraceError::Version(stepflow_trace));
        }
        let file: TraceFile = serde_json::from_slice(json)?;
        file.check_tokens()?;
        file.check_steps()?;
        Ok(file)
    }

    /// Writes the trace as one line of JSON.
    pub fn write(&self, output: impl Write) -> io::Result<()> {
        let mut output = BufWriter::new(output);
        serde_json::to_writer(&mut output, &Versioned { stepflow_trace: VERSION, file: self })?;
        output.write_all(b"\n")?;
        output.flush()
    }

    fn check_tokens(&self) -> Result<(), TraceError> {
        if self.tokens.len() > MAX_TOKENS {
            return Err(TraceError::TooLong(self.tokens.len()));
        }
        let mut before = Segment::Question;
        for (position, &TraceToken { id, segment, .. }) in self.tokens.iter().enumerate() {
            if id < 0 {
                return Err(TraceError::TokenId { position, id });
            }
            if segment < before {
                return Err(TraceError::SegmentOrder { position, found: segment, before });
            }
            before = segment;
        }
        Ok(())
    }

    fn check_steps(&self) -> Result<(), TraceError> {
        let tokens = self.tokens.len();
        let mut expected = 0;
        for (step, &Step { segment: found, tokens: ref span }) in self.steps.iter().enumerate() {
            if span.start != expected || span.is_empty() || span.end > tokens {
                return Err(TraceError::Span { step, start: span.start, end: span.end, expected, tokens });
            }
            // Only the first: closing markup and line breaks of the next segment belong to the step before.
            let token = self.tokens[span.start].segment;
            if found != token {
                return Err(TraceError::StepSegment { step, found, token });
            }
            expected = span.end;
        }
        if expected == tokens { Ok(()) } else { Err(TraceError::Uncovered { end: expected, tokens }) }
    }
}

#[derive(Deserialize)]
struct Header {
    stepflow_trace: u64,
}

#[derive(Serialize)]
struct Versioned<'a> {
    stepflow_trace: u32,
    #[serde(flatten)]
    file: &'a TraceFile,
}

/// A token's text in JSON, without loss where a token cuts a character.
mod piece {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a piece is a string or an array of byte values")]
    enum Piece {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(piece: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(piece) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => piece.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Piece::deserialize(deserializer)? {
            Piece::Text(text) => text.into_bytes(),
            Piece::Bytes(bytes) => bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of two tokens with the given tokens and steps in JSON.
    fn read(tokens: &str, steps: &str) -> Result<TraceFile, String> {
        let json = format!(
            r#"{{"stepflow_trace": 1, "model": {{"name": "m"}}, "family": "implicit",
                 "markers": {{"think_start": null, "think_end": "END"}}, "tokens": [{tokens}], "steps": [{steps}]}}"#
        );
        TraceFile::read(json.as_bytes()).map_err(|error| error.to_string())
    }

    const TOKENS: &str =
        r#"{"id": 1, "piece": "a", "segment": "question"}, {"id": 2, "piece": [195], "segment": "thinking"}"#;

    #[test]
    fn reads_text_and_bytes() {
        let steps = r#"{"segment": "question", "start": 0, "end": 1}, {"segment": "thinking", "start": 1, "end": 2}"#;
        let file = read(TOKENS, steps).unwrap();
        assert_eq!([&file.tokens[0].piece, &file.tokens[1].piece], [b"a".as_slice(), &[195]]);
        assert_eq!(file.steps[1], Step { segment: Segment::Thinking, tokens: 1..2 });
        assert!(read("", "").is_ok());
    }

    #[test]
    fn says_in_one_line_what_is_wrong() {
        let step = |segment, start, end| format!(r#"{{"segment": "{segment}", "start": {start}, "end": {end}}}"#);
        let back = TOKENS.replace("question", "summary");
        for (tokens, steps, expected) in [
            (TOKENS, step("question", 0, 1), "end at token 1 of 2"),
            (TOKENS, step("question", 0, 3), "tokens 0 to 3"),
            (TOKENS, step("question", 1, 2), "start at 0"),
            (TOKENS, step("question", 0, 0), "tokens 0 to 0"),
            (TOKENS, step("question", 2, 1), "tokens 2 to 1"),
            (TOKENS, [step("question", 0, 2), step("thinking", 1, 2)].join(","), "step 1 holds"),
            (TOKENS, step("thinking", 0, 2), "step 0 is thinking"),
            (TOKENS, step("answer", 0, 2), "unknown variant"),
            (&back, step("summary", 0, 2), "thinking after summary"),
            (&TOKENS.replace("\"id\": 2", "\"id\": -2"), step("question", 0, 2), "id -2"),
            (&TOKENS.replace("195", "256"), step("question", 0, 2), "array of byte values"),
        ] {
            let error = read(tokens, &steps).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{expected}: {error}");
        }
    }

    #[test]
    fn refuses_other_versions_and_other_files() {
        let error = |json: &str| TraceFile::read(json.as_bytes()).unwrap_err().to_string();
        assert!(error(r#"{"stepflow_trace": 2}"#).contains("version 2"));
        assert!(error("{}").contains("stepflow_trace"));
        assert!(error("GGUF").contains("not a stepflow trace"));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let open = r#"{"stepflow_trace": 1, "model": {"x": "#.to_owned() + &"[".repeat(1_000_000);
        assert!(matches!(TraceFile::read(open.as_bytes()), Err(TraceError::Json(_))));
    }
}
