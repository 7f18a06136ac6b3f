//! Segments and steps of one sequence, as its tokens come.

use std::ops::Range;

use super::{
    Markers, Segment, Step,
    markers::Matcher,
    steps::{Cut, Paragraphs, Sentences},
    utf8::Utf8,
};

/// What [`Tracker::push`] says of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The token's segment.
    pub segment: Segment,
    /// Set if a thinking step other than the first starts at this token.
    pub step_start: Option<StepStart>,
}

/// The first token of a thinking step but the first: where Step Momentum Injection fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepStart {
    /// The token's position.
    pub position: usize,
    /// The positions of the whole step before.
    pub previous: Range<usize>,
}

/// Labels the tokens of one sequence and cuts it into steps. The rules are in the [module's](super) documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracker {
    markers: Markers,
    history: History,
    segments: Vec<Segment>,
    turn: Turn,
}

impl Tracker {
    /// A tracker of an empty sequence.
    pub fn new(markers: Markers) -> Tracker {
        Tracker { turn: Turn::new(&markers), markers, history: History::default(), segments: Vec::new() }
    }

    /// Takes the rendered text of the next token, special tokens included. `generated`: false for prompt tokens.
    pub fn push(&mut self, piece: &[u8], generated: bool) -> Tracked {
        self.history.push(piece, generated);
        self.track(piece, generated)
    }

    /// Starts a user turn: everything so far becomes question, and the start marker is awaited again.
    pub fn new_turn(&mut self) {
        self.history.turns.push(self.len());
        self.segments.fill(Segment::Question);
        self.turn = Turn::new(&self.markers);
    }

    /// The segment that the next token will have if it is generated.
    pub fn next_segment(&self) -> Segment {
        match self.turn.segment {
            Segment::Question if self.markers.think_start.is_none() => Segment::Thinking,
            segment => segment,
        }
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The label of every token.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// All steps so far, in order; they cover every token exactly once.
    ///
    /// Made for pooling, they differ from the starts that [`push`](Tracker::push) reports: line breaks at the head of a
    /// step belong to the step before, and so does a step that is nothing but the markup that closes thinking. Thinking
    /// that stands in the prompt (an empty think block, the line break after `<think>`) belongs to the question step.
    pub fn steps(&self) -> Vec<Step> {
        let Some(&first_label) = self.segments.first() else { return Vec::new() };
        let mut starts: Vec<(Segment, usize)> =
            self.turn.steps.iter().filter_map(|begun| Some((begun.segment, begun.text?))).collect();
        match starts.first_mut() {
            Some((segment, start)) if *segment == first_label => *start = 0,
            _ => starts.insert(0, (first_label, 0)),
        }
        let ends = starts.iter().skip(1).map(|&(_, start)| start).chain([self.len()]);
        starts.iter().zip(ends).map(|(&(segment, start), end)| Step { segment, tokens: start..end }).collect()
    }

    /// Forgets all tokens from position `n` on, and the turns that started after it. Takes time in proportion to the
    /// length of the turn.
    pub fn truncate(&mut self, n: usize) {
        if n >= self.len() {
            return;
        }
        self.history.truncate(n);
        let turn_start = self.history.turns.last().copied().unwrap_or(0);
        self.segments.truncate(turn_start);
        self.segments.fill(Segment::Question);
        self.turn = Turn::new(&self.markers);
        let history = std::mem::take(&mut self.history);
        for position in turn_start..n {
            let (piece, generated) = history.token(position);
            self.track(piece, generated);
        }
        self.history = history;
    }

    fn track(&mut self, piece: &[u8], generated: bool) -> Tracked {
        let tracked = self.turn.push(self.segments.len(), piece, generated);
        self.segments.push(tracked.segment);
        tracked
    }
}

/// The tokens as they were pushed, from which a truncated sequence is tracked anew.
#[derive(Clone, Debug, Default, PartialEq)]
struct History {
    bytes: Vec<u8>,
    /// For every token: where its bytes end, and whether it was generated.
    tokens: Vec<(usize, bool)>,
    /// The positions at which turns started, without the first.
    turns: Vec<usize>,
}

impl History {
    fn push(&mut self, piece: &[u8], generated: bool) {
        self.bytes.extend_from_slice(piece);
        self.tokens.push((self.bytes.len(), generated));
    }

    fn token(&self, position: usize) -> (&[u8], bool) {
        let (end, generated) = self.tokens[position];
        (&self.bytes[self.bytes_before(position)..end], generated)
    }

    fn truncate(&mut self, n: usize) {
        self.bytes.truncate(self.bytes_before(n));
        self.tokens.truncate(n);
        self.turns.retain(|&start| start <= n);
    }

    fn bytes_before(&self, position: usize) -> usize {
        if position == 0 { 0 } else { self.tokens[position - 1].0 }
    }
}

/// A step that has begun.
#[derive(Clone, Debug, PartialEq)]
struct Begun {
    segment: Segment,
    /// The position of its first token.
    first: usize,
    /// The position of its first token that is no mere line break.
    text: Option<usize>,
}

/// The state of the turn that is being read.
#[derive(Clone, Debug, PartialEq)]
struct Turn {
    think_start: Option<Matcher>,
    think_end: Matcher,
    think_end_chars: usize,
    segment: Segment,
    utf8: Utf8,
    sentences: Sentences,
    paragraphs: Paragraphs,
    /// A step ended inside the token before: the next token begins one.
    due: bool,
    steps: Vec<Begun>,
}

impl Turn {
    fn new(markers: &Markers) -> Turn {
        Turn {
            think_start: markers.think_start.as_deref().map(Matcher::new),
            think_end: Matcher::new(&markers.think_end),
            think_end_chars: markers.think_end.chars().count(),
            segment: Segment::Question,
            utf8: Utf8::default(),
            sentences: Sentences::default(),
            paragraphs: Paragraphs::default(),
            due: false,
            steps: Vec::new(),
        }
    }

    fn push(&mut self, position: usize, piece: &[u8], generated: bool) -> Tracked {
        if self.segment == Segment::Question && self.think_start.is_none() && generated {
            self.segment = Segment::Thinking;
        }
        let segment = self.segment;
        let begins = std::mem::take(&mut self.due) || self.is_first_of_segment(generated);
        let mut step_start = if begins { self.begin(position) } else { None };
        for (index, &byte) in piece.iter().enumerate() {
            match self.read(byte, generated) {
                // Of two steps that end before this token, the second has no token of its own.
                Some((Cut::Before, length)) if index < length && begins => {}
                // A character that an earlier token began can start a step no earlier than here.
                Some((Cut::Before, length)) if index < length => step_start = self.begin(position),
                Some(_) => self.due = true,
                None => {}
            }
            if self.completes_marker(byte) {
                self.enter_next_segment();
            }
        }
        if let Some(step) = self.steps.last_mut()
            && step.segment == segment
            && !is_line_break(piece)
        {
            step.text.get_or_insert(position);
        }
        Tracked { segment, step_start }
    }

    fn is_first_of_segment(&self, generated: bool) -> bool {
        match self.segment {
            Segment::Question => false,
            Segment::Thinking => self.steps.is_empty() && generated,
            Segment::Summary => self.steps.last().is_none_or(|step| step.segment != Segment::Summary),
        }
    }

    fn begin(&mut self, position: usize) -> Option<StepStart> {
        let previous = self.steps.last().filter(|step| step.segment == Segment::Thinking).map(|step| step.first);
        self.steps.push(Begun { segment: self.segment, first: position, text: None });
        let previous = previous.filter(|_| self.segment == Segment::Thinking)?..position;
        Some(StepStart { position, previous })
    }

    /// Takes a byte as text; returns the step end that it shows, and the length of the character that it completes.
    fn read(&mut self, byte: u8, generated: bool) -> Option<(Cut, usize)> {
        let (c, length) = self.utf8.push(byte)?;
        let cut = match self.segment {
            Segment::Thinking if generated || !self.steps.is_empty() => self.sentences.push(c),
            Segment::Summary => self.paragraphs.push(c),
            _ => None,
        };
        Some((cut?, length))
    }

    fn completes_marker(&mut self, byte: u8) -> bool {
        match self.segment {
            Segment::Question => self.think_start.as_mut().is_some_and(|marker| marker.push(byte)),
            Segment::Thinking => self.think_end.push(byte),
            Segment::Summary => false,
        }
    }

    fn enter_next_segment(&mut self) {
        // A step that is due has not begun: the last one begun is a whole one.
        let begun = !std::mem::take(&mut self.due);
        self.segment = match self.segment {
            Segment::Question => Segment::Thinking,
            Segment::Thinking | Segment::Summary => {
                if begun && self.sentences.is_closing(self.think_end_chars) {
                    self.steps.pop();
                }
                Segment::Summary
            }
        };
    }
}

fn is_line_break(piece: &[u8]) -> bool {
    piece.iter().all(u8::is_ascii_whitespace) && (piece.contains(&b'\n') || piece.is_empty())
}
