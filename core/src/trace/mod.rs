//! Segments and steps of a reasoning trace, told from its tokens as they come.
//!
//! A [`Tracker`] is fed the rendered text of every token and says, at that token, which [`Segment`] it belongs to and
//! whether it is the first of a new thinking step: where Step Momentum Injection fires (arXiv 2604.06695). Nothing here
//! looks ahead, and a token costs time in proportion to its own bytes. [`TraceFile`] keeps a tracked sequence on disk.
//!
//! The rules, in the order they apply; `docs/steps.md` has them in full, with examples:
//!
//! - **Segments.** A sequence starts as question. The token that completes a marker keeps the old label, the next one
//!   has the new. In a question only the start marker counts, in thinking only the end marker, in a summary neither.
//!   Text that a user writes is not told apart from a template's: a literal start marker in a prompt opens thinking.
//!   Where a model marks nothing, the opening of an answer is an end marker ([`Markers::answers`]).
//! - **Thinking steps** begin with the first generated thinking token; what a prompt holds of thinking is no step. They
//!   are sentences and list items, if long enough.
//! - **Summary steps** are paragraphs.
//! - **Tokens.** A step begins at the first token that begins with its first character, or with the indentation before
//!   it; never inside a character. Where a token ends within a character, its bytes so far must tell.
//! - **White space** after a sentence end belongs, for injection, to the step it begins ([`Tracked::step_start`]). The
//!   partition for saliency ([`Tracker::steps`]) gives line breaks, and a step that is nothing but closing markup, to
//!   the step before.

mod answer;
mod ends;
mod family;
mod file;
mod lines;
mod markers;
mod relabel;
mod segment;
mod steps;
mod tracker;
mod utf8;

pub use family::{Family, UnknownFamily};
pub use file::{MAX_TOKENS, TraceError, TraceFile, TraceToken, VERSION};
pub use markers::Markers;
pub use segment::Segment;
pub use steps::Step;
pub use tracker::{StepStart, Tracked, Tracker};
