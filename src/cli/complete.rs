//! `-no-cnv`: completes a prompt as it is, without a chat template.

use std::io::Write;

use anyhow::Context as _;
use stepflow::engine::{Finish, Request, Sampler, Session};

use super::chat::ChatArgs;
use super::printer::Style;
use super::setup::{self, Interrupt};
use super::{chat, exit, report, saliency};

/// Runs the command.
pub fn run(args: &ChatArgs) -> anyhow::Result<u8> {
    chat::check_files(&args.conversation)?;
    let prompt = args.conversation.first_prompt()?;
    let prompt = prompt.context("nothing to complete: give a prompt with -p, -f or on stdin")?;
    let interrupt = Interrupt::install()?;
    let params = setup::session_params(&args.context, &args.stepflow, args.model.lora()?, &interrupt)?;
    setup::warn_of_idle_settings(
        &args.stepflow,
        &params.stepflow,
        args.context.size.flash_attn,
        args.conversation.stats.is_some(),
    );
    let model = setup::load_model(&args.model)?;
    report::warn_if_family_does_not_fit(&args.stepflow.family, &model);
    let mut sampler = Sampler::new(&setup::sampling_params(&args.sampling, &model)?, &model);
    let mut session = Session::new(model, &params)?;
    setup::warn_of_context(&args.context, session.n_ctx(), session.model());
    if !args.conversation.no_warmup {
        session.warm_up()?;
    }
    report::say_family(session.stepflow(), session.family());
    let limit = |n: i64| usize::try_from(n).ok();
    let stop = args.conversation.stop_texts();
    let request = Request {
        tokens: session.model().tokenize(&prompt, true, true),
        question: 0,
        max_tokens: limit(args.conversation.predict),
        reasoning_budget: limit(args.conversation.reasoning_budget),
        stop: &stop,
    };
    session.check(&request)?;
    if !args.conversation.no_display_prompt {
        write!(std::io::stdout(), "{prompt}").context("cannot write to stdout")?;
    }
    let style = Style { apart: false, ..chat::style(args, &session) };
    let (_, summary) = chat::generate(&mut session, &request, &mut sampler, &style, &interrupt)?;
    report::timings(&summary);
    if summary.finish == Finish::ContextFull {
        say!("stepflow: the context of {} tokens is full; use a larger -c", session.n_ctx());
    }
    chat::save_files(&args.conversation, &session)?;
    if summary.finish != Finish::Interrupted {
        report::warn_if_never_engaged(session.stepflow(), session.markers());
    }
    saliency::of_conversation(
        args.conversation.saliency.as_deref(),
        args.context.threads,
        session,
        &interrupt,
        exit::of_finish(summary.finish),
    )
}
