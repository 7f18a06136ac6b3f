//! What a user types as one message: a line, or several where a line ends with `\` or text stands between `"""`.

/// What came.
pub enum Line {
    /// A message or a command.
    Typed(Typed),
    /// The end of input.
    End,
    /// Ctrl-C, to leave.
    Interrupted,
}

/// Opens and closes text of several lines.
const QUOTES: &str = "\"\"\"";

/// What a line leaves open.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Nothing,
    /// It ends with `\`.
    Line,
    /// Its `"""` are not closed.
    Quotes,
}

impl Open {
    /// What is open after a further line.
    fn after(self, line: &str) -> Self {
        let (was_quoted, line) = (self == Self::Quotes, line.trim_end_matches('\r'));
        let at_end = line.trim_end().ends_with(QUOTES);
        let at_edge = at_end || !was_quoted && line.trim_start().starts_with(QUOTES);
        let turns = at_edge && line.matches(QUOTES).count() % 2 == 1;
        match was_quoted != turns {
            true => Self::Quotes,
            // LaTeX's line break is two backslashes, and ends nothing here.
            false if !was_quoted && line.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1 => Self::Line,
            false => Self::Nothing,
        }
    }
}

fn open_after(typed: &str) -> Open {
    typed.split('\n').fold(Open::Nothing, Open::after)
}

/// Whether the message goes on in the next line.
pub fn goes_on(typed: &str) -> bool {
    open_after(typed) != Open::Nothing
}

/// Whether `"""` are open.
pub fn is_quoted(typed: &str) -> bool {
    open_after(typed) == Open::Quotes
}

/// A message as it was meant.
#[derive(Debug, PartialEq)]
pub struct Typed {
    /// Its text, without what held its lines together.
    pub text: String,
    /// Whether it can be a command: one line, and not in quotes.
    pub is_line: bool,
}

impl Typed {
    /// Reads all lines of a message.
    pub fn new(typed: &str) -> Self {
        match unquoted(typed) {
            Some(text) => Self { text, is_line: false },
            None => Self { text: joined(typed), is_line: !typed.contains('\n') },
        }
    }
}

/// What stands between the quotes of a message that is nothing else.
fn unquoted(typed: &str) -> Option<String> {
    let inner = typed.trim().strip_prefix(QUOTES)?;
    let is_whole = match inner.rsplit_once('\n') {
        Some((before, _)) => before.split('\n').scan(Open::Quotes, step).all(|open| open == Open::Quotes),
        None => inner.matches(QUOTES).count() <= 1,
    };
    // Input can end before the quotes are closed.
    let inner = inner.strip_suffix(QUOTES).or_else(|| is_quoted(typed).then_some(inner)).filter(|_| is_whole)?;
    let (first, rest) = inner.split_once('\n').unwrap_or((inner, ""));
    let inner = if first.trim().is_empty() { rest } else { inner };
    let (rest, last) = inner.rsplit_once('\n').unwrap_or(("", inner));
    Some(if last.trim().is_empty() { rest } else { inner }.to_owned())
}

/// Lines without the backslashes that continued them.
fn joined(typed: &str) -> String {
    let lines = typed.split('\n').scan(Open::Nothing, |open, line| {
        let line = line.trim_end_matches('\r');
        Some(if step(open, line)? == Open::Line { &line[..line.len() - 1] } else { line })
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn step(open: &mut Open, line: &str) -> Option<Open> {
    *open = open.after(line);
    Some(*open)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said after each of these lines.
    fn messages(lines: &str) -> Vec<String> {
        let (mut typed, mut said) = (String::new(), Vec::new());
        for line in lines.split('\n') {
            typed += line;
            match goes_on(&typed) {
                true => typed.push('\n'),
                false => said.push(Typed::new(&std::mem::take(&mut typed)).text),
            }
        }
        said.extend((!typed.is_empty()).then(|| Typed::new(typed.trim_end_matches('\n')).text));
        said
    }

    #[test]
    fn a_backslash_at_the_end_goes_on_in_the_next_line() {
        assert_eq!(messages("one \\\ntwo\nthree"), ["one \ntwo", "three"]);
        assert_eq!(messages("a\\\nb\\\nc"), ["a\nb\nc"]);
        assert_eq!(messages("\\\n\\\nc"), ["\n\nc"]);
        assert_eq!(messages("a\\\n"), ["a\n"]);
        assert_eq!(messages("ends\\"), ["ends"], "input ends with it");
        assert_eq!(messages("/exit\\\nnow"), ["/exit\nnow"]);
    }

    #[test]
    fn other_backslashes_are_text() {
        for line in [r"1 & 2 \\", r"a \ b", r"\frac12", r"C:\dir\ ", r"\\\\"] {
            assert_eq!(messages(line), [line]);
        }
        assert_eq!(messages("a \\\\\\\nb"), ["a \\\\\nb"]);
    }

    #[test]
    fn quotes_hold_lines_together() {
        assert_eq!(messages("\"\"\"\none\n\ntwo\n\"\"\"\nthree"), ["one\n\ntwo", "three"]);
        assert_eq!(messages("\"\"\"one\ntwo\"\"\""), ["one\ntwo"]);
        assert_eq!(messages("  \"\"\" \n  one\n \"\"\"  "), ["  one"]);
        assert_eq!(messages("\"\"\"one\"\"\""), ["one"]);
        assert_eq!(messages("\"\"\"\ntwo \\\nlines\n\"\"\""), ["two \\\nlines"], "a backslash is text there");
        assert_eq!(messages("\"\"\"\nnever closed"), ["never closed"]);
        assert_eq!(messages("\"\"\"\"\"\""), [""]);
        assert_eq!(messages("\"\"\"\n\"\"\""), [""]);
    }

    #[test]
    fn quotes_inside_a_message_stay() {
        assert_eq!(messages("Sum up: \"\"\"\na\nb\n\"\"\"\nc"), ["Sum up: \"\"\"\na\nb\n\"\"\"", "c"]);
        assert_eq!(
            messages("\"\"\"\ndef f():\n    \"\"\"Does it.\"\"\"\n\"\"\""),
            ["def f():\n    \"\"\"Does it.\"\"\""]
        );
        for line in ["Use \"\"\" in Python", "\"\"\"a\"\"\" and \"\"\"b\"\"\"", "\"quoted\"", "\"\""] {
            assert_eq!(messages(line), [line]);
        }
        assert_eq!(messages("a \\\n\"\"\"\nb\n\"\"\""), ["a \n\"\"\"\nb\n\"\"\""]);
    }

    #[test]
    fn only_a_line_by_itself_can_be_a_command() {
        assert!(Typed::new("/exit").is_line);
        for typed in ["\"\"\"/exit\"\"\"", "\"\"\"\n/exit\n\"\"\"", "/exit\nnow", "/exit\\\nnow"] {
            assert!(!Typed::new(typed).is_line, "{typed}");
        }
    }
}
