//! The chat on a terminal: what a user types, and what stands on the screen.
#![cfg(unix)]

mod common;
mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rexpect::session::PtySession;
use stepflow::trace::TraceFile;
use tempfile::TempDir;

const QUESTION: &str =
    "Ann has 14 fewer coins than Bob. Ida has 9 coins. Bob has 3 dozen coins. How many coins does Ann have?";

/// A hang guard, in milliseconds.
const LIMIT: u64 = 60_000;

/// The program on a terminal, with the embedded model and folders of its own.
struct Terminal {
    session: PtySession,
    /// What was shown so far.
    shown: String,
}

impl Terminal {
    /// Starts it; a visible skip where there are no pseudo-terminals.
    fn start(folder: &Path, args: &[&str]) -> Option<Self> {
        let mut command = program::stepflow(["-t", "1", "--no-warmup"].iter().chain(args));
        command.env("XDG_CACHE_HOME", folder.join("cache")).env("XDG_STATE_HOME", folder.join("state"));
        Self::run(command)
    }

    fn run(mut command: Command) -> Option<Self> {
        if !Path::new("/dev/ptmx").exists() {
            common::skip("this machine has no pseudo-terminals");
            return None;
        }
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        let session = rexpect::session::spawn_command(command, Some(LIMIT)).unwrap();
        Some(Self { session, shown: String::new() })
    }

    /// As [`Terminal::start`], and waits for the prompt.
    fn at_prompt(folder: &Path, args: &[&str]) -> Option<Self> {
        let mut terminal = Self::start(folder, args)?;
        terminal.wait_for("Ctrl-C stops an answer");
        terminal.wait_for("> ");
        Some(terminal)
    }

    fn press(&mut self, keys: &str) {
        self.session.send(keys).unwrap();
        self.session.flush().unwrap();
    }

    fn wait_for(&mut self, text: &str) {
        let before = self.session.exp_string(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        self.shown += &(before + text);
    }

    /// Waits for the end. Returns the exit code and all that was shown, without colours and movements.
    fn end(mut self) -> (i32, String) {
        self.shown += &self.session.exp_eof().unwrap();
        // Its type has no public name.
        let status = format!("{:?}", self.session.process().wait().unwrap());
        let code =
            status.strip_prefix("Exited(").and_then(|rest| rest.trim_end_matches(')').rsplit(' ').next()?.parse().ok());
        (code.unwrap_or_else(|| panic!("{status}: {}", self.shown)), plain(&self.shown))
    }
}

/// Text without the sequences that a terminal obeys.
fn plain(shown: &str) -> String {
    let mut parts = shown.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest));
    rest.fold(first, |all, part| all + part).replace('\r', "")
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn trace_text(path: &Path) -> String {
    let trace = TraceFile::read(&std::fs::read(path).unwrap()).unwrap();
    let bytes: Vec<u8> = trace.tokens.iter().flat_map(|token| token.piece.clone()).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn steps_stand_on_lines_of_their_own_and_none_is_empty() {
    let folder = folder();
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &["--stepflow"]) else { return };
    terminal.press(&format!("{QUESTION}\r"));
    terminal.wait_for("\\boxed{22}");
    terminal.press("/stats\r/exit\r");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    let steps: Vec<&str> = shown.lines().filter(|line| line.starts_with('[') && !line.contains("t/s")).collect();
    assert!(steps.len() > 2, "{shown}");
    for (number, line) in (1..).zip(&steps) {
        let text = line.strip_prefix(&format!("[{number}] ")).unwrap_or_else(|| panic!("{line}"));
        assert!(text.len() > 10, "{line}");
    }
    assert!(shown.contains("OEB raised the share of attention on the question from "), "{shown}");
    assert!(shown.contains(" rows of layers 0 to 2."), "{shown}");
    assert!(shown.contains("steps in layers 9 to 11"), "{shown}");
}

#[test]
fn lines_typed_ahead_are_kept() {
    let folder = folder();
    let Some(mut terminal) = Terminal::start(folder.path(), &[]) else { return };
    terminal.press(&format!("{QUESTION}\n/stepflow on\n/stepflow off\n{QUESTION}\n/exit\n"));
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    assert_eq!(shown.matches("\\boxed{22}").count(), 2, "{shown}");
    assert!(shown.contains("StepFlow is on.") && shown.contains("StepFlow is off."), "{shown}");
}

#[test]
fn messages_can_have_several_lines() {
    let folder = folder();
    let trace = folder.path().join("trace.json");
    let args = ["-n", "1", "--save-trace", trace.to_str().unwrap()];
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &args) else { return };
    terminal.press("one\\\rtwo\r");
    terminal.wait_for("t/s ]");
    terminal.press("\"\"\"\rthree\r/exit\r\r");
    terminal.wait_for("ends the message");
    terminal.press("four\r\"\"\"\r");
    terminal.wait_for("t/s ]");
    terminal.press("/exit\r");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    let text = trace_text(&trace);
    assert!(text.contains("user\none\ntwo<|im_end|>"), "{text}");
    assert!(text.contains("user\nthree\n/exit\n\nfour<|im_end|>"), "{text}");
}

#[test]
fn ctrl_c_clears_a_line_and_twice_it_leaves() {
    let folder = folder();
    let trace = folder.path().join("trace.json");
    let args = ["-n", "1", "--save-trace", trace.to_str().unwrap()];
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &args) else { return };
    for _ in 0..3 {
        terminal.press("half a line\x03");
        terminal.wait_for("once more leaves");
        terminal.wait_for("> ");
    }
    terminal.press("whole\r");
    terminal.wait_for("t/s ]");
    terminal.wait_for("> ");
    terminal.press("\x03");
    terminal.wait_for("once more leaves");
    terminal.wait_for("> ");
    terminal.press("\x03");
    let (code, shown) = terminal.end();
    assert_eq!(code, 130, "{shown}");
    let text = trace_text(&trace);
    assert!(text.contains("user\nwhole<|im_end|>") && !text.contains("half"), "{text}");
}

#[test]
fn ctrl_d_leaves() {
    let folder = folder();
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &["-n", "1"]) else { return };
    terminal.press("hi\r");
    terminal.wait_for("t/s ]");
    terminal.wait_for("> ");
    terminal.press("\x04");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
}

#[test]
fn tab_completes_commands_and_files() {
    let folder = folder();
    std::fs::write(folder.path().join("some notes.txt"), "wait, first add").unwrap();
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &[]) else { return };
    terminal.press("/he\t\r");
    terminal.wait_for("this list");
    terminal.wait_for("> ");
    terminal.press(&format!("/rea\t{}/so\t\r", folder.path().display()));
    terminal.wait_for("goes in front of your next message");
    terminal.wait_for("> ");
    terminal.press("/stepf\to\t\t");
    terminal.wait_for("off");
    terminal.press("n\r");
    terminal.wait_for("StepFlow is on.");
    terminal.wait_for("> ");
    terminal.press("/ex\t\r");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("some notes.txt ("), "{shown}");
    assert!(!shown.contains("never engaged"), "nothing was asked: {shown}");
}

#[test]
fn history_goes_from_run_to_run() {
    let folder = folder();
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &[]) else { return };
    terminal.press("/stepflow off\r/exit\r");
    assert_eq!(terminal.end().0, 0);
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &[]) else { return };
    terminal.press("\x1b[A\x1b[A\r");
    terminal.wait_for("StepFlow is off.");
    terminal.press("/exit\r");
    assert_eq!(terminal.end().0, 0);

    let history = folder.path().join("state/stepflow/history");
    assert!(std::fs::read_to_string(&history).unwrap().contains("/stepflow off"));
    // Where none can be kept there is none.
    std::fs::remove_dir_all(folder.path().join("state")).unwrap();
    std::fs::write(folder.path().join("state"), "a file").unwrap();
    let Some(mut terminal) = Terminal::at_prompt(folder.path(), &[]) else { return };
    terminal.press("/stepflow off\r/exit\r");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0);
    assert!(!shown.contains("history") && !shown.contains("cannot"), "{shown}");
}

#[test]
fn a_redirected_stdout_holds_answers_alone() {
    let folder = folder();
    let answers = folder.path().join("answers.txt");
    let mut command = program::program("sh", ["-c", "exec \"$0\" -t 1 --no-warmup > \"$1\""]);
    command.arg(PathBuf::from(env!("CARGO_BIN_EXE_stepflow"))).arg(&answers);
    command.env("XDG_CACHE_HOME", folder.path().join("cache")).env("XDG_STATE_HOME", folder.path());
    let Some(mut terminal) = Terminal::run(command) else { return };
    terminal.wait_for("> ");
    terminal.press(&format!("{QUESTION}\r"));
    terminal.wait_for("t/s ]");
    terminal.press("/exit\r");
    assert_eq!(terminal.end().0, 0);
    let text = std::fs::read_to_string(&answers).unwrap();
    assert!(text.starts_with("[Start thinking]\n") && text.ends_with("\\boxed{22}\n"), "{text:?}");
    assert!(!text.contains('\x1b'), "{text:?}");
}

/// What an ordinary model says is shown in steps where they are asked for.
#[test]
fn an_ordinary_models_steps_are_shown_where_stepflow_is_on() {
    let Some(model) = common::smollm2() else { return };
    let folder = folder();
    let shown = |args: &[&str]| {
        let prompt = "Explain in three long sentences why the sky is blue.";
        let own = ["-m", model.to_str().unwrap(), "-st", "-p", prompt, "-n", "60", "--temp", "0", "-c", "512"];
        Some(Terminal::start(folder.path(), &[&own, args].concat())?.end().1)
    };
    let Some(plain) = shown(&[]) else { return };
    assert!(!plain.contains("[1]"), "{plain}");
    for args in [&["--stepflow"][..], &["--family", "implicit"]] {
        let steps = shown(args).unwrap();
        assert!(steps.contains("\n[1] ") && steps.contains("\n[2] "), "{steps}");
    }
    assert!(!shown(&["--stepflow", "--reasoning-format", "none"]).unwrap().contains("[1]"));
}
