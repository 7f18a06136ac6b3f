//! The state of one answer while it is generated: its events and its stop texts.

use crate::llama::Token;
use crate::trace::{Segment, Tracked};

use super::Event;

pub(super) struct Answer<'a> {
    stop: &'a [String],
    /// The end of the text so far, long enough to find any stop text.
    tail: Vec<u8>,
    segment: Segment,
    steps: usize,
}

impl<'a> Answer<'a> {
    pub fn new(stop: &'a [String]) -> Self {
        Self { stop, tail: Vec::new(), segment: Segment::Question, steps: 0 }
    }

    /// Tells of a token, and before it of a change of segment and of a step that starts.
    pub fn report(
        &mut self,
        token: Token,
        piece: &[u8],
        tracked: &Tracked,
        control: bool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let segment = tracked.segment;
        let first_step = segment == Segment::Thinking && self.segment != Segment::Thinking;
        if segment != self.segment {
            self.segment = segment;
            on_event(Event::Segment(segment));
        }
        if first_step || tracked.step_start.is_some() {
            self.steps += 1;
            on_event(Event::Step(self.steps));
        }
        on_event(Event::Token { token, piece, segment, control });
    }

    /// Whether a stop text ends in this piece.
    pub fn stops(&mut self, piece: &[u8]) -> bool {
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        self.tail.extend_from_slice(piece);
        let found = self
            .stop
            .iter()
            .any(|stop| !stop.is_empty() && self.tail.windows(stop.len()).any(|window| window == stop.as_bytes()));
        let excess = self.tail.len().saturating_sub(longest);
        self.tail.drain(..excess);
        found
    }
}
