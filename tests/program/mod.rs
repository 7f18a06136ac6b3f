//! Running the program: with input, with a time limit, and with what a user does while it runs.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A hang guard, far above what any of these runs takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Between looks at a running program.
const PAUSE: Duration = Duration::from_millis(2);

/// The program with arguments, and without settings from the environment of the tests.
pub fn stepflow<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    program(env!("CARGO_BIN_EXE_stepflow"), args)
}

/// As [`stepflow`], by another path.
pub fn program<S: AsRef<OsStr>>(path: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LLAMA_ARG_")) {
        command.env_remove(name);
    }
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Outcome {
    /// The exit code; `None` after death by a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What was printed, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Checks the way to fail: this code, nothing on stdout, one line on stderr that holds `says`.
    pub fn assert_fails(&self, code: i32, says: &str) {
        assert_eq!(self.code(), Some(code), "{says}: {self:?}");
        assert!(self.stdout.is_empty(), "{says}: {self:?}");
        self.assert_one_line();
        assert!(self.stderr.contains(says), "expected {says:?}: {}", self.stderr);
    }

    /// Checks that stderr is one line of the program's own.
    pub fn assert_one_line(&self) {
        let one = self.stderr.lines().count() == 1 && self.stderr.ends_with('\n');
        assert!(one && self.stderr.starts_with("stepflow: "), "expected one line of its own: {:?}", self.stderr);
        assert!(!self.stderr.contains("panic"), "{}", self.stderr);
    }
}

/// Runs to the end without input.
pub fn run(command: Command) -> Outcome {
    Running::start(command).finish()
}

/// Runs to the end with `input` on stdin.
pub fn run_with(mut command: Command, input: &[u8]) -> Outcome {
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.say(input);
    running.finish()
}

/// The program while it runs. Dropped before its end, it is killed.
pub struct Running {
    child: Child,
    stdout: Reader,
    stderr: Reader,
    deadline: Instant,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (stdout, stderr): (Option<ChildStdout>, Option<ChildStderr>) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = (Reader::new(stdout), Reader::new(stderr));
        Self { child, stdout, stderr, deadline: Instant::now() + LIMIT }
    }

    /// Writes to stdin, which must be a pipe. A program that ended before it read all is no failure.
    pub fn say(&mut self, input: &[u8]) {
        let _ = self.child.stdin.as_mut().unwrap().write_all(input);
    }

    /// Waits until stdout and stderr satisfy `seen`.
    pub fn wait_until(&mut self, seen: impl Fn(&[u8], &str) -> bool) {
        while !seen(&self.stdout.so_far(), &String::from_utf8_lossy(&self.stderr.so_far())) {
            assert!(self.child.try_wait().unwrap().is_none(), "ended too early: {}", self.said());
            assert!(Instant::now() < self.deadline, "hangs: {}", self.said());
            std::thread::sleep(PAUSE);
        }
    }

    /// What was printed so far.
    pub fn stdout_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    /// What stderr says so far.
    pub fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Closes stdin and waits for the end. A program that hangs is killed, and stderr says so.
    pub fn finish(mut self) -> Outcome {
        drop(self.child.stdin.take());
        while self.child.try_wait().unwrap().is_none() && Instant::now() < self.deadline {
            std::thread::sleep(PAUSE);
        }
        let hangs = self.child.try_wait().unwrap().is_none();
        let _ = self.child.kill();
        let status = self.child.wait().unwrap();
        let mut stderr = String::from_utf8_lossy(&self.stderr.rest()).into_owned();
        if hangs {
            stderr += &format!("(killed after {LIMIT:?})");
        }
        Outcome { status, stdout: self.stdout.rest(), stderr }
    }

    fn said(&self) -> String {
        let text = |reader: &Reader| String::from_utf8_lossy(&reader.so_far()).into_owned();
        format!("stdout {:?}, stderr {:?}", text(&self.stdout), text(&self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe as it fills, so that the program never waits for it.
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn new(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let thread = pipe.map(|mut pipe| {
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                    bytes.lock().unwrap().extend_from_slice(&buffer[..n]);
                }
            })
        });
        Self { bytes, thread }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn rest(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.so_far()
    }
}
