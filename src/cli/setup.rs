//! From flags as typed to what they mean: a model, a session, a sampler; and what Ctrl-C does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use stepflow::builtin;
use stepflow::engine::{ChatTemplate, SamplingParams, SessionParams};
use stepflow::gguf::Gguf;
use stepflow::llama::{
    CacheType, ContextParams, FlashAttention, Model, ModelParams, backends_not_loaded, devices, read,
};
use stepflow::stepflow::StepFlowConfig;

use super::exit::Usage;
use super::flags::{
    ContextArgs, FamilyArgs, ModelArgs, OnOff, RepairArgs, SamplingArgs, SizeArgs, StepFlowArgs, Switch, TemplateArgs,
};
use super::{config_file, download, exit, fit, input};

/// Ctrl-C: it interrupts what can be interrupted, and ends the program otherwise or when pressed again.
#[derive(Clone, Default)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    armed: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over Ctrl-C.
    pub fn install() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || {
            if !handler.armed.load(Ordering::Relaxed) || handler.flag.swap(true, Ordering::Relaxed) {
                stepflow::llama::exit_now(exit::INTERRUPTED);
            }
        })
        .context("cannot take over Ctrl-C")?;
        Ok(interrupt)
    }

    /// The flag for a context.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    /// Runs `work`, during which Ctrl-C sets the flag instead of ending the program.
    pub fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        self.flag.store(false, Ordering::Relaxed);
        self.armed.store(true, Ordering::Relaxed);
        let result = work();
        self.armed.store(false, Ordering::Relaxed);
        result
    }

    /// Whether Ctrl-C was pressed during the last work.
    pub fn was_pressed(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Stops the work that is running, as Ctrl-C would.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }
}

/// The model that the flags name, loaded; the embedded one where they name none.
pub fn load_model(args: &ModelArgs) -> anyhow::Result<Arc<Model>> {
    let path = model_path(args)?;
    let metadata = read(&path)?;
    load_read(&path, metadata, args)
}

/// The same without its weights: its vocabulary and what its file says.
pub fn load_vocabulary(args: &ModelArgs) -> anyhow::Result<Arc<Model>> {
    let path = model_path(args)?;
    Ok(Arc::new(Model::load_read(&path, read(&path)?, &ModelParams { no_weights: true, ..model_params(args) })?))
}

/// The same where a context is to be made of it: one that memory has no room for is told before anything is loaded, and
/// where the flags ask for no size, the largest is taken that there is room for.
pub fn load_with_context(args: &ModelArgs, context: &mut ContextParams) -> anyhow::Result<Arc<Model>> {
    let path = model_path(args)?;
    // Read once: a large vocabulary takes a while.
    let metadata = read(&path)?;
    fit::check(&path, &metadata, &model_params(args), context)?;
    load_read(&path, metadata, args)
}

fn load_read(path: &Path, metadata: Gguf, args: &ModelArgs) -> anyhow::Result<Arc<Model>> {
    say_of_gpus(args.n_gpu_layers);
    Ok(Arc::new(Model::load_read(path, metadata, &model_params(args))?))
}

/// How the flags want the model loaded.
pub fn model_params(args: &ModelArgs) -> ModelParams {
    let ModelArgs { n_gpu_layers, no_mmap, mlock, .. } = *args;
    ModelParams { n_gpu_layers, mmap: !no_mmap, mlock, no_weights: false }
}

/// Says what keeps layers from a GPU.
pub fn say_of_gpus(n_gpu_layers: u32) {
    if n_gpu_layers == 0 {
        return;
    }
    let problems = backends_not_loaded();
    problems.iter().for_each(|problem| say!("stepflow: {problem}; running without it"));
    // Who asks for all, or for nothing in particular, takes what there is.
    let asked = n_gpu_layers != u32::MAX;
    if asked && problems.is_empty() && devices().iter().all(|device| device.place.backend == "CPU") {
        say!("stepflow: no GPU was found, so -ngl {n_gpu_layers} changes nothing; see --list-devices");
    }
}

/// The file that the flags name, downloaded where it has to be; the embedded model's where they name none.
pub fn model_path(args: &ModelArgs) -> anyhow::Result<PathBuf> {
    stepflow::llama::set_verbose(args.verbose);
    match (&args.model, &args.hf_repo) {
        (Some(path), repo) => {
            if let Some(repo) = repo {
                say!("stepflow: both -m and -hf {repo} are named; taking -m {}", path.display());
            }
            Ok(path.clone())
        }
        (None, Some(reference)) => download::fetch(&reference.parse()?, args.hf_file.as_deref(), args.offline),
        (None, None) => {
            let (path, name) = (builtin::path()?, builtin::NAME);
            say!(
                "stepflow: no model named; using the embedded one ({name}, for word problems); -m or -hf name another"
            );
            Ok(path)
        }
    }
}

/// Whether the flags leave it at the embedded model.
pub fn is_embedded(args: &ModelArgs) -> bool {
    args.model.is_none() && args.hf_repo.is_none()
}

/// The context that the flags describe.
pub fn context_params(args: &ContextArgs, interrupt: &Interrupt) -> ContextParams {
    let default = ContextParams::default();
    // As in llama.cpp, 0 and less mean all there are.
    let positive = |threads: Option<i32>| threads.filter(|&n| n > 0);
    let n_threads = positive(args.threads).unwrap_or(default.n_threads);
    ContextParams {
        n_threads,
        n_threads_batch: positive(args.threads_batch).unwrap_or(n_threads),
        interrupt: Some(interrupt.flag()),
        ..sized(&args.size)
    }
}

/// A context of the size that the flags describe.
pub fn sized(args: &SizeArgs) -> ContextParams {
    ContextParams {
        n_ctx: args.ctx_size,
        n_batch: args.batch_size,
        n_ubatch: args.ubatch_size.min(args.batch_size),
        flash_attention: flash_attention(args.flash_attn),
        type_k: args.cache_type_k,
        type_v: args.cache_type_v,
        ..ContextParams::default()
    }
}

/// Flash attention as llama.cpp understands the switch.
pub fn flash_attention(switch: Switch) -> FlashAttention {
    match switch {
        Switch::On => FlashAttention::On,
        Switch::Off => FlashAttention::Off,
        Switch::Auto => FlashAttention::Auto,
    }
}

/// The repairs that the flags turn on, or the file of `--config`; all numbers checked.
pub fn stepflow_config(args: &RepairArgs) -> anyhow::Result<StepFlowConfig> {
    let file = config_of_file(args)?;
    let config = settings(args, &file)?;
    let named = args.stepflow || args.oeb || args.smi;
    Ok(StepFlowConfig {
        oeb: config.oeb.filter(|_| args.stepflow || args.oeb || (!named && file.oeb.is_some())),
        smi: config.smi.filter(|_| args.stepflow || args.smi || (!named && file.smi.is_some())),
    })
}

/// The repairs that the flags turn on; both where they turn on none.
pub fn repairs_or_all(args: &RepairArgs) -> anyhow::Result<StepFlowConfig> {
    let config = stepflow_config(args)?;
    if config.is_on() { Ok(config) } else { all_repairs(args) }
}

/// Says which of the flags change nothing, for a repair, or flash attention, that is off.
pub fn warn_of_idle_settings(args: &StepFlowArgs, config: &StepFlowConfig, flash: Switch, stats: bool) {
    let off = |repair: &str, other: bool| match other {
        true => format!("{repair} is off"),
        false => "StepFlow is off; --stepflow turns it on".to_owned(),
    };
    let (oeb, smi) = (config.oeb.is_some(), config.smi.is_some());
    let repairs = &args.repairs;
    let flags = [
        ("--oeb-layers", repairs.oeb_layers.is_some() && !oeb, off("OEB", smi)),
        ("--tau-max", repairs.tau_max.is_some() && !oeb, off("OEB", smi)),
        ("--smi-layers", repairs.smi_layers.is_some() && !smi, off("SMI", oeb)),
        ("--alpha", repairs.alpha.is_some() && !smi, off("SMI", oeb)),
        ("--smi-window", repairs.smi_window.is_some() && !smi, off("SMI", oeb)),
        ("--all-layers", args.all_layers.is_some() && !oeb, off("OEB", smi)),
        ("--all-layers", args.all_layers.is_some() && oeb && flash == Switch::Off, "flash attention is off".to_owned()),
        ("--stats", stats && !config.is_on(), off("", false)),
    ];
    for (flag, _, why) in flags.into_iter().filter(|(_, idle, _)| *idle) {
        say!("stepflow: {flag} changes nothing: {why}");
    }
}

/// Says when a context that was asked for is another, of `n_ctx` tokens for one conversation, or longer than what the model
/// has learnt.
pub fn warn_of_context(args: &ContextArgs, n_ctx: usize, model: &Model) {
    let (asked, trained) = (args.size.ctx_size, model.n_ctx_train());
    if asked > 0 && n_ctx > asked as usize {
        say!("stepflow: -c {asked} becomes {n_ctx}: llama.cpp rounds contexts up");
    }
    if asked > 0 && trained > 0 && n_ctx > trained as usize {
        say!(
            "stepflow: -c {asked} is beyond the {trained} tokens that the model was trained with; answers may get worse"
        );
    }
}

/// Both repairs at the settings of the flags, else of the file, else the paper's, whether they are turned on or not.
pub fn all_repairs(args: &RepairArgs) -> anyhow::Result<StepFlowConfig> {
    settings(args, &config_of_file(args)?)
}

fn config_of_file(args: &RepairArgs) -> anyhow::Result<StepFlowConfig> {
    Ok(args.config.as_deref().map(config_file::read).transpose()?.unwrap_or_default())
}

fn settings(args: &RepairArgs, file: &StepFlowConfig) -> anyhow::Result<StepFlowConfig> {
    let (mut oeb, mut smi) = (file.oeb.clone().unwrap_or_default(), file.smi.clone().unwrap_or_default());
    oeb.layers = args.oeb_layers.clone().unwrap_or(oeb.layers);
    oeb.tau_max = args.tau_max.unwrap_or(oeb.tau_max);
    smi.layers = args.smi_layers.clone().unwrap_or(smi.layers);
    smi.alpha = args.alpha.unwrap_or(smi.alpha);
    smi.window = args.smi_window.unwrap_or(smi.window);
    let config = StepFlowConfig { oeb: Some(oeb), smi: Some(smi) };
    config.validate().map_err(stepflow::engine::EngineError::from)?;
    Ok(config)
}

/// The session that the flags describe. Says so on stderr when StepFlow overrules a flag.
pub fn session_params(
    context: &ContextArgs,
    stepflow: &StepFlowArgs,
    lora: Option<&Path>,
    interrupt: &Interrupt,
) -> anyhow::Result<SessionParams> {
    let config = stepflow_config(&stepflow.repairs)?;
    check_caches(context.size.cache_type_v, context.size.flash_attn)?;
    Ok(SessionParams {
        context: ContextParams { all_layers: all_layers(stepflow), ..context_params(context, interrupt) },
        stepflow: config,
        lora: lora.map(Path::to_owned),
        ..family_params(&stepflow.family)
    })
}

/// Whether llama.cpp has such a V cache with that flash attention.
pub fn check_caches(type_v: CacheType, flash: Switch) -> Result<(), Usage> {
    if !type_v.is_float() && flash == Switch::Off {
        let reason = format!("-ctv {} needs flash attention; leave -fa off out, or use -ctv f16", type_v.name());
        return Err(Usage(reason));
    }
    Ok(())
}

/// Whether StepFlow's own attention is for all layers.
pub fn all_layers(args: &StepFlowArgs) -> bool {
    args.all_layers != Some(OnOff::Off)
}

/// A session in which nothing but the family is set.
pub fn family_params(args: &FamilyArgs) -> SessionParams {
    SessionParams {
        family: args.family,
        think_start: args.think_start.clone(),
        think_end: args.think_end.clone(),
        ..SessionParams::default()
    }
}

/// The sampler chain: what the flags say, else what the model recommends, else llama.cpp's defaults.
pub fn sampling_params(args: &SamplingArgs, model: &Model) -> anyhow::Result<SamplingParams> {
    let mut params = SamplingParams::of_model(model.metadata());
    macro_rules! take {
        ($($field:ident),*) => { $( if let Some(value) = args.$field { params.$field = value; } )* };
    }
    take!(temp, top_k, top_p, min_p, repeat_last_n, repeat_penalty, presence_penalty, frequency_penalty);
    take!(dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n);
    if let Some(samplers) = &args.samplers {
        params.samplers = samplers.0.clone();
    }
    if !args.dry_sequence_breaker.is_empty() {
        params.dry_sequence_breakers =
            args.dry_sequence_breaker.iter().filter(|text| *text != "none").map(|text| input::unescape(text)).collect();
    }
    params.seed = args.seed.and_then(|seed| u32::try_from(seed).ok()).filter(|&seed| seed != u32::MAX);
    let numbers = [
        ("temp", params.temp),
        ("top-p", params.top_p),
        ("min-p", params.min_p),
        ("repeat-penalty", params.repeat_penalty),
        ("presence-penalty", params.presence_penalty),
        ("frequency-penalty", params.frequency_penalty),
        ("dry-multiplier", params.dry_multiplier),
        ("dry-base", params.dry_base),
    ];
    if let Some((name, value)) = numbers.iter().find(|(_, value)| !value.is_finite()) {
        bail!("--{name}: expected a finite number, found {value}");
    }
    if !(params.repeat_penalty > 0.0) {
        bail!("--repeat-penalty: expected a number above 0, found {}", params.repeat_penalty);
    }
    Ok(params)
}

/// The chat template: the flags', else the model's, else ChatML.
pub fn chat_template(args: &TemplateArgs, model: &Model) -> anyhow::Result<ChatTemplate> {
    let source = template_source(args)?;
    Ok(ChatTemplate::new(model, source.as_deref(), input::template_kwargs(args.chat_template_kwargs.as_deref())?)?)
}

/// The template that the flags give in place of the model's own.
pub fn template_source(args: &TemplateArgs) -> anyhow::Result<Option<String>> {
    let file = args.chat_template_file.as_deref().map(input::read_text).transpose()?;
    Ok(args.chat_template.clone().or(file))
}
