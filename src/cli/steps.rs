//! Thinking on a terminal: dimmed, each step on a line of its own behind its number.

use std::io::{self, Write};

const DIM: &str = "\x1b[2m";
const STEP: &str = "\x1b[36m";
const RESET: &str = "\x1b[0m";

/// Bytes of a reply that is not marked as thinking, up to which it may be a word of greeting.
const SHORT_REPLY: usize = 80;

/// More bytes than the opening of an answer has.
const OPENING: usize = 32;

/// Lays steps out.
pub struct Steps {
    /// Whether nothing marks thinking: its first words may be all there is to say, and a step's the opening of the answer.
    tentative: bool,
    /// Steps of which nothing is shown yet, and their text so far.
    held: Vec<(usize, Vec<u8>)>,
    /// White space that may be the end of the step, or a character of which not all has come.
    rest: Vec<u8>,
    /// Whether anything is shown.
    shown: bool,
}

impl Steps {
    /// Of an answer yet to come.
    pub fn new(tentative: bool) -> Self {
        Self { tentative, held: Vec::new(), rest: Vec::new(), shown: false }
    }

    /// A step starts.
    pub fn start(&mut self, number: usize, out: &mut impl Write) -> io::Result<()> {
        if self.shown {
            self.show(out)?;
        }
        self.rest.clear();
        self.held.push((number, Vec::new()));
        Ok(())
    }

    /// Its next text.
    pub fn text(&mut self, piece: &[u8], out: &mut impl Write) -> io::Result<()> {
        let Some((_, head)) = self.held.last_mut() else { return self.go_on(piece, out) };
        head.extend_from_slice(piece);
        let patience = match (self.tentative, self.shown) {
            (false, _) => 0,
            (true, true) => OPENING,
            (true, false) => SHORT_REPLY,
        };
        let waiting: usize = self.held.iter().map(|(_, text)| text.trim_ascii().len()).sum();
        if waiting > patience { self.show(out) } else { Ok(()) }
    }

    /// Thinking has ended and an answer follows.
    pub fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        let held: Vec<u8> = self.held.drain(..).flat_map(|(_, text)| text).collect();
        let rest = std::mem::take(&mut self.rest);
        if !self.tentative {
            return if self.shown { out.write_all(b"\n\n") } else { Ok(()) };
        }
        // What opens an answer is part of it.
        match held.trim_ascii_start() {
            [] => out.write_all(&rest),
            text if self.shown => out.write_all(b"\n\n").and_then(|()| out.write_all(text)),
            text => out.write_all(text),
        }
    }

    /// Thinking is all there is.
    pub fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.shown { self.show(out) } else { self.end(out) }
    }

    /// Shows the steps that were held, but empty ones.
    fn show(&mut self, out: &mut impl Write) -> io::Result<()> {
        for (number, text) in std::mem::take(&mut self.held) {
            let text = text.trim_ascii_start();
            if !text.is_empty() {
                let line_break = if self.shown { "\n" } else { "" };
                write!(out, "{line_break}{STEP}[{number}]{RESET} ")?;
                self.rest.clear();
                self.go_on(text, out)?;
            }
        }
        Ok(())
    }

    fn go_on(&mut self, piece: &[u8], out: &mut impl Write) -> io::Result<()> {
        self.rest.extend_from_slice(piece);
        let whole = match std::str::from_utf8(&self.rest) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.rest.len(),
        };
        let text: Vec<u8> = self.rest.drain(..self.rest[..whole].trim_ascii_end().len()).collect();
        if text.is_empty() {
            return Ok(());
        }
        self.shown = true;
        // What is said meanwhile, or typed ahead, is not dimmed.
        out.write_all(&[DIM.as_bytes(), &text, RESET.as_bytes()].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal shows of these steps, each in pieces (`|`), and of an answer after them; dimmed text in `<>`.
    fn shown(tentative: bool, steps: &[&str], answer: Option<&str>) -> String {
        let (mut steps_shown, mut out) = (Steps::new(tentative), Vec::new());
        for (number, step) in (1..).zip(steps) {
            steps_shown.start(number, &mut out).unwrap();
            step.split('|').for_each(|piece| steps_shown.text(piece.as_bytes(), &mut out).unwrap());
        }
        match answer {
            Some(answer) => steps_shown.end(&mut out).and_then(|()| out.write_all(answer.as_bytes())).unwrap(),
            None => steps_shown.finish(&mut out).unwrap(),
        }
        let text = String::from_utf8(out).unwrap();
        let text = text.replace(&format!("{RESET}{DIM}"), "").replace(STEP, "").replace(&format!("]{RESET} "), "] ");
        text.replace(DIM, "<").replace(RESET, ">")
    }

    #[test]
    fn steps_stand_on_lines_of_their_own() {
        let steps = ["Ann has| 14 fewer.", " Bob| has 36.\n\n", "So| 22:\n- a\n- b|\n"];
        let lines = "[1] <Ann has 14 fewer.>\n[2] <Bob has 36.>\n[3] <So 22:\n- a\n- b>";
        assert_eq!(shown(false, &steps, None), lines);
        assert_eq!(shown(false, &steps, Some("22")), format!("{lines}\n\n22"));
    }

    #[test]
    fn empty_steps_are_not_shown() {
        assert_eq!(shown(false, &["Ann has 14.", "\n|\n"], Some("22")), "[1] <Ann has 14.>\n\n22");
        assert_eq!(shown(false, &["\n\n"], Some("22")), "22");
        assert_eq!(shown(false, &["\n"], None), "");
        assert_eq!(shown(false, &["a", " ", "b"], None), "[1] <a>\n[3] <b>");
    }

    #[test]
    fn characters_stay_whole() {
        let (mut steps, mut out) = (Steps::new(false), Vec::new());
        steps.start(1, &mut out).unwrap();
        "a\u{1F914}b".bytes().for_each(|byte| steps.text(&[byte], &mut out).unwrap());
        assert!(String::from_utf8(out).unwrap().contains("\u{1F914}"));
    }

    const FIRST: &str = "To find how many coins Ann has, first find how many coins Bob has, who has three dozen.";

    #[test]
    fn a_short_reply_is_not_called_thinking() {
        let hello = "Hello!| How can I help you today?";
        assert_eq!(shown(true, &[hello], None), hello.replace('|', ""));
        assert_eq!(
            shown(true, &["Hello, I am an assistant.", " How can I| help?"], None),
            "Hello, I am an assistant. How can I help?"
        );
        assert_eq!(shown(true, &["The final answer is"], Some(" 8.")), "The final answer is 8.");
        assert_eq!(shown(true, &[FIRST], None), format!("[1] <{FIRST}>"));
    }

    #[test]
    fn what_opens_an_answer_is_shown_with_it() {
        let first = format!("[1] <{FIRST}>");
        assert_eq!(shown(true, &[FIRST, " Bob| has 36."], None), format!("{first}\n[2] <Bob has 36.>"));
        assert_eq!(shown(true, &[FIRST, "\n\n|Answer:"], Some(" 8")), format!("{first}\n\nAnswer: 8"));
        assert_eq!(
            shown(true, &[FIRST, "\n\n**|Final Answer**"], Some("\n\n8")),
            format!("{first}\n\n**Final Answer**\n\n8")
        );
        let long = " Therefore, the number of coins that Ann has is $\\boxed{";
        assert_eq!(shown(true, &[FIRST, long], Some("8}$.")), format!("{first}\n[2] <{}>8}}$.", long.trim()));
        let spaced = " Therefore Ann has, after all of this work, **Answer**: ";
        assert_eq!(shown(true, &[FIRST, spaced], Some("8")), format!("{first}\n[2] <{}> 8", spaced.trim()));
    }
}
