//! Problems and a model to answer them: what `eval` and `tune` begin with.

use std::sync::Arc;

use anyhow::bail;
use sha2::{Digest, Sha256};
use stepflow::engine::{self, Message, Parallel, SamplingParams, SessionParams};
use stepflow::eval::{Format, Problem, problem};
use stepflow::llama::{Model, Token};
use stepflow::stepflow::StepFlowConfig;

use super::args::TaskArgs;
use crate::cli::setup::{self, Interrupt};
use crate::cli::{input, output, report};

/// Context that an answer gets beyond prompt and limit: none is needed, but sizes are multiples of this in llama.cpp.
const ROUND: usize = 256;

/// Seed where none is given: results are to be had again.
const SEED: u32 = 1;

/// Problems, prompts and a model.
pub struct Task {
    /// The problems' name.
    pub name: String,
    /// The problems.
    pub problems: Vec<Problem>,
    /// The prompt of each.
    pub prompts: Vec<(Vec<Token>, usize)>,
    /// The model.
    pub model: Arc<Model>,
    /// Sampling, the seed included.
    pub sampling: SamplingParams,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Side by side.
    pub slots: usize,
    params: SessionParams,
    settings: Vec<(String, String)>,
}

impl Task {
    /// What the flags describe; `embedded` stands in for a problem file. Several `samples` are sampled rather than
    /// greedy.
    pub fn new(args: &TaskArgs, embedded: (&str, &str), samples: usize, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let seed = args.sampling.seed.and_then(|seed| u32::try_from(seed).ok()).unwrap_or(SEED);
        let (name, mut problems) = problems(args, embedded, seed)?;
        problems.truncate(args.first.map_or(usize::MAX, |first| first as usize));
        let model = setup::load_model(&args.model)?;
        setup::warn_of_context(&args.context, args.context.size.ctx_size as usize, &model);
        report::warn_if_family_does_not_fit(&args.family, &model);
        if args.model.lora()?.is_some() {
            bail!("--lora is not taken here; merge the adapter into the model first");
        }
        let sampling = sampling(args, &model, samples, seed)?;
        let system = args.system_prompt.as_deref().map(|text| args.escape.read(text));
        let prompts = prompts(args, &model, &problems, system.as_deref())?;
        let longest = prompts.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
        let mut context = setup::context_params(&args.context, interrupt);
        if context.n_ctx == 0 {
            let needed = (longest + args.predict as usize).next_multiple_of(ROUND);
            context.n_ctx = u32::try_from(needed).unwrap_or(u32::MAX).min(model.n_ctx_train());
        }
        if let Some(at) = prompts.iter().position(|(tokens, _)| tokens.len() >= context.n_ctx as usize) {
            let (id, n) = (&problems[at].id, prompts[at].0.len());
            bail!("problem {id} has {n} tokens and a context holds {}; use a larger -c", context.n_ctx);
        }
        // All arms run the same way, so that they differ in nothing but StepFlow.
        context.flash_attention = engine::flash_attention(&model, &context)?;
        let params = SessionParams { context, ..setup::family_params(&args.family) };
        let settings = settings(args, &sampling, &params, system.as_deref());
        Ok(Self {
            name,
            problems,
            prompts,
            model,
            sampling,
            max_tokens: args.predict as usize,
            slots: args.parallel as usize,
            params,
            settings,
        })
    }

    /// A context for it; StepFlow is part of it where any arm has repairs.
    pub fn parallel(&self, any_repairs: bool) -> anyhow::Result<Parallel> {
        let (_, _, markers) = engine::markers_of(&self.model, &self.params);
        let stepflow = if any_repairs { StepFlowConfig::paper() } else { StepFlowConfig::default() };
        Ok(Parallel::new(self.model.clone(), &self.params.context, &stepflow, markers, self.slots)?)
    }

    /// Everything beside model, problems and arms that decides what is generated.
    pub fn settings(&self) -> Vec<(String, String)> {
        self.settings.clone()
    }

    /// SHA-256 over ids, questions and answers.
    pub fn problems_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for problem in &self.problems {
            hash.update(format!("{}\0{}\0{:?}\0", problem.id, problem.question, problem.reference));
        }
        output::hex(&hash.finalize())
    }

    /// SHA-256 of the model file.
    pub fn model_sha256(&self) -> anyhow::Result<String> {
        output::sha256_of(self.model.path())
    }
}

fn problems(args: &TaskArgs, embedded: (&str, &str), seed: u32) -> anyhow::Result<(String, Vec<Problem>)> {
    let Some(path) = &args.problems else {
        let (name, text) = embedded;
        say!("stepflow: no problems named; taking the embedded ones ({name})");
        return Ok((name.to_owned(), problem::read(name, text, Format::Jsonl, u64::from(seed))?));
    };
    let text = input::read_text(path)?;
    let csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let format = if csv { Format::Csv } else { Format::Jsonl };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, problem::read(&path.display().to_string(), &text, format, u64::from(seed))?))
}

fn sampling(args: &TaskArgs, model: &Model, samples: usize, seed: u32) -> anyhow::Result<SamplingParams> {
    let mut flags = args.sampling.clone();
    if samples == 1 {
        flags.temp = flags.temp.or(Some(0.0));
    } else {
        flags.temp = flags.temp.or(Some(0.6));
        flags.top_p = flags.top_p.or(Some(0.95));
    }
    Ok(SamplingParams { seed: Some(seed), ..setup::sampling_params(&flags, model)? })
}

fn prompts(
    args: &TaskArgs,
    model: &Model,
    problems: &[Problem],
    system: Option<&str>,
) -> anyhow::Result<Vec<(Vec<Token>, usize)>> {
    let template = setup::chat_template(&args.template, model)?;
    let system = system.map(|text| Message::new("system", text));
    let prompt = |problem: &Problem| {
        let messages: Vec<_> = system.iter().cloned().chain([Message::new("user", &*problem.question)]).collect();
        Ok(engine::prompt_tokens(model, &template.render(&messages)?))
    };
    problems.iter().map(prompt).collect()
}

fn settings(
    args: &TaskArgs,
    sampling: &SamplingParams,
    params: &SessionParams,
    system: Option<&str>,
) -> Vec<(String, String)> {
    let template =
        (&args.template.chat_template, &args.template.chat_template_file, &args.template.chat_template_kwargs);
    let context = &params.context;
    let settings = [
        ("sampling", format!("{sampling:?}")),
        ("predict", args.predict.to_string()),
        ("parallel", args.parallel.to_string()),
        ("context", context.n_ctx.to_string()),
        ("batch", format!("{} {}", context.n_batch, context.n_ubatch)),
        ("flash attention", format!("{:?}", context.flash_attention)),
        ("cache", format!("{} {}", context.type_k.name(), context.type_v.name())),
        ("family", format!("{:?} {:?} {:?}", params.family, params.think_start, params.think_end)),
        ("system prompt", system.unwrap_or_default().to_owned()),
        ("template", format!("{template:?}")),
    ];
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
