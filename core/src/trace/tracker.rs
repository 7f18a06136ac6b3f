//! Segments and steps of one sequence, as its tokens come.

use std::ops::Range;

use super::{
    Markers, Segment, Step,
    answer::Answers,
    markers::Matcher,
    steps::{Completed, Cut, Paragraphs, Sentences},
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

    /// Forgets the tokens at these positions, as if they had never come: those behind them move up. Takes time in proportion to
    /// the length of the turn.
    pub fn remove(&mut self, positions: Range<usize>) {
        let (start, end) = (positions.start.min(self.len()), positions.end.min(self.len()));
        let behind: Vec<(Vec<u8>, bool)> = (end..self.len())
            .map(|position| self.history.token(position))
            .map(|(piece, generated)| (piece.to_vec(), generated))
            .collect();
        let turns: Vec<usize> = self.history.turns.iter().copied().filter(|turn| *turn > start).collect();
        self.truncate(start);
        for (i, (piece, generated)) in behind.iter().enumerate() {
            // A turn that began among the forgotten begins behind them.
            if turns.iter().any(|turn| *turn == end + i || (i == 0 && *turn < end)) {
                self.new_turn();
            }
            self.push(piece, *generated);
        }
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
    answers: Option<Answers>,
    segment: Segment,
    utf8: Utf8,
    sentences: Sentences,
    paragraphs: Paragraphs,
    /// A step ended inside an earlier token: the next token that begins with a character begins one.
    due: bool,
    steps: Vec<Begun>,
}

impl Turn {
    fn new(markers: &Markers) -> Turn {
        Turn {
            think_start: markers.think_start.as_deref().map(Matcher::new),
            think_end: Matcher::new(&markers.think_end),
            think_end_chars: markers.think_end.chars().count(),
            answers: markers.answers.then(Answers::new),
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
        let begins = !self.utf8.goes_on(piece) && (self.due || self.is_first_of_segment(generated));
        self.due &= !begins;
        let mut step_start = if begins { self.begin(position) } else { None };
        for (index, &byte) in piece.iter().enumerate() {
            let (of_next, answer) = self.read(byte, generated, piece.get(index + 1).copied());
            if let Some(of_next) = of_next {
                step_start = self.end_step(position, &piece[..=index], of_next).or(step_start);
            }
            if let Some(completed) = answer.or_else(|| self.completes_marker(byte)) {
                self.enter_next_segment(completed);
            }
        }
        if let Some(of_next) = self.read_beginning(generated) {
            step_start = self.end_step(position, piece, of_next).or(step_start);
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

    /// A step has ended before the last `of_next` bytes of what has been `read` of the token at `position`.
    fn end_step(&mut self, position: usize, read: &[u8], of_next: usize) -> Option<StepStart> {
        let before = read.len().checked_sub(of_next).map(|length| &read[..length]);
        let indentation = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b' ' | b'\t'));
        if of_next == 0 || !before.is_some_and(indentation) {
            self.due = true;
            return None;
        }
        // Of two steps that end before this token, the second has no token of its own.
        let begun = self.steps.last().is_some_and(|step| step.first == position);
        if begun { None } else { self.begin(position) }
    }

    /// Takes a byte as text, before `next` in the same token. Returns how many of the bytes read last belong to the next step,
    /// if they show that one has ended, and the answer that it opens.
    fn read(&mut self, byte: u8, generated: bool, next: Option<u8>) -> (Option<usize>, Option<Completed>) {
        let Some((c, length)) = self.utf8.push(byte) else { return (None, None) };
        let at_head = self.sentences.sentence_ends_before(c);
        let (cut, answer) = match self.segment {
            Segment::Thinking if self.has_steps(generated) => {
                let answer = self.answers.as_mut().and_then(|answers| answers.push(c, at_head, next));
                (self.sentences.push(c), answer.map(|letters| Completed::Answer { letters }))
            }
            Segment::Summary => (self.paragraphs.push(c), None),
            _ => (None, None),
        };
        (cut.map(|cut| if cut == Cut::Before { length } else { 0 }), answer)
    }

    /// Takes the end of a token. Returns how many of its bytes belong to the next step, if those of a character that is cut
    /// off show that one has ended.
    fn read_beginning(&mut self, generated: bool) -> Option<usize> {
        let bytes = self.utf8.beginning()?;
        let cut = self.segment == Segment::Thinking && self.has_steps(generated);
        (cut && self.sentences.push_beginning(bytes)).then_some(bytes.len())
    }

    /// Whether thinking is cut into steps: what a prompt holds of it is not.
    fn has_steps(&self, generated: bool) -> bool {
        generated || !self.steps.is_empty()
    }

    fn completes_marker(&mut self, byte: u8) -> Option<Completed> {
        let completed = match self.segment {
            Segment::Question => self.think_start.as_mut().is_some_and(|marker| marker.push(byte)),
            Segment::Thinking => self.think_end.push(byte),
            Segment::Summary => false,
        };
        completed.then_some(Completed::Marker { chars: self.think_end_chars })
    }

    fn enter_next_segment(&mut self, completed: Completed) {
        // A step that is due has not begun: the last one begun is a whole one.
        let begun = !std::mem::take(&mut self.due);
        self.segment = match self.segment {
            Segment::Question => Segment::Thinking,
            Segment::Thinking | Segment::Summary => {
                if begun && self.sentences.is_closing(completed) {
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
