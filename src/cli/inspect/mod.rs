//! `inspect`: what a model is, what StepFlow would do in it, and what memory it takes.

mod memory;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use stepflow::engine::{self, EngineError, Repair};
use stepflow::gguf::{Gguf, Value};
use stepflow::llama::{Adapter, ContextParams, Model, ModelParams};
use stepflow::saliency::no_gradient;
use stepflow::stepflow::{LayerSelection, StepFlowConfig};
use stepflow::trace::{Family, Markers};

use super::flags::{ModelArgs, SizeArgs, StepFlowArgs};
use super::{exit, output, setup};
use memory::Memory;
use whole::Whole;

/// Inspecting.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Model file (GGUF), as -m names one.
    #[arg(value_name = "FILE", conflicts_with_all = ["model", "hf_repo"])]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stepflow: StepFlowArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub size: SizeArgs,
    /// JSON output.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> anyhow::Result<u8> {
    let config = setup::repairs_or_all(&args.stepflow.repairs)?;
    setup::check_caches(args.size.cache_type_v, args.size.flash_attn)?;
    warn_of_idle_flags(&args.stepflow);
    setup::say_of_gpus(args.model.n_gpu_layers);
    let mut args = args.clone();
    args.model.model = args.file.take().or(args.model.model);
    let named = setup::model_path(&args.model)?;
    let whole = Whole::new(&named)?;
    let model_params = ModelParams { no_weights: whole.missing.is_some(), ..setup::model_params(&args.model) };
    let mut model = Arc::new(Model::load(&whole.path, &model_params)?);
    let repair = Repair::new(&config, model.n_layer(), 1).map_err(EngineError::from)?;
    let mut adapter = engine::load_adapter(&mut model, args.model.lora()?)?;
    let untried = whole.missing.map(|(has, needs)| format!("not tried: the file has {has} of {needs} bytes"));
    let tried = match &untried {
        None => try_out(&model, &args.size, adapter.as_mut()).map_err(|error| (Some(false), error.to_string())),
        Some(reason) => Err((None, reason.clone())),
    };
    let facts = Facts {
        model: ModelFacts::new(&model, &named, setup::is_embedded(&args.model)),
        thinking: Thinking::new(&model, &args.stepflow),
        stepflow: StepFlow::new(tried, &repair),
        saliency: Saliency::new(&model, untried),
        memory: Memory::new(&whole.path, &args.model, &args.size)?,
    };
    output::write_result(None, |out| match args.json {
        true => serde_json::to_writer_pretty(&mut *out, &facts).map_err(io::Error::from).and_then(|()| writeln!(out)),
        false => facts.write_text(out),
    })?;
    Ok(exit::OK)
}

/// Says which flags of the repairs change nothing that is shown: of those, layers are, and how thinking is marked.
fn warn_of_idle_flags(args: &StepFlowArgs) {
    let flags = [
        ("--tau-max", args.repairs.tau_max.is_some()),
        ("--alpha", args.repairs.alpha.is_some()),
        ("--smi-window", args.repairs.smi_window.is_some()),
        ("--all-layers", args.all_layers.is_some()),
    ];
    for (flag, _) in flags.into_iter().filter(|(_, given)| *given) {
        say!("stepflow: {flag} changes nothing that inspect shows");
    }
}

#[derive(Serialize)]
struct Facts {
    #[serde(flatten)]
    model: ModelFacts,
    #[serde(flatten)]
    thinking: Thinking,
    stepflow: StepFlow,
    saliency: Saliency,
    memory: Memory,
}

/// What the file says.
#[derive(Serialize)]
struct ModelFacts {
    file: String,
    /// Whether the program brought it along.
    embedded: bool,
    name: Option<String>,
    architecture: String,
    description: String,
    /// How many tensors there are of each type.
    quantization: BTreeMap<String, usize>,
    parameters: u64,
    /// Of all tensors, in bytes.
    size: u64,
    layers: usize,
    /// A number, or one for each layer.
    heads: Json,
    heads_kv: Json,
    context_length: u32,
    sliding_window: Option<u64>,
    sinks: bool,
    vocabulary: usize,
    chat_template: Option<String>,
    /// What the file recommends, by the names of its metadata.
    sampling: Map<String, Json>,
}

impl ModelFacts {
    fn new(model: &Model, path: &Path, embedded: bool) -> Self {
        let gguf = model.metadata();
        let mut quantization = BTreeMap::new();
        for tensor in gguf.tensors() {
            *quantization.entry(format!("{:?}", tensor.ty)).or_default() += 1;
        }
        let heads = gguf.arch("attention.head_count").map_or(Json::Null, json);
        Self {
            file: path.display().to_string(),
            embedded,
            name: gguf.str("general.name").map(str::to_owned),
            architecture: gguf.architecture().unwrap_or_default().to_owned(),
            description: model.description(),
            quantization,
            parameters: model.n_params(),
            size: model.size(),
            layers: model.n_layer(),
            // As llama.cpp has it: without a number of its own, every head has its key.
            heads_kv: gguf.arch("attention.head_count_kv").map_or(heads.clone(), json),
            heads,
            context_length: model.n_ctx_train(),
            sliding_window: gguf.arch_u64("attention.sliding_window").filter(|&window| window > 0),
            sinks: gguf.tensor("blk.0.attn_sinks.weight").is_some(),
            vocabulary: model.n_vocab(),
            chat_template: model.chat_template().map(str::to_owned),
            sampling: sampling(gguf),
        }
    }
}

/// How the model marks its thinking.
#[derive(Serialize)]
struct Thinking {
    family: Family,
    /// How the family is known.
    family_from: &'static str,
    markers: Markers,
}

impl Thinking {
    fn new(model: &Model, args: &StepFlowArgs) -> Self {
        let given =
            args.family.family.is_some() || args.family.think_start.is_some() || args.family.think_end.is_some();
        let (family, found, markers) = engine::markers_of(model, &setup::family_params(&args.family));
        let in_vocabulary = || Family::detect(|text| model.token_of(text).is_some(), None).is_some();
        let family_from = match found {
            _ if given => "flags",
            true if in_vocabulary() => "vocabulary",
            true => "chat template",
            false => "assumed",
        };
        Self { family, family_from, markers }
    }
}

/// What StepFlow would do.
#[derive(Serialize)]
struct StepFlow {
    /// `null` where that was not tried.
    works: Option<bool>,
    /// Where.
    place: Option<String>,
    /// Why it does not work, or was not tried.
    reason: Option<String>,
    oeb_layers: BTreeSet<usize>,
    smi_layers: BTreeSet<usize>,
}

impl StepFlow {
    fn new(tried: Result<String, (Option<bool>, String)>, repair: &Repair) -> Self {
        let (works, place, reason) = match tried {
            Ok(place) => (Some(true), Some(place), None),
            Err((works, reason)) => (works, None, Some(reason)),
        };
        Self { works, place, reason, oeb_layers: repair.oeb_layers(), smi_layers: repair.smi_layers() }
    }
}

/// How saliency can be measured.
#[derive(Serialize)]
struct Saliency {
    /// Whether exactly, by a backward pass; `null` where that was not tried.
    gradient: Option<bool>,
    /// Why not, or why it was not tried.
    reason: Option<String>,
}

impl Saliency {
    /// `untried` says why nothing can be computed, if nothing can.
    fn new(model: &Model, untried: Option<String>) -> Self {
        if let Some(reason) = untried {
            return Self { gradient: None, reason: Some(reason) };
        }
        let reason = no_gradient(model, ContextParams::default().n_threads);
        Self { gradient: Some(reason.is_none()), reason }
    }
}

/// Whether StepFlow has a place in the model shows itself in a graph, so one is run.
/// Returns where StepFlow works in it.
fn try_out(model: &Arc<Model>, size: &SizeArgs, adapter: Option<&mut Adapter>) -> Result<String, EngineError> {
    let params = ContextParams { n_ctx: 64, n_batch: 64, n_ubatch: 64, ..setup::sized(size) };
    let (mut context, control) = engine::open(model.clone(), &params, &StepFlowConfig::paper(), adapter)?;
    engine::warm_up(&mut context, control.as_ref())?;
    Ok(engine::works_in(&context))
}

impl Facts {
    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { model, thinking, stepflow, saliency, memory } = self;
        let marker = |text: &Option<String>| text.as_ref().map_or("the first generated token".to_owned(), quoted);
        let works = match (&stepflow.place, &stepflow.reason) {
            (Some(place), _) => format!("works in this model, {place}"),
            (None, reason) => reason.clone().unwrap_or_default(),
        };
        let lines = [
            ("file", if model.embedded { format!("{} (embedded)", model.file) } else { model.file.clone() }),
            ("name", model.name.clone().unwrap_or("none".to_owned())),
            ("architecture", model.architecture.clone()),
            ("description", model.description.clone()),
            ("tensors", list(model.quantization.iter().map(|(ty, n)| format!("{n} {ty}")))),
            ("parameters", format!("{} ({:.2} M)", model.parameters, model.parameters as f64 / 1e6)),
            ("size", format!("{:.2} MiB", model.size as f64 / f64::from(1 << 20))),
            ("layers", model.layers.to_string()),
            ("heads", format!("{}, of keys and values {}", model.heads, model.heads_kv)),
            ("context", format!("{} tokens in training", model.context_length)),
            ("sliding window", model.sliding_window.map_or("none".to_owned(), |n| format!("{n} tokens"))),
            ("attention sinks", if model.sinks { "yes" } else { "none" }.to_owned()),
            ("vocabulary", format!("{} tokens", model.vocabulary)),
            ("family", format!("{} (from: {})", thinking.family, thinking.family_from)),
            ("thinking opens", marker(&thinking.markers.think_start)),
            ("thinking closes", thinking.markers.closing()),
            ("chat template", model.chat_template.as_ref().map_or("none".to_owned(), |text| template(text))),
            ("sampling", list(model.sampling.iter().map(|(name, value)| format!("{name} {value}")))),
            ("StepFlow", works),
            ("OEB layers", ranges(&stepflow.oeb_layers)),
            ("SMI layers", ranges(&stepflow.smi_layers)),
            ("saliency", saliency.reason.clone().unwrap_or("exact, by gradient".to_owned())),
        ];
        let lines = lines.into_iter().map(|(label, text)| (label.to_owned(), text)).chain(memory.lines());
        lines.into_iter().try_for_each(|(label, text)| writeln!(out, "{label:<17}{}", one_line(&text)))
    }
}

/// Text of a file must not steer the terminal.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn quoted(text: &String) -> String {
    format!("{text:?}")
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// How long a template is, and how it begins.
fn template(text: &str) -> String {
    let shown: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    format!("{} characters, begins {shown:?}", text.chars().count())
}

/// Layers as the flags write them.
fn ranges(layers: &BTreeSet<usize>) -> String {
    if layers.is_empty() { "none".to_owned() } else { LayerSelection::from_iter(layers.iter().copied()).to_string() }
}

/// The recommended settings of the samplers.
fn sampling(gguf: &Gguf) -> Map<String, Json> {
    let prefix = "general.sampling.";
    let settings = gguf.metadata().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), json(value))));
    settings.collect()
}

/// A metadata value; one that JSON cannot hold becomes `null`.
fn json(value: &Value) -> Json {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Array(array) => (0..array.len()).map(|i| array.u64_at(i)).collect(),
        // As it is printed: 0.6 in 32 bits is 0.6, not 0.6000000238.
        scalar => serde_json::from_str(&scalar.to_string()).unwrap_or(Json::Null),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_read_as_they_are_written() {
        assert_eq!(ranges(&BTreeSet::from([0, 1, 2, 5, 7, 8])), "0-2,5,7-8");
        assert_eq!(ranges(&BTreeSet::new()), "none");
    }

    #[test]
    fn metadata_as_json() {
        assert_eq!(json(&Value::F32(0.6)).to_string(), "0.6");
        assert_eq!(json(&Value::F32(f32::NAN)), Json::Null);
        assert_eq!(json(&vec![4u32, 8].into()).to_string(), "[4,8]");
        assert_eq!(json(&"top_k;temperature".into()).to_string(), "\"top_k;temperature\"");
    }

    #[test]
    fn a_file_does_not_steer_the_terminal() {
        assert_eq!(one_line("a\x1b[2J\nb"), "a [2J b");
    }
}
