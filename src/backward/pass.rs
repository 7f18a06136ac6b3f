//! The whole of it: forward through all layers, and back.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::adjoint::Adjoint;
use super::attention::{self, Unwatched, Watch};
use super::loss::Seed;
use super::repairs::Repairs;
use super::run::Run;
use crate::llama::replay::{Recorded, Replay};
use crate::llama::{ContextParams, LlamaError, Token};

/// The sequence to differentiate over, and how.
pub struct Pass<'a> {
    /// The model file.
    pub model: &'a Path,
    /// The sequence, two tokens at least.
    pub tokens: &'a [Token],
    /// For each token, whether the loss counts how surprising it is. The first is never counted: nothing predicts it.
    pub counted: &'a [bool],
    /// The repairs that the model runs with.
    pub repairs: Option<&'a Repairs>,
    /// Caps of OEB's floor, to first order whose effect on a model without repairs is told.
    pub taus: &'a [f64],
    /// Layers before this one need not be gone through.
    pub first_layer: usize,
    /// Whether the layers' inputs wait in a temporary file.
    pub inputs_in_file: bool,
    /// Threads.
    pub n_threads: i32,
    /// Set from anywhere, it interrupts the pass.
    pub interrupt: Arc<AtomicBool>,
}

/// What is told of a layer when the backward pass has gone through it.
pub struct LayerResult<W> {
    /// The layer, from 0.
    pub layer: usize,
    /// Heads.
    pub n_head: usize,
    /// What was seen of its attention.
    pub watcher: W,
    /// How the loss hangs on the repairs, where there are any.
    pub sensitivity: Option<Sensitivity>,
    /// For each token, the square of the loss's derivative by its row of the layer's input.
    pub input_squares: Vec<f64>,
}

/// How the loss hangs on the repairs of a layer, head by head, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Its derivative by SMI's alpha.
    pub by_alpha: Vec<f64>,
    /// Its derivative by OEB's tau, in rows that are bridged.
    pub by_tau: Vec<f64>,
    /// What it would change by, to first order, with each of [`Pass::taus`] in a layer without OEB: `[heads][taus]`.
    pub effects_of_tau: Vec<Vec<f64>>,
}

/// What a pass ends with.
pub struct Outcome {
    /// The mean surprise of the counted tokens, in nats.
    pub loss: f64,
    /// The layer that it came to, from the last one: the first that was asked for, or where it was interrupted.
    pub reached: usize,
    /// For each token, the product of its embedding and the loss's derivative by it, in nats; if the first layer was reached.
    pub by_token: Option<Vec<f64>>,
}

/// How far a pass is: layers gone through, forward and backward, and how many there are.
pub type Progress<'a> = &'a mut (dyn FnMut(usize, usize) + Send);

impl<'a> Pass<'a> {
    /// Over a sequence, of the model as it is, through all layers.
    pub fn new(model: &'a Path, tokens: &'a [Token], counted: &'a [bool]) -> Self {
        Self {
            model,
            tokens,
            counted,
            repairs: None,
            taus: &[],
            first_layer: 0,
            inputs_in_file: false,
            n_threads: ContextParams::default().n_threads,
            interrupt: Arc::default(),
        }
    }

    /// Runs it. `watch` makes watchers of a layer's attention, `visit` is told of every layer, the last one first.
    ///
    /// # Errors
    /// When the model cannot be loaded or its layers run one at a time, when a temporary file cannot be written, and when the
    /// pass is interrupted before it came through any layer.
    pub fn run<W: Watch>(
        &self,
        watch: &(dyn Fn(usize) -> W + Sync),
        visit: &mut (dyn FnMut(LayerResult<W>) + Send),
        progress: Progress<'_>,
    ) -> Result<Outcome, LlamaError> {
        let (threads, replay) = self.record()?;
        threads.install(|| self.run_on(replay, watch, visit, progress))
    }

    /// Takes the Jacobian of what the tokens of each of `steps` are given, their mean logit, by every layer's input. `visit` is told
    /// of each step's layers, the last one first; `progress` of steps.
    ///
    /// # Errors
    /// As [`Pass::run`].
    pub fn jacobian(
        &self,
        steps: &[Range<usize>],
        visit: &mut (dyn FnMut(usize, LayerResult<Unwatched>) + Send),
        progress: Progress<'_>,
    ) -> Result<(), LlamaError> {
        let (threads, replay) = self.record()?;
        threads.install(|| {
            let mut run = Run::new(self, replay)?;
            run.forward(&mut |_| {})?;
            let n_layer = run.replay.layers.len();
            for (number, step) in steps.iter().enumerate() {
                run.keep_first(step.end);
                let (_, mut gradient) = run.head(Seed::Logit, |token| step.contains(&token))?;
                for layer in (self.first_layer..n_layer).rev() {
                    visit(number, run.backward(layer, &mut gradient, &|_| Unwatched)?);
                }
                progress(number + 1, steps.len());
            }
            Ok(())
        })
    }

    /// Threads, and the model, recorded.
    fn record(&self) -> Result<(rayon::ThreadPool, Replay), LlamaError> {
        assert!(self.tokens.len() > 1 && self.tokens.len() == self.counted.len(), "a sequence and what counts of it");
        let failed = |reason| LlamaError::Replay { reason };
        let n_threads = usize::try_from(self.n_threads).unwrap_or(1).max(1);
        let threads = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build();
        let threads = threads.map_err(|error| failed(error.to_string()))?;
        let mut check = |recorded: &Recorded<'_>| threads.install(|| check_attention(recorded));
        let n_rows = rows_of_chunk(self.tokens.len());
        let replay = Replay::record(self.model, self.tokens, n_rows, self.n_threads, &self.interrupt, &mut check)?;
        Ok((threads, replay))
    }

    fn run_on<W: Watch>(
        &self,
        replay: Replay,
        watch: &(dyn Fn(usize) -> W + Sync),
        visit: &mut (dyn FnMut(LayerResult<W>) + Send),
        progress: Progress<'_>,
    ) -> Result<Outcome, LlamaError> {
        let failed = |reason| LlamaError::Replay { reason };
        let mut run = Run::new(self, replay)?;
        let (n_layer, first) = (run.replay.layers.len(), self.first_layer);
        let n_passes = 2 * n_layer - first;
        run.forward(&mut |layer| progress(layer, n_passes))?;
        let (loss, mut gradient) = run.head(Seed::Surprise, |token| self.counted[token])?;
        if !loss.is_finite() {
            return Err(failed(format!("its loss is {loss}")));
        }
        for layer in (first..n_layer).rev() {
            let found = run.backward(layer, &mut gradient, watch);
            match found {
                Err(LlamaError::Interrupted) if layer + 1 < n_layer => {
                    return Ok(Outcome { loss, reached: layer + 1, by_token: None });
                }
                other => visit(other?),
            }
            progress(2 * n_layer - layer, n_passes);
        }
        let by_token = (first == 0).then(|| run.by_token(&gradient));
        Ok(Outcome { loss, reached: first, by_token })
    }
}

/// Rows of a chunk at most: more take more memory, and fewer have weights dequantized more often.
const MOST_ROWS: usize = 128;

/// Rows of the chunks that a sequence is cut into: the last one is to be nearly full.
pub(super) fn rows_of_chunk(n_tokens: usize) -> usize {
    n_tokens.div_ceil(n_tokens.div_ceil(MOST_ROWS)).next_multiple_of(4)
}

/// Whether a model's layers can be run again and differentiated: a few tokens are run through it.
///
/// # Errors
/// As [`Pass::run`].
pub fn try_out(model: &Path, n_threads: i32) -> Result<(), LlamaError> {
    const FEW: usize = 32;
    let mut replay =
        Replay::record(model, &[Token(0)], FEW, n_threads, &Arc::default(), &mut |recorded| check_attention(recorded))?;
    adjoints(&mut replay).map(|_| ()).map_err(|reason| LlamaError::Replay { reason })
}

/// Whether our attention gives what llama.cpp's gave.
fn check_attention(recorded: &Recorded<'_>) -> Result<(), String> {
    let Recorded { number, attention, queries, keys, values, outputs } = *recorded;
    let ours = attention::Layer { attention, queries, keys, values, bridge: None }.forward().outputs;
    let largest = outputs.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let error = ours
        .iter()
        .zip(outputs)
        .fold(0.0f32, |error, (a, b)| if (a - b).abs() <= error { error } else { (a - b).abs() });
    // Sums of as many products of float32 as a chunk has rows, in another order; a mask that was not understood is far off.
    if error <= 1e-4 * largest {
        Ok(())
    } else {
        Err(format!("attention of layer {number} is off by {error} of {largest}"))
    }
}

/// Of what is before and behind each layer's attention, and of the head.
pub(super) fn adjoints(replay: &mut Replay) -> Result<(Vec<[Adjoint; 2]>, Adjoint), String> {
    let mut layers = Vec::new();
    for (number, layer) in replay.layers.iter_mut().enumerate() {
        let of_layer = |error| format!("layer {number}: {error}");
        let pre = Adjoint::new(&mut layer.pre).map_err(of_layer)?;
        layers.push([pre, Adjoint::new(&mut layer.post).map_err(of_layer)?]);
    }
    Ok((layers, Adjoint::new(&mut replay.head)?))
}
