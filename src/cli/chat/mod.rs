//! The default command: a conversation, on a terminal or through a pipe.

mod args;
mod files;

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use stepflow::engine::{
    ChatTemplate, Finish, Message, Request, Sampler, SamplingParams, Session, SessionParams, Summary,
};
use stepflow::llama::Model;

use super::flags::{ReasoningFormat, Switch};
use super::printer::{Printer, Style};
use super::progress::PromptProgress;
use super::setup::{self, Interrupt};
use super::{exit, input, report, saliency};
pub use args::ChatArgs;
pub use files::{check as check_files, save as save_files};

/// Runs the command.
pub fn run(args: &ChatArgs) -> anyhow::Result<u8> {
    check_files(&args.conversation)?;
    let first = args.conversation.first_prompt()?;
    let interrupt = Interrupt::install()?;
    let mut chat = Chat::new(args, interrupt)?;
    let goes_on = !args.conversation.single_turn && (args.conversation.simple_io || std::io::stdin().is_terminal());
    let mut code = exit::OK;
    if let Some(prompt) = first {
        chat.echo(&prompt);
        code = chat.turn(prompt)?;
    } else if !goes_on {
        let mut lines = Lines::new(args.conversation.simple_io)?;
        match lines.next(&chat.style)? {
            Line::Text(text) => code = chat.turn(text)?,
            Line::End => anyhow::bail!("nothing to answer: give a prompt with -p, -f or on stdin"),
            Line::Interrupted => code = exit::INTERRUPTED,
        }
    }
    if goes_on {
        code = chat.converse(code)?;
    }
    save_files(&args.conversation, &chat.session)?;
    if code != exit::INTERRUPTED {
        report::warn_if_never_engaged(chat.session.stepflow(), chat.session.markers());
    }
    saliency::of_conversation(
        args.conversation.saliency.as_deref(),
        args.context.threads,
        chat.session,
        &chat.interrupt,
        code,
    )
}

struct Chat<'a> {
    args: &'a ChatArgs,
    session: Session,
    params: SessionParams,
    template: ChatTemplate,
    sampling: SamplingParams,
    messages: Vec<Message>,
    /// Files read with /read, to go in front of the next message.
    attached: String,
    style: Style,
    interrupt: Interrupt,
}

impl<'a> Chat<'a> {
    fn new(args: &'a ChatArgs, interrupt: Interrupt) -> anyhow::Result<Self> {
        let params = setup::session_params(&args.context, &args.stepflow, args.model.lora()?, &interrupt)?;
        setup::warn_of_idle_settings(&args.stepflow, &params.stepflow, args.conversation.stats.is_some());
        let model = setup::load_model(&args.model)?;
        report::warn_if_family_does_not_fit(&args.stepflow.family, &model);
        let template = setup::chat_template(&args.conversation.template, &model)?;
        let sampling = setup::sampling_params(&args.sampling, &model)?;
        let system = args.conversation.system_prompt()?;
        let mut session = Session::new(model, &params)?;
        setup::warn_of_long_context(&args.context, session.model());
        if !args.conversation.no_warmup {
            session.warm_up()?;
        }
        report::say_family(session.stepflow(), session.family());
        let style = style(args, &session);
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        Ok(Self { args, session, params, template, sampling, messages, attached: String::new(), style, interrupt })
    }

    /// Shows what was asked, where a person would otherwise not see it.
    fn echo(&self, prompt: &str) {
        if !self.args.conversation.no_display_prompt && std::io::stdout().is_terminal() {
            say!("> {prompt}\n");
        }
    }

    /// One user message and its answer. Returns the exit code that the answer would end the program with.
    fn turn(&mut self, text: String) -> anyhow::Result<u8> {
        let content = std::mem::take(&mut self.attached) + &text;
        self.messages.push(Message::new("user", content));
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<u8> {
        let prompt = self.template.render(&self.messages)?;
        let (tokens, question) = self.session.tokenize(&prompt);
        let limit = |n: i64| usize::try_from(n).ok();
        let stop = self.args.conversation.stop_texts();
        let request = Request {
            tokens,
            question,
            max_tokens: limit(self.args.conversation.predict),
            reasoning_budget: limit(self.args.conversation.reasoning_budget),
            stop: &stop,
        };
        // A sampler of its own for each answer: what earlier ones repeated is no reason for a penalty here.
        let mut sampler = Sampler::new(&self.sampling, self.session.model());
        let (message, summary) = generate(&mut self.session, &request, &mut sampler, &self.style, &self.interrupt)?;
        self.messages.push(message);
        report::timings(&summary);
        if summary.finish == Finish::ContextFull {
            let n_ctx = self.session.n_ctx();
            say!("stepflow: the context of {n_ctx} tokens is full and the answer is cut short; use a larger -c");
        }
        Ok(exit::of_finish(summary.finish))
    }

    /// Turn after turn until the user ends it.
    fn converse(&mut self, mut code: u8) -> anyhow::Result<u8> {
        let mut lines = Lines::new(self.args.conversation.simple_io)?;
        report::banner(&self.session);
        loop {
            let line = match lines.next(&self.style)? {
                Line::Text(line) => line,
                Line::End => return Ok(code),
                Line::Interrupted => return Ok(exit::INTERRUPTED),
            };
            let outcome = match line.split_once(' ').map_or((line.trim(), ""), |(word, rest)| (word, rest.trim())) {
                ("", _) => continue,
                ("/exit", _) => return Ok(code),
                ("/clear", _) => {
                    self.messages.retain(|message| message.role == "system");
                    self.attached.clear();
                    say!("The conversation is cleared.");
                    continue;
                }
                ("/read", path) => self.read(Path::new(path)),
                ("/stepflow", setting) => self.switch(setting),
                ("/stats", _) => {
                    report::stats(&self.session);
                    continue;
                }
                ("/regen", _) => self.regenerate(),
                (word, _) if word.starts_with('/') && !word[1..].contains('/') => {
                    say!("stepflow: no command {word}; there are /exit /regen /clear /read /stepflow /stats");
                    continue;
                }
                _ => self.turn(line),
            };
            match outcome {
                Ok(exit::INTERRUPTED) => code = exit::OK,
                Ok(ended) => code = ended,
                // A failed turn does not end the conversation, but a closed stdout does.
                Err(error) if error.downcast_ref::<std::io::Error>().is_some() => return Err(error),
                Err(error) => {
                    self.messages.pop();
                    say!("stepflow: {}", crate::cli::one_line(&error));
                }
            }
        }
    }

    fn regenerate(&mut self) -> anyhow::Result<u8> {
        match self.messages.last() {
            Some(message) if message.role == "assistant" => {
                self.messages.pop();
                self.answer()
            }
            _ => {
                say!("There is no answer to regenerate.");
                Ok(exit::OK)
            }
        }
    }

    fn read(&mut self, path: &Path) -> anyhow::Result<u8> {
        match input::read_text(path) {
            Ok(text) => {
                self.attached += &format!("--- File: {} ---\n{text}\n", path.display());
                say!("{} goes in front of your next message.", path.display());
            }
            Err(error) => say!("stepflow: {}", crate::cli::one_line(&error)),
        }
        Ok(exit::OK)
    }

    /// `/stepflow on|off`. Where the session was made without it, it is made anew; the conversation stays.
    fn switch(&mut self, setting: &str) -> anyhow::Result<u8> {
        match (setting, self.session.stepflow()) {
            ("on" | "off", Some(control)) => control.switch(setting == "on"),
            ("off", None) => {}
            ("on", None) => {
                let params =
                    SessionParams { stepflow: setup::all_repairs(&self.args.stepflow)?, ..self.params.clone() };
                let model: Arc<Model> = self.session.model().clone();
                match Session::new(model, &params) {
                    Ok(session) => (self.session, self.params) = (session, params),
                    Err(error) => say!("stepflow: {error}"),
                }
            }
            _ => {
                say!("stepflow: expected /stepflow on or /stepflow off");
                return Ok(exit::OK);
            }
        }
        let on = self.session.stepflow().is_some_and(|control| control.is_on());
        say!("StepFlow is {}.", if on { "on" } else { "off" });
        Ok(exit::OK)
    }
}

/// Generates an answer and prints it as it comes.
///
/// # Errors
/// When generation fails, or stdout does.
pub fn generate(
    session: &mut Session,
    request: &Request<'_>,
    sampler: &mut Sampler,
    style: &Style,
    interrupt: &Interrupt,
) -> anyhow::Result<(Message, Summary)> {
    session.check(request)?;
    let mut printer = Printer::new(std::io::stdout().lock(), style);
    let mut progress = PromptProgress::default();
    let summary = interrupt.during(|| {
        session.generate(request, sampler, &mut |event| {
            progress.on_event(&event);
            printer.on_event(&event);
            if printer.failed() {
                interrupt.stop();
            }
        })
    });
    let message = printer.finish().context("cannot write to stdout");
    let summary = summary?;
    Ok((message?, summary))
}

/// How answers of this session are shown.
pub fn style(args: &ChatArgs, session: &Session) -> Style {
    let color = match args.conversation.color {
        Switch::On => true,
        Switch::Off => false,
        Switch::Auto => !args.conversation.simple_io && std::io::stdout().is_terminal(),
    };
    let (family, found) = session.family();
    // Without a sign that the model thinks, its answer is not called thinking.
    let apart = found && args.conversation.reasoning_format != ReasoningFormat::None;
    Style { color, apart, family, markers: session.markers().clone() }
}

/// Where the user's lines come from.
enum Lines {
    Editor(Box<rustyline::DefaultEditor>),
    Plain(std::io::StdinLock<'static>),
}

enum Line {
    Text(String),
    End,
    Interrupted,
}

impl Lines {
    fn new(simple: bool) -> anyhow::Result<Self> {
        if simple || !std::io::stdin().is_terminal() {
            return Ok(Self::Plain(std::io::stdin().lock()));
        }
        Ok(Self::Editor(Box::new(
            rustyline::DefaultEditor::new().context("cannot use this terminal; try --simple-io")?,
        )))
    }

    fn next(&mut self, style: &Style) -> anyhow::Result<Line> {
        use rustyline::error::ReadlineError;
        match self {
            Self::Editor(editor) => match editor.readline(if style.color { "\x1b[1m> \x1b[0m" } else { "> " }) {
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Self::Plain(stdin) => {
                let _ = write!(std::io::stderr(), "> ");
                let mut line = String::new();
                match stdin.read_line(&mut line).context("cannot read stdin as UTF-8 text")? {
                    0 => Ok(Line::End),
                    _ => Ok(Line::Text(line.trim_end_matches(['\n', '\r']).to_owned())),
                }
            }
        }
    }
}
