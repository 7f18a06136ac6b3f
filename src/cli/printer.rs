//! An answer on its way to stdout: thinking set apart from what is said.

use std::io::{self, Write};

use stepflow::engine::{Event, Message};
use stepflow::trace::{Family, Markers, Segment};

use super::steps::Steps;

/// How answers are shown.
#[derive(Debug, Clone)]
pub struct Style {
    /// Dim thinking and number its steps; without, thinking is framed in brackets.
    pub color: bool,
    /// Set thinking apart, and leave its markers out.
    pub apart: bool,
    /// The family, whose markers are left out.
    pub family: Family,
    /// The markers.
    pub markers: Markers,
}

impl Style {
    /// Whether the model says where its thinking begins. What is taken as thinking of any other is part of its answer.
    fn marks_thinking(&self) -> bool {
        self.markers.think_start.is_some()
    }
}

/// Prints one answer, and keeps it as a message.
pub struct Printer<'a, W: Write> {
    out: W,
    style: &'a Style,
    segment: Segment,
    /// Inside the header of a harmony message.
    hidden: bool,
    /// White space at the head of a segment is not shown.
    at_head: bool,
    /// Thinking in colour.
    steps: Steps,
    thinking: Vec<u8>,
    answer: Vec<u8>,
    error: Option<io::Error>,
}

impl<'a, W: Write> Printer<'a, W> {
    /// A printer of the next answer.
    pub fn new(out: W, style: &'a Style) -> Self {
        Self {
            out,
            style,
            segment: Segment::Question,
            hidden: false,
            at_head: false,
            steps: Steps::new(!style.marks_thinking()),
            thinking: Vec::new(),
            answer: Vec::new(),
            error: None,
        }
    }

    /// Shows an event. After a failed write nothing more is shown; see [`Printer::finish`].
    pub fn on_event(&mut self, event: &Event<'_>) {
        if self.error.is_some() {
            return;
        }
        let shown = match event {
            Event::Prompt { .. } => Ok(()),
            Event::Segment(segment) => self.segment_starts(*segment),
            Event::Step(number) => self.step_starts(*number),
            Event::Token { piece, control, .. } => self.token(piece, *control),
        };
        self.error = shown.and_then(|()| self.out.flush()).err();
    }

    /// Whether writing failed.
    pub fn failed(&self) -> bool {
        self.error.is_some()
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// When anything could not be written.
    pub fn finish(mut self) -> io::Result<Message> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.style.apart && self.segment == Segment::Thinking {
            match self.style.color {
                true => self.steps.finish(&mut self.out)?,
                false => write!(self.out, "\n[End thinking]")?,
            }
        }
        writeln!(self.out)?;
        self.out.flush()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let mut message = Message::new("assistant", text(&self.answer));
        message.reasoning_content = Some(text(&self.thinking)).filter(|thinking| !thinking.is_empty());
        Ok(message)
    }

    fn segment_starts(&mut self, segment: Segment) -> io::Result<()> {
        let before = std::mem::replace(&mut self.segment, segment);
        if !self.style.apart {
            return Ok(());
        }
        self.hidden = false;
        // Unmarked, the answer goes on where thinking ended.
        self.at_head = segment == Segment::Thinking || self.style.marks_thinking();
        match (segment, self.style.color) {
            (Segment::Thinking, true) => Ok(()),
            (Segment::Thinking, false) => writeln!(self.out, "[Start thinking]"),
            (_, true) if before == Segment::Thinking => self.steps.end(&mut self.out),
            (_, false) if before == Segment::Thinking => write!(self.out, "\n[End thinking]\n\n"),
            _ => Ok(()),
        }
    }

    fn step_starts(&mut self, number: usize) -> io::Result<()> {
        match self.style.color && self.style.apart {
            true => self.steps.start(number, &mut self.out),
            false => Ok(()),
        }
    }

    fn token(&mut self, piece: &[u8], control: bool) -> io::Result<()> {
        let mut piece = piece;
        if self.style.apart {
            self.hidden |= control && self.style.family == Family::Harmony;
            if self.hidden || self.is_marker(piece) {
                return Ok(());
            }
        }
        if control {
            return Ok(());
        }
        if self.at_head {
            piece = piece.trim_ascii_start();
            self.at_head = piece.is_empty();
        }
        let is_apart = self.style.apart && self.segment == Segment::Thinking;
        match is_apart && self.style.marks_thinking() {
            true => self.thinking.extend_from_slice(piece),
            false => self.answer.extend_from_slice(piece),
        }
        match is_apart && self.style.color {
            true => self.steps.text(piece, &mut self.out),
            false => self.out.write_all(piece),
        }
    }

    /// Whether a token is one of the markers of think-tags; what ends unmarked thinking is part of the text.
    fn is_marker(&self, piece: &[u8]) -> bool {
        let Markers { think_start, think_end, .. } = &self.style.markers;
        let is = |marker: &str| !marker.is_empty() && piece.trim_ascii() == marker.as_bytes();
        self.style.marks_thinking() && (is(think_end) || think_start.as_deref().is_some_and(is))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stepflow::llama::Token;

    fn print(color: bool, family: Family, events: &[(&str, Segment, bool)]) -> (String, Message) {
        let style = Style { color, apart: true, family, markers: family.markers() };
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, &style);
        let mut segment = Segment::Question;
        for (piece, of, control) in events {
            if *of != segment {
                segment = *of;
                printer.on_event(&Event::Segment(segment));
            }
            printer.on_event(&Event::Token { token: Token(0), piece: piece.as_bytes(), segment, control: *control });
        }
        let message = printer.finish().unwrap();
        (String::from_utf8(out).unwrap(), message)
    }

    const TAGS: [(&str, Segment, bool); 4] = [
        ("Let me", Segment::Thinking, false),
        ("</think>", Segment::Thinking, false),
        ("\n\n", Segment::Summary, false),
        ("42", Segment::Summary, false),
    ];

    #[test]
    fn thinking_is_framed_in_plain_text() {
        let (text, message) = print(false, Family::ThinkTags, &TAGS);
        assert_eq!(text, "[Start thinking]\nLet me\n[End thinking]\n\n42\n");
        assert_eq!((message.content.as_str(), message.reasoning_content.as_deref()), ("42", Some("Let me")));
    }

    #[test]
    fn thinking_is_dimmed_on_a_terminal() {
        assert_eq!(print(true, Family::ThinkTags, &TAGS).0, "\x1b[2mLet me\x1b[0m\n\n42\n");
    }

    #[test]
    fn an_unmarked_answer_goes_on_where_thinking_ends() {
        let events = [
            (" Ann has 14 fewer coins than Bob,", Segment::Thinking, false),
            (" who has 36. So it is", Segment::Thinking, false),
            (" \\boxed{", Segment::Thinking, false),
            (" 22", Segment::Summary, false),
            ("}.", Segment::Summary, false),
        ];
        let (text, message) = print(true, Family::Implicit, &events);
        let said = "Ann has 14 fewer coins than Bob, who has 36. So it is \\boxed{ 22}.";
        assert_eq!(text.replace("\x1b[2m", "").replace("\x1b[0m", ""), format!("{said}\n"));
        assert_eq!((message.content.as_str(), message.reasoning_content), (said, None));
    }

    #[test]
    fn headers_of_harmony_are_left_out() {
        let (thinking, summary) = (Segment::Thinking, Segment::Summary);
        let events = [
            ("<|channel|>", Segment::Question, true),
            ("analysis", Segment::Question, false),
            ("<|message|>", Segment::Question, true),
            ("Hm", thinking, false),
            ("<|end|>", thinking, true),
            ("<|start|>", thinking, true),
            ("assistant", thinking, false),
            ("<|channel|>", thinking, true),
            ("final", thinking, false),
            ("<|message|>", thinking, true),
            ("42", summary, false),
        ];
        assert_eq!(print(false, Family::Harmony, &events).0, "[Start thinking]\nHm\n[End thinking]\n\n42\n");
    }

    #[test]
    fn a_failed_write_is_kept_for_the_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let style =
            Style { color: false, apart: true, family: Family::ThinkTags, markers: Family::ThinkTags.markers() };
        let mut printer = Printer::new(Full, &style);
        printer.on_event(&Event::Segment(Segment::Thinking));
        assert!(printer.failed());
        assert_eq!(printer.finish().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
