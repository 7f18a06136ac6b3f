//! The line editor of a chat on a terminal: lines that go on, completion, history, and what Ctrl-C does to a line.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::{Hint, Hinter};
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Behavior, Cmd, ColorMode, CompletionType, ConditionalEventHandler, Config, Context, Event, EventContext,
    EventHandler, KeyEvent, RepeatCount,
};

use super::commands;
use super::typed::{self, Line, Typed};

/// Lines that the history keeps.
const HISTORY: usize = 1000;

const PROMPT: (&str, &str) = ("> ", "\x1b[1m> \x1b[0m");

/// The editor.
pub struct Editor {
    editor: rustyline::Editor<Helper, DefaultHistory>,
    history: Option<PathBuf>,
    /// Whether the line that Ctrl-C was pressed on was empty.
    was_empty: Arc<AtomicBool>,
    /// Ctrl-C was the last thing pressed.
    interrupted: bool,
}

impl Editor {
    /// An editor on the terminal that stdin is.
    pub fn new(color: bool) -> anyhow::Result<Self> {
        // A redirected stdout holds answers alone.
        let behavior = if std::io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder()
            .behavior(behavior)
            .color_mode(if color { ColorMode::Enabled } else { ColorMode::Disabled })
            .completion_type(CompletionType::List)
            .max_history_size(HISTORY)?
            .build();
        let mut editor = rustyline::Editor::with_config(config).context("cannot use this terminal; try --simple-io")?;
        editor.set_helper(Some(Helper::default()));
        let was_empty = Arc::new(AtomicBool::new(false));
        let on_interrupt = OnInterrupt(was_empty.clone());
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(on_interrupt)));
        let history = history_file();
        if let Some(path) = &history {
            // There is none yet on the first run; one that cannot be read is none.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history, was_empty, interrupted: false })
    }

    /// The next message.
    ///
    /// # Errors
    /// When the terminal fails.
    pub fn next(&mut self) -> anyhow::Result<Line> {
        loop {
            match self.editor.readline(&PROMPT) {
                Ok(line) => {
                    self.interrupted = false;
                    self.remember(&line);
                    return Ok(Line::Typed(Typed::new(&line)));
                }
                Err(ReadlineError::Eof) => return Ok(Line::End),
                Err(ReadlineError::Interrupted) => {
                    let is_empty = self.was_empty.load(Ordering::Relaxed);
                    if std::mem::replace(&mut self.interrupted, true) && is_empty {
                        return Ok(Line::Interrupted);
                    }
                    say!("(Ctrl-C once more leaves)");
                }
                Err(error) => return Err(error).context("cannot read from the terminal"),
            }
        }
    }

    fn remember(&mut self, line: &str) {
        if self.editor.add_history_entry(line).is_ok_and(|added| added)
            && let Some(path) = &self.history
        {
            // At once, for not every end is an orderly one. A history that cannot be written is no reason to stop.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = self.editor.append_history(path);
        }
    }
}

/// `stepflow/history` in the user's folder for such (`XDG_STATE_HOME`, else `~/.local/state`).
fn history_file() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder =
        named.or_else(|| Some(std::env::home_dir()?.join(".local/state")).filter(|folder| folder.is_absolute()));
    folder.map(|folder| folder.join("stepflow/history"))
}

/// Notes what Ctrl-C is pressed on.
struct OnInterrupt(Arc<AtomicBool>);

impl ConditionalEventHandler for OnInterrupt {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        self.0.store(context.line().is_empty(), Ordering::Relaxed);
        Some(Cmd::Interrupt)
    }
}

#[derive(Default)]
struct Helper {
    files: FilenameCompleter,
}

impl rustyline::Helper for Helper {}

impl Validator for Helper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        match typed::goes_on(context.input()) {
            true => Ok(ValidationResult::Incomplete),
            false => Ok(ValidationResult::Valid(None)),
        }
    }
}

impl Completer for Helper {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        if line.starts_with("/read ") {
            return self.files.complete(line, position, context);
        }
        let whole = commands::completions(&line[..position]).into_iter();
        // Of words that follow a command, only the words are listed.
        let word = line[..position].rfind(' ').map_or(0, |space| space + 1);
        Ok((
            word,
            whole
                .map(|whole| Pair { display: whole[word..].to_owned(), replacement: whole[word..].to_owned() })
                .collect(),
        ))
    }
}

impl Hinter for Helper {
    type Hint = HowToEnd;

    fn hint(&self, line: &str, position: usize, _: &Context<'_>) -> Option<HowToEnd> {
        (position == line.len() && line.ends_with('\n') && typed::is_quoted(&line[..line.len() - 1]))
            .then_some(HowToEnd)
    }
}

impl Highlighter for Helper {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        format!("\x1b[2m{hint}\x1b[0m").into()
    }
}

/// A reminder on the empty lines of a quoted message.
struct HowToEnd;

impl Hint for HowToEnd {
    fn display(&self) -> &str {
        "(\"\"\" ends the message)"
    }

    fn completion(&self) -> Option<&str> {
        None
    }
}
