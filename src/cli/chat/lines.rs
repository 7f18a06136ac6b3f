//! Where the user's messages come from: a terminal with a line editor, or plain lines.

use std::io::{BufRead, IsTerminal, StdinLock, Write};

use anyhow::Context as _;

use super::editor::Editor;
use super::typed::{self, Line, Typed};

/// Where messages come from.
pub enum Lines {
    /// A terminal.
    Editor(Box<Editor>),
    /// A pipe, or `--simple-io`.
    Plain(StdinLock<'static>),
}

impl Lines {
    /// Messages from stdin.
    ///
    /// # Errors
    /// When it is a terminal that cannot be used.
    pub fn new(simple: bool, color: bool) -> anyhow::Result<Self> {
        match simple || !std::io::stdin().is_terminal() {
            true => Ok(Self::Plain(std::io::stdin().lock())),
            false => Ok(Self::Editor(Box::new(Editor::new(color)?))),
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// When stdin cannot be read, or holds what is no text.
    pub fn next(&mut self) -> anyhow::Result<Line> {
        match self {
            Self::Editor(editor) => editor.next(),
            Self::Plain(stdin) => plain(stdin),
        }
    }
}

fn plain(stdin: &mut impl BufRead) -> anyhow::Result<Line> {
    let mut message = String::new();
    let mut prompt = "> ";
    loop {
        let _ = write!(std::io::stderr(), "{prompt}");
        let before = message.len();
        let at_end = stdin.read_line(&mut message).context("cannot read stdin as UTF-8 text")? == 0;
        if at_end {
            // No line has followed the last one.
            let whole = message.strip_suffix('\n').unwrap_or(&message);
            return Ok(if message.is_empty() { Line::End } else { Line::Typed(Typed::new(whole)) });
        }
        message.truncate(message.trim_end_matches(['\n', '\r']).len().max(before));
        if !typed::goes_on(&message) {
            return Ok(Line::Typed(Typed::new(&message)));
        }
        message.push('\n');
        prompt = "... ";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(mut input: &[u8]) -> Vec<String> {
        let mut said = Vec::new();
        while let Line::Typed(typed) = plain(&mut input).unwrap() {
            said.push(typed.text);
        }
        said
    }

    #[test]
    fn a_message_ends_with_its_last_line() {
        let input = "one\r\n\n\"\"\"\r\ntwo\r\n\r\nlines\r\n\"\"\"\r\nthree\\\nfour\n\"\"\"\nfive\n";
        assert_eq!(said(input.as_bytes()), ["one", "", "two\n\nlines", "three\nfour", "five"]);
        for (input, last) in [("one", "one"), ("one\\", "one"), ("one\\\n", "one"), ("\"\"\"\none\n\n", "one")] {
            assert_eq!(said(input.as_bytes()), [last], "{input:?}");
        }
        assert!(plain(&mut &b"caf\xe9\n"[..]).is_err());
    }
}
