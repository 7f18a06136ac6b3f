//! A pass on its way: chunk by chunk through the parts of each layer.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::adjoint::Adjoint;
use super::attention::{self, Watch};
use super::inputs::Inputs;
use super::loss::Seed;
use super::pass::{LayerResult, Pass, Sensitivity, adjoints};
use super::repairs::LayerRepair;
use crate::llama::replay::{Attention, Part, Replay, Which, Workspace};
use crate::llama::{LlamaError, Token};

/// A pass on its way.
pub(super) struct Run<'a> {
    pass: &'a Pass<'a>,
    /// The tokens that are gone through: those that the pass is over, or the first of them.
    tokens: &'a [Token],
    pub replay: Replay,
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
    pub fn new(pass: &'a Pass<'a>, mut replay: Replay) -> Result<Self, LlamaError> {
        let (adjoints, head) = adjoints(&mut replay).map_err(|reason| LlamaError::Replay { reason })?;
        let logits = replay.head.targets().to_vec();
        replay.head.keep(logits);
        let n_padded = pass.tokens.len().next_multiple_of(replay.n_rows);
        let inputs = Inputs::new(n_padded * replay.width(), pass.inputs_in_file).map_err(temporary)?;
        Ok(Self { pass, tokens: pass.tokens, replay, adjoints, head, inputs, n_padded })
    }

    /// Goes on with the first tokens alone.
    pub fn keep_first(&mut self, n_tokens: usize) {
        self.tokens = &self.pass.tokens[..n_tokens];
        self.n_padded = n_tokens.next_multiple_of(self.replay.n_rows);
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
    pub fn forward(&mut self, progress: &mut dyn FnMut(usize)) -> Result<(), LlamaError> {
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
        let n = self.tokens.len();
        attention::Layer {
            attention,
            queries: &queries[..n * n_head * key_dim],
            keys: &keys[..n * n_head_kv * key_dim],
            values: &values[..n * n_head_kv * value_dim],
            bridge: repair.and_then(|repair| repair.bridge.as_ref()),
        }
    }

    /// The mean of what `seed` asks of the tokens that it counts, and its derivative by the last layer's output.
    pub fn head(&mut self, seed: Seed, counted: impl Fn(usize) -> bool) -> Result<(f64, Vec<f32>), LlamaError> {
        let tokens = self.tokens;
        let x = self.inputs.of_layer(self.replay.layers.len()).map_err(temporary)?;
        let width = self.replay.width();
        let n_counted = (1..tokens.len()).filter(|token| counted(*token)).count().max(1);
        let (mut sum, mut gradient) = (0.0, vec![0.0; self.n_padded * width]);
        // Row t predicts token t + 1.
        let target = |row: usize| (row + 1 < tokens.len() && counted(row + 1)).then(|| tokens[row + 1].0 as usize);
        for rows in self.chunks() {
            let targets: Vec<Option<usize>> = rows.clone().map(target).collect();
            if targets.iter().all(Option::is_none) {
                continue;
            }
            let head = &self.replay.head;
            run(head, &mut self.replay.workspace, Which::Kept, &[chunk(&x, &rows, width)], rows.start)?;
            let mut logits = head.rows(&self.replay.workspace, head.targets()[0]);
            sum += seed.differentiate(&mut logits, &targets, n_counted);
            let by_input = self.head.run(head, &self.replay.workspace, vec![logits.into()]).remove(0);
            gradient[rows.start * width..][..by_input.len()].copy_from_slice(&by_input);
            self.check_interrupt()?;
        }
        Ok((sum / n_counted as f64, gradient))
    }

    /// Takes the gradient by a layer's output to that by its input.
    pub fn backward<W: Watch>(
        &mut self,
        number: usize,
        gradient: &mut [f32],
        watch: &(dyn Fn(usize) -> W + Sync),
    ) -> Result<LayerResult<W>, LlamaError> {
        self.check_interrupt()?;
        let x = self.inputs.of_layer(number).map_err(temporary)?;
        let Attended { queries, keys, values, forward } = self.attend(number, &x)?;
        let Attention { n_head, n_head_kv, key_dim, value_dim, .. } = self.replay.layers[number].attention;
        let width = self.replay.width();
        let by_outputs = self.through_post(number, &x, &forward.outputs, gradient)?;
        self.check_interrupt()?;
        let repair = self.pass.repairs.map(|repairs| repairs.of_layer(number));
        let layer = self.attention(number, &queries, &keys, &values, repair.as_ref());
        let by_outputs = &by_outputs[..self.tokens.len() * n_head * value_dim];
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
        let of_token = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let input_squares = gradient.chunks_exact(width).take(self.tokens.len()).map(of_token).collect();
        Ok(LayerResult { layer: number, n_head, watcher, sensitivity, input_squares })
    }

    /// Each token's embedding times the loss's derivative by it.
    pub fn by_token(&self, gradient: &[f32]) -> Vec<f64> {
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
