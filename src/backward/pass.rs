//! The whole of it: forward through all layers, and back.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::adjoint::Adjoint;
use super::attention::{self, Watch};
use super::inputs::Inputs;
use super::loss::differentiate;
use super::repairs::{LayerRepair, Repairs};
use crate::llama::replay::{Attention, Part, Recorded, Replay, Which, Workspace};
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
        assert!(self.tokens.len() > 1 && self.tokens.len() == self.counted.len(), "a sequence and what counts of it");
        let failed = |reason| LlamaError::Replay { reason };
        let n_threads = usize::try_from(self.n_threads).unwrap_or(1).max(1);
        let threads = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build();
        let threads = threads.map_err(|error| failed(error.to_string()))?;
        let mut check = |recorded: &Recorded<'_>| threads.install(|| check_attention(recorded));
        let n_rows = rows_of_chunk(self.tokens.len());
        let replay = Replay::record(self.model, self.tokens, n_rows, self.n_threads, &self.interrupt, &mut check)?;
        threads.install(|| self.run_on(replay, watch, visit, progress))
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
        let (loss, mut gradient) = run.head()?;
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
fn adjoints(replay: &mut Replay) -> Result<(Vec<[Adjoint; 2]>, Adjoint), String> {
    let mut layers = Vec::new();
    for (number, layer) in replay.layers.iter_mut().enumerate() {
        let of_layer = |error| format!("layer {number}: {error}");
        let pre = Adjoint::new(&mut layer.pre).map_err(of_layer)?;
        layers.push([pre, Adjoint::new(&mut layer.post).map_err(of_layer)?]);
    }
    Ok((layers, Adjoint::new(&mut replay.head)?))
}

/// A pass on its way.
struct Run<'a> {
    pass: &'a Pass<'a>,
    replay: Replay,
    /// Of what is before and behind each layer's attention.
    adjoints: Vec<[Adjoint; 2]>,
    head: Adjoint,
    inputs: Inputs,
    /// Tokens, and room for as many as fill chunks.
    n_padded: usize,
}

/// A layer that has run up to its attention.
struct Attended {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    forward: attention::Forward,
}

impl<'a> Run<'a> {
    fn new(pass: &'a Pass<'a>, mut replay: Replay) -> Result<Self, LlamaError> {
        let (adjoints, head) = adjoints(&mut replay).map_err(|reason| LlamaError::Replay { reason })?;
        let logits = replay.head.targets().to_vec();
        replay.head.keep(logits);
        let n_padded = pass.tokens.len().next_multiple_of(replay.n_rows);
        let inputs = Inputs::new(n_padded * replay.width(), pass.inputs_in_file).map_err(temporary)?;
        Ok(Self { pass, replay, adjoints, head, inputs, n_padded })
    }

    /// The rows, cut into as many as parts run with.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (n_padded, n_rows) = (self.n_padded, self.replay.n_rows);
        (0..n_padded).step_by(n_rows).map(move |first| first..first + n_rows)
    }

    fn check_interrupt(&self) -> Result<(), LlamaError> {
        if self.pass.interrupt.load(Ordering::Relaxed) { Err(LlamaError::Interrupted) } else { Ok(()) }
    }

    /// Keeps each layer's input, and the last one's output.
    fn forward(&mut self, progress: &mut dyn FnMut(usize)) -> Result<(), LlamaError> {
        let width = self.replay.width();
        let mut x = vec![0.0; self.n_padded * width];
        for (token, to) in self.pass.tokens.iter().zip(x.chunks_exact_mut(width)) {
            self.replay.embed(*token, to);
        }
        for number in 0..self.replay.layers.len() {
            self.inputs.push(&x).map_err(temporary)?;
            let attended = self.attend(number, &x)?;
            let outputs = attended.forward.outputs;
            let layer = &self.replay.layers[number];
            let per_token = [width, layer.attention.n_head * layer.attention.value_dim];
            let mut y = vec![0.0; x.len()];
            for rows in self.chunks() {
                let given = [chunk(&x, &rows, per_token[0]), chunk(&outputs, &rows, per_token[1])];
                run(&layer.post, &mut self.replay.workspace, Which::Targets, &given, rows.start)?;
                let made = layer.post.rows(&self.replay.workspace, layer.post.targets()[0]);
                y[rows.start * width..][..made.len()].copy_from_slice(&made);
            }
            x = y;
            self.check_interrupt()?;
            progress(number + 1);
        }
        self.inputs.push(&x).map_err(temporary)
    }

    /// Runs a layer up to its attention.
    fn attend(&mut self, number: usize, x: &[f32]) -> Result<Attended, LlamaError> {
        let (width, n_padded) = (self.replay.width(), self.n_padded);
        let layer = &self.replay.layers[number];
        let Attention { n_head, n_head_kv, key_dim, value_dim, .. } = layer.attention;
        let sizes = [n_head * key_dim, n_head_kv * key_dim, n_head_kv * value_dim];
        let mut all = sizes.map(|size| vec![0.0; n_padded * size]);
        for rows in self.chunks() {
            run(&layer.pre, &mut self.replay.workspace, Which::Targets, &[chunk(x, &rows, width)], rows.start)?;
            for ((to, size), target) in all.iter_mut().zip(sizes).zip(layer.pre.targets()) {
                let made = layer.pre.rows(&self.replay.workspace, *target);
                to[rows.start * size..][..made.len()].copy_from_slice(&made);
            }
        }
        let [queries, keys, values] = all;
        let repair = self.pass.repairs.map(|repairs| repairs.of_layer(number));
        let mut forward = self.attention(number, &queries, &keys, &values, repair.as_ref()).forward();
        if let Some(repair) = &repair {
            repair.inject(&mut forward.outputs, &values, &layer.attention);
        }
        forward.outputs.resize(n_padded * n_head * value_dim, 0.0);
        Ok(Attended { queries, keys, values, forward })
    }

    /// The attention of a layer over the tokens that there are.
    fn attention<'l>(
        &'l self,
        number: usize,
        queries: &'l [f32],
        keys: &'l [f32],
        values: &'l [f32],
        repair: Option<&'l LayerRepair<'l>>,
    ) -> attention::Layer<'l> {
        let attention = &self.replay.layers[number].attention;
        let Attention { n_head, n_head_kv, key_dim, value_dim, .. } = *attention;
        let n = self.pass.tokens.len();
        attention::Layer {
            attention,
            queries: &queries[..n * n_head * key_dim],
            keys: &keys[..n * n_head_kv * key_dim],
            values: &values[..n * n_head_kv * value_dim],
            bridge: repair.and_then(|repair| repair.bridge.as_ref()),
        }
    }

    /// The loss, and its derivative by the last layer's output.
    fn head(&mut self) -> Result<(f64, Vec<f32>), LlamaError> {
        let (tokens, counted) = (self.pass.tokens, self.pass.counted);
        let n_layer = self.replay.layers.len();
        let x = self.inputs.take(n_layer).map_err(temporary)?;
        let width = self.replay.width();
        let n_counted = counted[1..].iter().filter(|counted| **counted).count().max(1);
        let (mut loss, mut gradient) = (0.0, vec![0.0; x.len()]);
        // Row t predicts token t + 1.
        let target = |row: usize| (row + 1 < tokens.len() && counted[row + 1]).then(|| tokens[row + 1].0 as usize);
        for rows in self.chunks() {
            let targets: Vec<Option<usize>> = rows.clone().map(target).collect();
            if targets.iter().all(Option::is_none) {
                continue;
            }
            let head = &self.replay.head;
            run(head, &mut self.replay.workspace, Which::Kept, &[chunk(&x, &rows, width)], rows.start)?;
            let mut logits = head.rows(&self.replay.workspace, head.targets()[0]);
            loss += differentiate(&mut logits, &targets, n_counted);
            let by_input = self.head.run(head, &self.replay.workspace, vec![logits.into()]).remove(0);
            gradient[rows.start * width..][..by_input.len()].copy_from_slice(&by_input);
            self.check_interrupt()?;
        }
        Ok((loss / n_counted as f64, gradient))
    }

    /// Takes the gradient by a layer's output to that by its input.
    fn backward<W: Watch>(
        &mut self,
        number: usize,
        gradient: &mut [f32],
        watch: &(dyn Fn(usize) -> W + Sync),
    ) -> Result<LayerResult<W>, LlamaError> {
        self.check_interrupt()?;
        let x = self.inputs.take(number).map_err(temporary)?;
        let Attended { queries, keys, values, forward } = self.attend(number, &x)?;
        let Attention { n_head, n_head_kv, key_dim, value_dim, .. } = self.replay.layers[number].attention;
        let width = self.replay.width();
        let by_outputs = self.through_post(number, &x, &forward.outputs, gradient)?;
        self.check_interrupt()?;
        let repair = self.pass.repairs.map(|repairs| repairs.of_layer(number));
        let layer = self.attention(number, &queries, &keys, &values, repair.as_ref());
        let by_outputs = &by_outputs[..self.pass.tokens.len() * n_head * value_dim];
        let sensitivity = repair.as_ref().map(|repair| Sensitivity {
            by_alpha: repair.by_alpha(by_outputs, &values, layer.attention),
            ..through_groups(&forward, by_outputs, layer.attention, self.pass.taus)
        });
        let (mut by, watcher) = layer.backward(&forward, by_outputs, || watch(number));
        if let Some(repair) = &repair {
            repair.inject_back(by_outputs, &mut by.values, &self.replay.layers[number].attention);
        }
        drop((queries, keys, values, forward));
        let sizes = [n_head * key_dim, n_head_kv * key_dim, n_head_kv * value_dim];
        let attention::Backward { queries, keys, values } = by;
        let mut by = [queries, keys, values];
        by.iter_mut().zip(sizes).for_each(|(by, size)| by.resize(self.n_padded * size, 0.0));
        let ([pre, _], layer) = (&self.adjoints[number], &self.replay.layers[number]);
        for rows in self.chunks() {
            run(&layer.pre, &mut self.replay.workspace, Which::Kept, &[chunk(&x, &rows, width)], rows.start)?;
            let by_targets = by.iter().zip(sizes).map(|(by, size)| chunk(by, &rows, size).into()).collect();
            let by_input = pre.run(&layer.pre, &self.replay.workspace, by_targets).remove(0);
            gradient[rows.start * width..][..by_input.len()]
                .iter_mut()
                .zip(&by_input)
                .for_each(|(to, from)| *to += from);
        }
        Ok(LayerResult { layer: number, n_head, watcher, sensitivity })
    }

    /// Each token's embedding times the loss's derivative by it.
    fn by_token(&self, gradient: &[f32]) -> Vec<f64> {
        let width = self.replay.width();
        let mut embedding = vec![0.0; width];
        let of_token = |(token, gradient): (&Token, &[f32])| {
            self.replay.embed(*token, &mut embedding);
            embedding.iter().zip(gradient).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        self.pass.tokens.iter().zip(gradient.chunks_exact(width)).map(of_token).collect()
    }

    /// Through what follows attention: `gradient` becomes that by the layer's input, as far as it goes past attention. Returns
    /// that by the outputs of all heads.
    fn through_post(
        &mut self,
        number: usize,
        x: &[f32],
        outputs: &[f32],
        gradient: &mut [f32],
    ) -> Result<Vec<f32>, LlamaError> {
        let ([_, post], layer) = (&self.adjoints[number], &self.replay.layers[number]);
        let (width, of_heads) = (self.replay.width(), layer.attention.n_head * layer.attention.value_dim);
        let mut by_outputs = vec![0.0; outputs.len()];
        for rows in self.chunks() {
            let given = [chunk(x, &rows, width), chunk(outputs, &rows, of_heads)];
            run(&layer.post, &mut self.replay.workspace, Which::Kept, &given, rows.start)?;
            let by = post.run(&layer.post, &self.replay.workspace, vec![chunk(gradient, &rows, width).into()]);
            gradient[rows.start * width..][..by[0].len()].copy_from_slice(&by[0]);
            by_outputs[rows.start * of_heads..][..by[1].len()].copy_from_slice(&by[1]);
        }
        Ok(by_outputs)
    }
}

/// How the loss hangs on OEB, head by head.
fn through_groups(
    forward: &attention::Forward,
    by_outputs: &[f32],
    attention: &Attention,
    taus: &[f64],
) -> Sensitivity {
    let Attention { n_head, value_dim, .. } = *attention;
    let mut found = Sensitivity {
        by_alpha: Vec::new(),
        by_tau: vec![0.0; n_head],
        effects_of_tau: vec![vec![0.0; taus.len()]; n_head],
    };
    let Some(groups) = &forward.groups else { return found };
    for (row, by_output) in by_outputs.chunks_exact(value_dim).enumerate() {
        found.by_tau[row % n_head] += groups.by_tau(row, by_output);
        groups.effects_of_tau(row, by_output, taus, &mut found.effects_of_tau[row % n_head]);
    }
    found
}

/// Some rows.
fn chunk<'a>(all: &'a [f32], rows: &Range<usize>, width: usize) -> &'a [f32] {
    &all[rows.start * width..rows.end * width]
}

fn run(part: &Part, workspace: &mut Workspace, which: Which, given: &[&[f32]], first: usize) -> Result<(), LlamaError> {
    part.run(workspace, which, given, first).map_err(|reason| LlamaError::Replay { reason })
}

fn temporary(source: io::Error) -> LlamaError {
    LlamaError::Temporary { folder: std::env::temp_dir(), source }
}
