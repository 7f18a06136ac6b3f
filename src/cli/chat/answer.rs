//! One answer: generated, and shown as it comes.

use std::io::IsTerminal;

use anyhow::Context as _;
use stepflow::engine::{Message, Request, Sampler, Session, Summary};

use super::args::ChatArgs;
use crate::cli::flags::{ReasoningFormat, Switch};
use crate::cli::printer::{Printer, Style};
use crate::cli::progress::PromptProgress;
use crate::cli::setup::Interrupt;

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

/// How answers of this session are shown from now on.
pub fn style(args: &ChatArgs, session: &Session) -> Style {
    let color = match args.conversation.color {
        Switch::On => true,
        Switch::Off => false,
        Switch::Auto => !args.conversation.simple_io && std::io::stdout().is_terminal(),
    };
    let (family, found) = session.family();
    let markers = session.markers().clone();
    // An ordinary model is asked for steps by StepFlow, or by naming its family; a reader of plain text gets its words
    // as they are.
    let asked = found || session.stepflow().is_some_and(|control| control.is_on());
    let has_steps = markers.think_start.is_some() || asked && color;
    let apart = has_steps && args.conversation.reasoning_format != ReasoningFormat::None;
    Style { color, apart, family, markers }
}
