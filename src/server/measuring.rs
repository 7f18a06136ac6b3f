//! What `/v1/saliency` measures: a trace, by a method, within the server's limits.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::backward::{Needed, Pass};
use crate::llama::{ContextParams, FlashAttention, LlamaError, Model, Token};
use crate::saliency::{self, Estimator, Pool, Probe, Saliency};
use crate::trace::{Step, TraceFile};

use super::error::ApiError;

/// Cells of the maps of one job: 250 steps of a model with 64 layers. Half of them, those above the diagonal, are never
/// stored, so it comes to 16 MB, and to some 40 MB as JSON or 200 MB as CSV.
pub const MAX_CELLS: usize = 4_000_000;

/// How saliency is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    #[default]
    Attention,
    Gradient,
    Probe,
}

impl Method {
    /// Its name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Gradient => "gradient",
            Self::Probe => "probe",
        }
    }

    /// Whether it takes long, and so runs in the background.
    pub fn is_job(self) -> bool {
        self != Self::Attention
    }

    /// Numbers for each pair of steps: attention; saliency and its signed sum; a value and the four of its estimate.
    pub fn n_numbers(self) -> usize {
        match self {
            Self::Attention => 1,
            Self::Gradient => 2,
            Self::Probe => 5,
        }
    }
}

/// How a result is written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Json,
    Csv,
}

/// What is measured.
pub struct Task {
    pub model: Arc<Model>,
    pub trace: TraceFile,
    pub tokens: Vec<Token>,
    pub pool: Pool,
    pub method: Method,
    pub layers: Vec<usize>,
}

impl Task {
    /// Cells of its maps, as squares.
    pub fn n_cells(&self) -> usize {
        self.pool.n_steps().pow(2) * self.layers.len() * self.method.n_numbers()
    }

    /// Refuses what cannot be measured.
    ///
    /// # Errors
    /// When it would take too much memory, or the model does not offer it.
    pub fn check(&self) -> Result<(), ApiError> {
        self.check_size()?;
        self.check_gradient()
    }

    /// Refuses what would take too much memory, before any of it is taken.
    fn check_size(&self) -> Result<(), ApiError> {
        let found = self.n_cells();
        if found <= MAX_CELLS {
            return Ok(());
        }
        let (steps, layers, numbers) = (self.pool.n_steps(), self.layers.len(), self.method.n_numbers());
        Err(ApiError::invalid(format!(
            "expected maps of at most {MAX_CELLS} cells, found {found} (steps {steps} x {steps}, layers {layers}, \
             numbers for each {numbers}): name fewer `layers` at a time, or give a trace of fewer steps"
        )))
    }

    fn check_gradient(&self) -> Result<(), ApiError> {
        if self.method != Method::Gradient {
            return Ok(());
        }
        let n_threads = ContextParams::default().n_threads;
        let Needed { inputs, work } = Needed::new(&self.model, self.tokens.len(), n_threads, false);
        let (needed, free) = (inputs + work, saliency::free_memory().unwrap_or(u64::MAX));
        let too_large = || {
            let mib = |bytes: u64| bytes >> 20;
            (needed > free).then(|| format!("a backward pass needs {} MiB, and {} are free", mib(needed), mib(free)))
        };
        match too_large() {
            Some(reason) => {
                Err(ApiError::invalid(format!("method gradient: {reason}; probe and attention are others")))
            }
            None => Ok(()),
        }
    }

    /// Measures it; `stop` interrupts. `progress` is told what is done and of how much.
    ///
    /// # Errors
    /// When llama.cpp fails, or it was interrupted.
    pub fn measure(
        &self,
        stop: &Arc<AtomicBool>,
        progress: &mut (dyn FnMut(usize, usize) + Send),
    ) -> Result<Saliency, LlamaError> {
        let params = ContextParams {
            n_ctx: self.tokens.len() as u32,
            flash_attention: FlashAttention::Off,
            interrupt: Some(stop.clone()),
            ..ContextParams::default()
        };
        let layers = self.layers.clone();
        let counted = vec![true; self.tokens.len()];
        match self.method {
            Method::Attention => {
                let total = self.tokens.len();
                progress(0, total);
                let wanted = move |layer| layers.contains(&layer);
                let shown = |done| progress(done, total);
                saliency::attention(self.model.clone(), &params, &self.tokens, &self.pool, wanted, shown)
            }
            Method::Gradient => {
                let (n_threads, first_layer) = (params.n_threads, layers.iter().min().copied().unwrap_or(0));
                let plain = Pass::new(self.model.path(), &self.tokens, &counted);
                let pass = Pass { first_layer, n_threads, interrupt: stop.clone(), ..plain };
                saliency::gradient(&pass, &self.pool, false, |layer| layers.contains(&layer), progress)
            }
            Method::Probe => {
                let probe = Probe {
                    model: self.model.clone(),
                    params: &params,
                    tokens: &self.tokens,
                    counted: &counted,
                    pool: &self.pool,
                    layers: &layers,
                    estimator: Estimator::Rms,
                    pairs: 1,
                    budget: None,
                    seed: 0,
                };
                let total = probe.n_forwards();
                progress(0, total);
                probe.run(&mut |done| progress(done, total))
            }
        }
    }

    /// Its steps, as JSON.
    pub fn steps(&self) -> Vec<Value> {
        let step = |step: &Step| {
            let bytes: Vec<u8> = self.trace.tokens[step.tokens.clone()].iter().flat_map(|t| t.piece.clone()).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            json!({ "segment": step.segment, "start": step.tokens.start, "end": step.tokens.end, "text": text })
        };
        self.trace.steps.iter().map(step).collect()
    }
}
