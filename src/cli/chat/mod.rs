//! The default command: a conversation, on a terminal or through a pipe.

mod answer;
mod args;
mod commands;
mod editor;
mod files;
mod lines;
mod stats;
mod typed;

use std::io::IsTerminal;
use std::sync::Arc;

use stepflow::engine::{ChatTemplate, Finish, Message, Request, Sampler, SamplingParams, Session, SessionParams};
use stepflow::llama::Model;

use super::setup::{self, Interrupt};
use super::{exit, input, report, saliency};
pub use answer::{generate, style};
pub use args::ChatArgs;
use commands::Command;
pub use files::{check as check_files, save as save_files};
use lines::Lines;
use typed::Line;

/// Runs the command.
pub fn run(args: &ChatArgs) -> anyhow::Result<u8> {
    check_files(&args.conversation)?;
    let first = args.conversation.first_prompt()?;
    let interrupt = Interrupt::install()?;
    let mut chat = Chat::new(args, interrupt)?;
    let goes_on = !args.conversation.single_turn && (args.conversation.simple_io || std::io::stdin().is_terminal());
    let mut code = exit::OK;
    if goes_on {
        report::banner(&chat.session);
    }
    if let Some(prompt) = first {
        chat.echo(&prompt);
        code = chat.turn(prompt)?;
    } else if !goes_on {
        match chat.lines()?.next()? {
            Line::Typed(typed) => code = chat.turn(typed.text)?,
            Line::End => anyhow::bail!("nothing to answer: give a prompt with -p, -f or on stdin"),
            Line::Interrupted => code = exit::INTERRUPTED,
        }
    }
    if goes_on {
        code = chat.converse(code)?;
    }
    save_files(&args.conversation, &chat.session)?;
    if code != exit::INTERRUPTED && chat.answered_with_stepflow {
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
    answered_with_stepflow: bool,
    interrupt: Interrupt,
}

impl<'a> Chat<'a> {
    fn new(args: &'a ChatArgs, interrupt: Interrupt) -> anyhow::Result<Self> {
        let mut params = setup::session_params(&args.context, &args.stepflow, args.model.lora()?, &interrupt)?;
        setup::warn_of_idle_settings(
            &args.stepflow,
            &params.stepflow,
            args.context.size.flash_attn,
            args.conversation.stats.is_some(),
        );
        let model = setup::load_with_context(&args.model, &mut params.context)?;
        report::warn_if_family_does_not_fit(&args.stepflow.family, &model);
        let template = setup::chat_template(&args.conversation.template, &model)?;
        let sampling = setup::sampling_params(&args.sampling, &model)?;
        let system = args.conversation.system_prompt()?;
        let mut session = Session::new(model, &params)?;
        setup::warn_of_context(&args.context, session.n_ctx(), session.model());
        if !args.conversation.no_warmup {
            session.warm_up()?;
            if session.stepflow().is_some() {
                report::warn_of_flash_attention(args.context.size.flash_attn, &session.works_in());
            }
        }
        report::say_family(session.stepflow(), session.family());
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        Ok(Self {
            args,
            session,
            params,
            template,
            sampling,
            messages,
            attached: String::new(),
            answered_with_stepflow: false,
            interrupt,
        })
    }

    /// Shows what was asked, where a person would otherwise not see it.
    fn echo(&self, prompt: &str) {
        if !self.args.conversation.no_display_prompt && std::io::stdout().is_terminal() {
            say!("> {prompt}\n");
        }
    }

    /// Where the user's messages come from.
    fn lines(&self) -> anyhow::Result<Lines> {
        Lines::new(self.args.conversation.simple_io, style(self.args, &self.session).color)
    }

    /// One user message and its answer. Returns the exit code that the answer would end the program with. Of a message
    /// that cannot be answered nothing is left.
    fn turn(&mut self, text: String) -> anyhow::Result<u8> {
        let content = std::mem::take(&mut self.attached) + &text;
        self.messages.push(Message::new("user", content));
        self.answer().inspect_err(|_| {
            self.messages.pop();
        })
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
        let style = style(self.args, &self.session);
        let (message, summary) = generate(&mut self.session, &request, &mut sampler, &style, &self.interrupt)?;
        self.messages.push(message);
        self.answered_with_stepflow |= self.session.stepflow().is_some_and(|control| control.is_on());
        report::timings(&summary);
        if summary.finish == Finish::ContextFull {
            let n_ctx = self.session.n_ctx();
            say!("stepflow: the context of {n_ctx} tokens is full and the answer is cut short; use a larger -c");
        }
        if summary.finish == Finish::Length && self.args.conversation.predict > 0 {
            say!("stepflow: the answer is cut short after {} tokens, as -n asks", self.args.conversation.predict);
        }
        Ok(exit::of_finish(summary.finish))
    }

    /// Turn after turn until the user ends it.
    fn converse(&mut self, mut code: u8) -> anyhow::Result<u8> {
        let mut lines = self.lines()?;
        loop {
            let typed = match lines.next()? {
                Line::Typed(typed) => typed,
                Line::End => return Ok(code),
                Line::Interrupted => return Ok(exit::INTERRUPTED),
            };
            let outcome = match Command::of(&typed) {
                Some(Command::Exit) => return Ok(code),
                Some(Command::Regen) => self.regenerate(),
                Some(command) => {
                    self.obey(&command);
                    continue;
                }
                None if typed.text.trim().is_empty() => continue,
                None => self.turn(typed.text),
            };
            code = match outcome {
                Ok(exit::INTERRUPTED) => exit::OK,
                Ok(ended) => ended,
                // A failed turn does not end the conversation, but a closed stdout does.
                Err(error) if error.downcast_ref::<std::io::Error>().is_some() => return Err(error),
                Err(error) => {
                    say!("stepflow: {}", crate::cli::one_line(&error));
                    if exit::code_of(&error) == exit::CONTEXT_FULL {
                        say!("The message is dropped, and what was read for it. /clear makes room.");
                    }
                    code
                }
            };
        }
    }

    /// A command that is neither an answer nor the end.
    fn obey(&mut self, command: &Command<'_>) {
        match *command {
            Command::Clear => {
                self.messages.retain(|message| message.role == "system");
                self.attached.clear();
                say!("The conversation is cleared.");
            }
            Command::Read(path) => self.read(path),
            Command::StepFlow(setting) => self.switch(setting),
            Command::Stats("") => stats::say_words(self.session.stepflow()),
            Command::Stats("table") => stats::say_table(self.session.stepflow()),
            Command::Stats(_) => say!("stepflow: expected /stats or /stats table"),
            Command::Help => say!("{}", commands::help()),
            Command::Unknown(name) => say!("stepflow: no command {name}; there are {}", commands::names()),
            Command::Exit | Command::Regen => {}
        }
    }

    fn regenerate(&mut self) -> anyhow::Result<u8> {
        match self.messages.pop() {
            Some(message) if message.role == "assistant" => self.answer().inspect_err(|_| self.messages.push(message)),
            other => {
                self.messages.extend(other);
                say!("There is no answer to regenerate.");
                Ok(exit::OK)
            }
        }
    }

    fn read(&mut self, typed: &str) {
        if typed.is_empty() {
            say!("stepflow: expected /read FILE");
            return;
        }
        let path = commands::path(typed);
        match input::read_text(&path) {
            Ok(text) => {
                let n_tokens = self.session.model().tokenize(&text, false, false).len();
                self.attached += &format!("--- File: {} ---\n{text}\n", path.display());
                say!("{} ({n_tokens} tokens) goes in front of your next message.", path.display());
            }
            Err(error) => say!("stepflow: {}", crate::cli::one_line(&error)),
        }
    }

    /// `/stepflow on|off`. Where the session was made without it, it is made anew; the conversation stays.
    fn switch(&mut self, setting: &str) {
        match (setting, self.session.stepflow()) {
            ("on" | "off", Some(control)) => control.switch(setting == "on"),
            ("off", None) => {}
            ("on", None) => {
                if let Err(error) = self.take_stepflow_in() {
                    say!("stepflow: {}", crate::cli::one_line(&error));
                }
            }
            _ => say!("stepflow: expected /stepflow on or /stepflow off"),
        }
        let on = self.session.stepflow().is_some_and(|control| control.is_on());
        say!("StepFlow is {}.", if on { "on" } else { "off" });
    }

    fn take_stepflow_in(&mut self) -> anyhow::Result<()> {
        let params =
            SessionParams { stepflow: setup::all_repairs(&self.args.stepflow.repairs)?, ..self.params.clone() };
        let model: Arc<Model> = self.session.model().clone();
        (self.session, self.params) = (Session::new(model, &params)?, params);
        report::say_family(self.session.stepflow(), self.session.family());
        Ok(())
    }
}
