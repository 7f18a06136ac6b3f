//! What can be told to a chat beside messages: lines that begin with `/`.

use std::path::{Path, PathBuf};

use super::typed::Typed;

/// A command: its name, what may follow it, and what it does.
struct Entry {
    name: &'static str,
    follows: &'static str,
    does: &'static str,
    /// The words that may follow.
    words: &'static [&'static str],
}

const fn entry(name: &'static str, follows: &'static str, does: &'static str, words: &'static [&'static str]) -> Entry {
    Entry { name, follows, does, words }
}

const ENTRIES: [Entry; 7] = [
    entry("/exit", "", "leave; so do Ctrl-D, and Ctrl-C twice", &[]),
    entry("/regen", "", "answer the last message again (greedy, it is the same answer)", &[]),
    entry("/clear", "", "start over; the system prompt stays", &[]),
    entry("/read", "FILE", "put a file in front of the next message", &[]),
    entry("/stepflow", "on|off", "switch StepFlow's repairs", &["on", "off"]),
    entry("/stats", "[table]", "what the repairs did: in words, or a row for each layer", &["table"]),
    entry("/help", "", "this list", &[]),
];

/// A line that is a command.
#[derive(Debug, PartialEq)]
pub enum Command<'a> {
    Exit,
    Regen,
    Clear,
    Read(&'a str),
    StepFlow(&'a str),
    Stats(&'a str),
    Help,
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    /// The command that was typed, if it is one. A path is none, nor is a comment in a program.
    pub fn of(typed: &'a Typed) -> Option<Self> {
        let line = typed.text.trim();
        let name = line.split_whitespace().next().filter(|_| typed.is_line)?;
        let is_name =
            |rest: &str| !rest.contains('/') && rest.chars().next().is_none_or(|c| c.is_alphabetic() || c == '?');
        name.strip_prefix('/').filter(|rest| is_name(rest))?;
        let rest = line[name.len()..].trim();
        Some(match name {
            "/exit" => Self::Exit,
            "/regen" => Self::Regen,
            "/clear" => Self::Clear,
            "/read" => Self::Read(rest),
            "/stepflow" => Self::StepFlow(rest),
            "/stats" => Self::Stats(rest),
            "/help" => Self::Help,
            _ => Self::Unknown(name),
        })
    }
}

/// The names of all commands.
pub fn names() -> String {
    ENTRIES.map(|entry| entry.name).join(" ")
}

/// What `/help` says.
pub fn help() -> String {
    let line = |entry: &Entry| format!("{:17} {}\n", format!("{} {}", entry.name, entry.follows), entry.does);
    let commands: String = ENTRIES.iter().map(line).collect();
    commands
        + "\nA line that ends with \\ goes on in the next; so does all between \"\"\" and \"\"\".\n\
           Ctrl-C stops an answer, and clears a line. Tab completes commands and names of\n\
           files; the arrow keys bring back what was said before."
}

/// The beginnings of lines that `line` can become: commands, or words that follow one.
pub fn completions(line: &str) -> Vec<String> {
    let named = ENTRIES.iter().flat_map(|entry| {
        let space = if entry.follows.is_empty() { "" } else { " " };
        let words = entry.words.iter().map(|word| format!("{} {word}", entry.name));
        // The words of a command alone are for who has typed it.
        let name = format!("{}{space}", entry.name);
        let words = words.filter(|_| line.starts_with(&name)).collect::<Vec<_>>();
        if words.is_empty() { vec![name] } else { words }
    });
    named.filter(|whole| line.starts_with('/') && whole.starts_with(line)).collect()
}

/// The file that `/read` is to read: as typed, or else without the quotes or backslashes that shells, terminals and the
/// completion of names put around spaces; `~/` is the user's folder.
pub fn path(typed: &str) -> PathBuf {
    if Path::new(typed).exists() {
        return typed.into();
    }
    let quoted = |quote| typed.strip_prefix(quote)?.strip_suffix(quote);
    let bare = match quoted('"').or_else(|| quoted('\'')) {
        Some(inner) => inner.to_owned(),
        None if cfg!(windows) => typed.to_owned(),
        None => unescaped(typed),
    };
    match (bare.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => bare.into(),
    }
}

fn unescaped(typed: &str) -> String {
    let mut chars = typed.chars();
    std::iter::from_fn(|| match chars.next() {
        Some('\\') => chars.next(),
        c => c,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_lines_that_begin_with_a_word() {
        let of = |line: &str| format!("{:?}", Command::of(&Typed::new(line)));
        assert_eq!(of("/exit"), "Some(Exit)");
        assert_eq!(of("  /exit "), "Some(Exit)");
        assert_eq!(of("/read  my notes.txt "), "Some(Read(\"my notes.txt\"))");
        assert_eq!(of("/stepflow\ton"), "Some(StepFlow(\"on\"))");
        assert_eq!(of("/stats"), "Some(Stats(\"\"))");
        assert_eq!(of("/rewind now"), "Some(Unknown(\"/rewind\"))");
        assert_eq!(of("/"), "Some(Unknown(\"/\"))");
        assert_eq!(of("/?"), "Some(Unknown(\"/?\"))");
        for text in ["hi", "/usr/bin/env is what?", "// a comment", "/* a comment */", "/2 of it", "", "a /exit"] {
            assert_eq!(of(text), "None", "{text}");
        }
        for text in ["\"\"\"/exit\"\"\"", "/exit\nnow"] {
            assert_eq!(of(text), "None", "{text}");
        }
    }

    #[test]
    fn every_command_is_known_and_helped_with() {
        for Entry { name, .. } in ENTRIES {
            assert!(!matches!(Command::of(&Typed::new(name)), None | Some(Command::Unknown(_))), "{name}");
            assert!(help().contains(name) && names().contains(name));
        }
        assert!(help().lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn beginnings_are_completed() {
        assert_eq!(completions("/").len(), ENTRIES.len());
        assert_eq!(completions("/re"), ["/regen", "/read "]);
        assert_eq!(completions("/st"), ["/stepflow ", "/stats "]);
        assert_eq!(completions("/stepflow "), ["/stepflow on", "/stepflow off"]);
        assert_eq!(completions("/stepflow of"), ["/stepflow off"]);
        assert_eq!(completions("/stats t"), ["/stats table"]);
        for line in ["", "hi", "/x", "/exit now", "/read x", "/clear "] {
            assert!(completions(line).is_empty(), "{line}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn files_are_found_however_their_names_are_quoted() {
        let home = std::env::home_dir().unwrap();
        for (typed, meant) in [
            ("no such.txt", "no such.txt"),
            (r"no\ such\(1\).txt", "no such(1).txt"),
            ("'no such.txt'", "no such.txt"),
            ("\"no such.txt\"", "no such.txt"),
            ("\"", "\""),
            ("", ""),
        ] {
            assert_eq!(path(typed), Path::new(meant), "{typed}");
        }
        assert_eq!(path("~/no such.txt"), home.join("no such.txt"));
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join(r"odd\name'.txt");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(path(odd.to_str().unwrap()), odd);
    }
}
