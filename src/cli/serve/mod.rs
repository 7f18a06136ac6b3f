//! `stepflow serve`.

mod args;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use stepflow::engine::{EngineError, Slots, keeps_flash_attention, load_adapter, markers_of};
use stepflow::llama::chat::ChatTemplates;
use stepflow::llama::{ContextParams, Model};
use stepflow::server::{Options, Ready, Server, Tls};

use super::exit::{self, Usage};
use super::flags::{ReasoningFormat, Switch};
use super::setup::{self, Interrupt};
use super::{input, report};
pub use args::ServeArgs;
use args::ServerArgs;

/// Slots where nothing says how many.
const SLOTS: usize = 4;

/// Serves until it is told to stop.
pub fn run(args: &ServeArgs) -> anyhow::Result<u8> {
    let interrupt = Interrupt::install()?;
    let params = setup::session_params(&args.context, &args.stepflow, args.model.lora()?, &interrupt)?;
    // What a request means that says no more than that it wants StepFlow.
    let settings =
        if params.stepflow.is_on() { params.stepflow.clone() } else { setup::all_repairs(&args.stepflow.repairs)? };
    let options = options(args)?;
    let n_slots = options.slots;
    let is_open = options.keys.is_empty() && !options.is_local();
    let server = Server::listen(options)?;
    let urls = server.urls();
    if is_open {
        say!("stepflow: warning: anyone who reaches this address can use the server; --api-key-file demands a key");
    }
    say!("stepflow: listening on {}, loading the model", urls.join(" "));
    let streams = args.server.parallel.is_some_and(|n| n > 0) && !args.server.kv_unified;
    let n_sequences = u32::try_from(n_slots).unwrap_or(u32::MAX);
    // Ctrl-C lets what is running finish, so it interrupts no decode.
    let mut context = ContextParams { streams, n_sequences, interrupt: None, ..params.context.clone() };
    let mut model = setup::load_with_context(&args.model, &mut context)?;
    report::warn_if_family_does_not_fit(&args.stepflow.family, &model);
    let mut adapter = load_adapter(&mut model, params.lora.as_deref())?;
    let (family, _, markers) = markers_of(&model, &params);
    // Unasked, repairs take flash attention, and what it is worth, from nobody.
    let may_repair = params.stepflow.is_on() || keeps_flash_attention(&model, &context);
    if !may_repair {
        setup::warn_of_idle_settings(&args.stepflow, &params.stepflow, args.context.size.flash_attn, false);
    }
    let repairs = Some(&settings).filter(|_| may_repair);
    let slots = Slots::new(model.clone(), &context, repairs, markers.clone(), n_slots, adapter.take());
    let slots = match slots {
        Err(EngineError::NotHookable(reason)) if !params.stepflow.is_on() => {
            say!("stepflow: requests cannot have StepFlow here: {reason}");
            let adapter = load_adapter(&mut model, params.lora.as_deref())?;
            Slots::new(model.clone(), &context, None, markers.clone(), n_slots, adapter)?
        }
        slots => slots?,
    };
    setup::warn_of_context(&args.context, slots.n_ctx(), &model);
    if slots.has_stepflow() {
        report::warn_of_flash_attention(args.context.size.flash_attn, &slots.works_in());
    }
    let ready = Ready {
        templates: templates(args, &model)?,
        family,
        markers,
        sampling: setup::sampling_params(&args.sampling, &model)?,
        stepflow: params.stepflow,
        stepflow_settings: slots.has_stepflow().then_some(settings),
        works_in: slots.works_in(),
        n_ctx: slots.n_ctx(),
        slots: slots.status().into(),
        model,
    };
    let told_ready = ready_line(&ready, n_slots, slots.has_streams(), &urls);
    server.set_ready(ready);
    // Who waits for this line is answered from here on.
    say!("{told_ready}");
    let told = std::sync::Once::new();
    let end = || {
        let ends = interrupt.was_pressed();
        if ends {
            told.call_once(|| say!("stepflow: running answers are finished first; Ctrl-C again ends at once"));
        }
        ends
    };
    interrupt.during(|| server.run(slots, end))?;
    Ok(exit::OK)
}

fn ready_line(ready: &Ready, n_slots: usize, streams: bool, urls: &[String]) -> String {
    let repairs = match (&ready.stepflow_settings, ready.stepflow.is_on()) {
        (None, _) => "off for all requests (--stepflow turns it on, -fa off leaves it to them)",
        (Some(_), true) => "on",
        (Some(_), false) => "off until a request asks for it",
    };
    let (model, n_ctx) = (ready.model.description(), ready.n_ctx);
    let share = if streams { "of" } else { "that share" };
    let urls = urls.join(" ");
    format!("stepflow: {model}, {n_slots} slots {share} {n_ctx} tokens, StepFlow {repairs}; ready at {urls}")
}

fn templates(args: &ServeArgs, model: &Arc<Model>) -> anyhow::Result<ChatTemplates> {
    let template = &args.answers.template;
    Ok(ChatTemplates::open(model, setup::template_source(template)?.as_deref())?)
}

fn options(args: &ServeArgs) -> anyhow::Result<Options> {
    let (server, answers) = (&args.server, &args.answers);
    let limit = |n: i64| usize::try_from(n).ok();
    Ok(Options {
        hosts: server.host.iter().map(|host| host.trim().to_owned()).collect(),
        port: server.port,
        slots: server.parallel.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0).unwrap_or(SLOTS),
        queue: server.queue as usize,
        keys: keys(server)?,
        cors_origins: server.cors_origins.clone(),
        tls: server
            .ssl_cert_file
            .clone()
            .zip(server.ssl_key_file.clone())
            .map(|(certificates, key)| Tls { certificates, key }),
        read_timeout: Duration::from_secs(server.timeout),
        max_body: server.max_body,
        max_connections: server.max_connections as usize,
        aliases: names(&server.alias),
        tags: names(&server.tags),
        metrics: server.metrics,
        slots_endpoint: !server.no_slots,
        page: !server.no_page,
        verbose: args.model.verbose,
        lora: args.model.lora()?.is_some(),
        max_tokens: limit(answers.predict),
        reasoning_format: match answers.reasoning_format {
            ReasoningFormat::None => stepflow::llama::chat::ReasoningFormat::None,
            ReasoningFormat::Auto => stepflow::llama::chat::ReasoningFormat::Auto,
            ReasoningFormat::Deepseek => stepflow::llama::chat::ReasoningFormat::Deepseek,
            ReasoningFormat::DeepseekLegacy => stepflow::llama::chat::ReasoningFormat::DeepseekLegacy,
        },
        enable_thinking: match answers.reasoning {
            Switch::On => Some(true),
            Switch::Off => Some(false),
            Switch::Auto => None,
        },
        reasoning_budget: limit(answers.reasoning_budget),
        jinja: !answers.no_jinja,
        template_kwargs: input::template_kwargs(answers.template.chat_template_kwargs.as_deref())?,
        prefill_assistant: !answers.no_prefill_assistant,
    })
}

/// Names, each once, in alphabetical order, as llama-server lists them.
fn names(names: &[String]) -> Vec<String> {
    let mut names: Vec<_> = names.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    names.sort();
    names.dedup();
    names
}

/// The keys of the flags and of the file.
fn keys(args: &ServerArgs) -> anyhow::Result<Vec<String>> {
    let mut keys: Vec<String> = args.api_key.iter().map(|key| key.trim().to_owned()).collect();
    if let Some(path) = &args.api_key_file {
        keys.extend(keys_of_file(path)?);
    }
    match keys.iter().find(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(_) => bail!(Usage("an API key must be visible ASCII without spaces; it travels in a header".to_owned())),
        None => Ok(keys),
    }
}

fn keys_of_file(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = input::read_text(path).context("--api-key-file")?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<_> = lines.map(str::to_owned).collect();
    if keys.is_empty() {
        bail!("--api-key-file {}: expected a key on each line, found none", path.display());
    }
    Ok(keys)
}
