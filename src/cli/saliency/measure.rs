//! Which method measures a trace, and its running.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use clap::ValueEnum;
use stepflow::backward::{Needed, Pass, Repairs};
use stepflow::engine::EngineError;
use stepflow::gguf::GgmlType;
use stepflow::llama::{self, CacheType, ContextParams, FlashAttention, Model, ModelParams, Token};
use stepflow::saliency::{self, Pool, Probe, Saliency};
use stepflow::stepflow::StepFlowConfig;

use super::args::{Activations, Estimator, LossOf, MeasureArgs, SaliencyMethod, TableArgs};
use crate::cli::exit::Usage;
use crate::cli::progress::Progress;
use crate::cli::setup::{self, Interrupt};

/// What is to be measured.
pub struct Task<'a> {
    pub args: &'a MeasureArgs,
    pub tables: &'a TableArgs,
    /// The repairs that the model is measured with.
    pub stepflow: &'a StepFlowConfig,
    /// What they come to on this trace, if any is on.
    pub repairs: Option<Repairs>,
    /// How the model is loaded where it comes without weights.
    pub model_params: &'a ModelParams,
    /// Folder for what is found.
    pub out: &'a Path,
    pub model: Arc<Model>,
    pub tokens: Vec<Token>,
    /// Whether the loss counts each.
    pub counted: Vec<bool>,
    pub pool: Pool,
    pub layers: Vec<usize>,
    pub interrupt: &'a Interrupt,
}

/// How it is measured, once that is settled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Gradient,
    Jacobian,
    Probe,
    Attention,
}

impl Method {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Jacobian => "jacobian",
            Self::Probe => "probe",
            Self::Attention => "attention",
        }
    }
}

impl Task<'_> {
    /// The method asked for, or the best that can be had.
    pub fn method(&self) -> anyhow::Result<Method> {
        self.check_flags()?;
        let (needed, limit) = (self.needed(), self.limit());
        let too_large = || {
            let work = needed.work;
            (work > limit)
                .then(|| format!("a backward pass needs about {}, and {} may be taken", size(work), size(limit)))
        };
        let maps = maps_memory(self.pool.n_steps(), self.layers.len());
        if maps > limit {
            let (n, layers) = (self.pool.n_steps(), self.layers.len());
            let (maps, limit) = (size(maps), size(limit));
            bail!(
                "maps of {n} steps in {layers} layers take about {maps}, and {limit} may be taken; --layers chooses fewer"
            );
        }
        match self.args.method {
            SaliencyMethod::Attention => return Ok(Method::Attention),
            SaliencyMethod::Probe => return self.check_budget().map(|()| Method::Probe),
            SaliencyMethod::Gradient | SaliencyMethod::Jacobian | SaliencyMethod::Auto => {}
        }
        match too_large().or_else(|| saliency::no_gradient(&self.model, self.threads())) {
            None => {
                let place = if self.inputs_in_file() { "a temporary file" } else { "memory" };
                let (work, inputs) = (size(needed.work), size(needed.inputs));
                say!("stepflow: the backward pass needs about {work}, and {inputs} for the layers' inputs in {place}");
                Ok(if self.args.method == SaliencyMethod::Jacobian { Method::Jacobian } else { Method::Gradient })
            }
            Some(reason) if self.args.heads || self.repairs.is_some() => {
                bail!("{reason}, and maps of heads or with StepFlow need it")
            }
            Some(reason) if self.args.method != SaliencyMethod::Auto => {
                let method =
                    self.args.method.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
                bail!("--method {method}: {reason}; --method probe and --method attention work with any attention")
            }
            Some(reason) => {
                say!("stepflow: measuring attention alone: {reason}; --method probe estimates, at many forwards");
                Ok(Method::Attention)
            }
        }
    }

    /// What a backward pass takes.
    fn needed(&self) -> Needed {
        Needed::new(&self.model, self.tokens.len(), self.threads(), self.repairs.is_some())
    }

    /// Bytes that may be taken.
    fn limit(&self) -> u64 {
        self.args.memory.or_else(saliency::free_memory).unwrap_or(u64::MAX)
    }

    fn inputs_in_file(&self) -> bool {
        let Needed { work, inputs } = self.needed();
        work + inputs > self.limit()
    }

    /// No flag may be without effect.
    fn check_flags(&self) -> Result<(), Usage> {
        match (self.args.method, self.args.probe.given(), self.args.loss) {
            (SaliencyMethod::Probe, ..) | (SaliencyMethod::Auto | SaliencyMethod::Gradient, None, _) => Ok(()),
            (_, Some(flag), _) => Err(Usage(format!("{flag} is for --method probe"))),
            (method, _, Some(loss)) => {
                let method = method.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
                Err(Usage(format!("--loss {loss}: --method {method} looks at no loss")))
            }
            (SaliencyMethod::Attention | SaliencyMethod::Jacobian, None, None) => Ok(()),
        }?;
        let only = |flag: &str| Err(Usage(format!("{flag} is for --method gradient")));
        match self.args.method {
            SaliencyMethod::Gradient | SaliencyMethod::Auto => Ok(()),
            _ if self.args.heads => only("--heads"),
            SaliencyMethod::Jacobian => Ok(()),
            _ if self.repairs.is_some() => only("--stepflow"),
            _ => Ok(()),
        }
    }

    fn check_budget(&self) -> anyhow::Result<()> {
        let params = self.params();
        let needed = self.probe_of(self.model.clone(), &params).n_forwards();
        match self.args.probe.budget {
            Some(budget) if (budget as usize) < needed => bail!(Usage(format!(
                "--budget {budget}: expected at least {needed} forwards, {} for each cell of {} layers and others to learn how \
                 noisy the loss is; --layers chooses fewer",
                2 * self.args.probe.pairs(),
                self.layers.len()
            ))),
            _ => Ok(()),
        }
    }

    /// Measures. Ctrl-C ends it early.
    pub fn measure(&self, method: Method) -> anyhow::Result<Saliency> {
        self.interrupt.during(|| match method {
            Method::Gradient => self.gradient(),
            Method::Jacobian => self.jacobian(),
            Method::Probe => self.probe(),
            Method::Attention => self.attention(),
        })
    }

    /// What the loss is of.
    pub fn loss(&self) -> LossOf {
        self.args.loss.unwrap_or(LossOf::All)
    }

    fn threads(&self) -> i32 {
        self.args.threads.unwrap_or(ContextParams::default().n_threads)
    }

    fn params(&self) -> ContextParams {
        ContextParams {
            n_ctx: self.tokens.len() as u32,
            n_threads: self.threads(),
            n_threads_batch: self.threads(),
            flash_attention: FlashAttention::Off,
            interrupt: Some(self.interrupt.flag()),
            ..ContextParams::default()
        }
    }

    /// The backward pass that the flags ask for.
    fn pass(&self) -> Pass<'_> {
        Pass {
            repairs: self.repairs.as_ref(),
            first_layer: self.layers.iter().min().copied().unwrap_or(0),
            inputs_in_file: self.inputs_in_file(),
            n_threads: self.threads(),
            interrupt: self.interrupt.flag(),
            ..Pass::new(self.model.path(), &self.tokens, &self.counted)
        }
    }

    fn jacobian(&self) -> anyhow::Result<Saliency> {
        let mut progress = Progress::new("jacobian", "steps", self.pool.n_steps());
        let wanted = |layer: usize| self.layers.contains(&layer);
        Ok(saliency::jacobian(&self.pass(), &self.pool, wanted, |done, _| progress.at(done))
            .map_err(EngineError::from)?)
    }

    fn gradient(&self) -> anyhow::Result<Saliency> {
        let pass = self.pass();
        let mut progress = Progress::new("gradient", "layers", 2 * self.model.n_layer() - pass.first_layer);
        let shown = |done, _| progress.at(done);
        let wanted = |layer: usize| self.layers.contains(&layer);
        Ok(saliency::gradient(&pass, &self.pool, self.args.heads, wanted, shown).map_err(EngineError::from)?)
    }

    /// The model with its weights.
    fn loaded(&self) -> anyhow::Result<Arc<Model>> {
        if self.model.has_weights() {
            return Ok(self.model.clone());
        }
        setup::say_of_gpus(self.model_params.n_gpu_layers);
        Ok(Arc::new(Model::load(self.model.path(), self.model_params)?))
    }

    fn attention(&self) -> anyhow::Result<Saliency> {
        let mut progress = Progress::new("attention", "tokens", self.tokens.len());
        let layers = self.layers.clone();
        let wanted = move |layer| layers.contains(&layer);
        let shown = |done| progress.at(done);
        Ok(saliency::attention(self.loaded()?, &self.params(), &self.tokens, &self.pool, wanted, shown)
            .map_err(EngineError::from)?)
    }

    fn probe(&self) -> anyhow::Result<Saliency> {
        let (mut model, mut params) = (self.loaded()?, self.params());
        if self.args.probe.activations() == Activations::F32 {
            model = dequantized(&model)?;
            (params.type_k, params.type_v) = (CacheType::F32, CacheType::F32);
        }
        let probe = self.probe_of(model, &params);
        let mut progress = Progress::new("probe", "forwards", probe.budget.unwrap_or(probe.n_forwards()));
        Ok(probe.run(&mut |done| progress.at(done)).map_err(EngineError::from)?)
    }

    /// The probes that the flags ask for.
    fn probe_of<'a>(&'a self, model: Arc<Model>, params: &'a ContextParams) -> Probe<'a> {
        Probe {
            model,
            params,
            tokens: &self.tokens,
            counted: &self.counted,
            pool: &self.pool,
            layers: &self.layers,
            estimator: match self.args.probe.estimator() {
                Estimator::Signed => saliency::Estimator::Signed,
                Estimator::Rms => saliency::Estimator::Rms,
            },
            pairs: self.args.probe.pairs(),
            budget: self.args.probe.budget.map(|budget| budget as usize),
            seed: self.args.probe.seed(),
        }
    }
}

/// The model with its weights in float32.
fn dequantized(model: &Model) -> anyhow::Result<Arc<Model>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("float32.gguf");
    say!(
        "stepflow: dequantizing into a temporary file of {:.1} GiB",
        4.0 * model.n_params() as f64 / f64::from(1 << 30)
    );
    llama::quantize(model.path(), &path, GgmlType::F32)?;
    // What is mapped stays when its file is gone.
    Ok(Arc::new(Model::load(&path, &ModelParams::default())?))
}

/// Bytes that the maps themselves take.
fn maps_memory(n_steps: usize, n_layers: usize) -> u64 {
    let cells = n_steps as u64 * (n_steps as u64 + 1) / 2 * n_layers as u64;
    cells * BYTES_A_CELL
}

/// A value and its estimate, what a probe sums up, and a copy for the pictures.
const BYTES_A_CELL: u64 = 128;

/// Bytes as a user reads them.
fn size(bytes: u64) -> String {
    format!("{:.1}", indicatif::BinaryBytes(bytes))
}
