//! Finite differences: what the loss makes of scaling the attention between two steps, on any model that shows attention.
//!
//! The trace is decoded once, step by step; the probes of a query step run as parallel sequences that share everything
//! before it.

use std::sync::Arc;

use crate::llama::{Batch, Context, ContextParams, LlamaError, Model, Row, Token};
use crate::random::SplitMix64;

use super::noise::{CLOSE, OFFSETS, best_step, noise_level, standard_error};
use super::scale::{Plan, Scale, Scaler};
use super::{Estimate, LayerMaps, Metric, MetricMap, Pool, Saliency, StepMap};

/// Sequences that probe side by side at most.
const MAX_SEQUENCES: usize = 63;

/// What is estimated of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Estimator {
    /// [`Metric::Signed`], by scaling the whole block.
    Signed,
    /// [`Metric::Rms`], by random signs for every head and row.
    Rms,
}

/// Measures a trace by probes.
pub struct Probe<'a> {
    /// The model.
    pub model: Arc<Model>,
    /// How it runs. The size of the context is chosen here.
    pub params: &'a ContextParams,
    /// The trace.
    pub tokens: &'a [Token],
    /// For each token, whether the loss counts it. The first is never counted.
    pub counted: &'a [bool],
    /// Its steps.
    pub pool: &'a Pool,
    /// Layers to measure, in order.
    pub layers: &'a [usize],
    /// What to estimate.
    pub estimator: Estimator,
    /// Central differences, of two forwards each, that every cell gets.
    pub pairs: usize,
    /// Forwards to spend at most. What is left when every cell has had its pairs goes where the noise is largest.
    pub budget: Option<usize>,
    /// Of the random signs.
    pub seed: u64,
}

impl Probe<'_> {
    /// Forwards that give every cell its pairs, those that find the noise included.
    pub fn n_forwards(n_steps: usize, n_layers: usize, pairs: usize) -> usize {
        let cells = n_layers * n_steps * (n_steps + 1) / 2;
        2 * n_steps * OFFSETS.len() + 2 * pairs * cells
    }

    /// Probes every cell. `progress` is told how many forwards are done. An interrupt ends the work early; what is not
    /// measured then is NaN.
    ///
    /// # Errors
    /// When llama.cpp fails, or the model has no attention to scale.
    pub fn run(&self, progress: &mut dyn FnMut(usize)) -> Result<Saliency, LlamaError> {
        let mut engine = Engine::new(self)?;
        let mut cells = vec![StepMap::new(self.pool.n_steps()); self.layers.len()];
        let mut noises = Vec::new();
        let mut done = 0;
        let mut forwards = |n: usize| {
            done += n;
            progress(done);
        };
        let first = |_: usize, _: usize, _: usize| self.pairs;
        let mut outcome = self.sweep(&mut engine, &mut cells, &mut noises, &first, &mut forwards);
        if outcome.is_ok()
            && let Some(budget) = self.budget
        {
            let least = Self::n_forwards(self.pool.n_steps(), self.layers.len(), self.pairs);
            let more = self.where_noise_is_largest(&cells, budget.saturating_sub(least) / 2);
            let wanted = |layer: usize, query: usize, key: usize| more[layer].get(query, key);
            outcome = self.sweep(&mut engine, &mut cells, &mut noises, &wanted, &mut forwards);
        }
        match outcome {
            Ok(()) | Err(LlamaError::Interrupted) => {}
            Err(error) => return Err(error),
        }
        let layers =
            self.layers.iter().zip(&cells).map(|(&layer, cells)| LayerMaps { layer, maps: self.maps(layer, cells) });
        Ok(Saliency { loss: engine.loss(), layers: layers.collect() })
    }

    /// Gives every cell as many pairs as `wanted` says of the index of its layer, its query and its key.
    fn sweep(
        &self,
        engine: &mut Engine<'_>,
        cells: &mut [StepMap<Cell>],
        noises: &mut Vec<Noise>,
        wanted: &dyn Fn(usize, usize, usize) -> usize,
        forwards: &mut dyn FnMut(usize),
    ) -> Result<(), LlamaError> {
        engine.rewind();
        for query in 0..self.pool.n_steps() {
            if noises.len() == query {
                noises.push(self.noise(engine, query)?);
                forwards(2 * OFFSETS.len());
            }
            let noise = &noises[query];
            let mut pairs = Vec::new();
            for (index, &layer) in self.layers.iter().enumerate() {
                for key in 0..=query {
                    let had = cells[index].get(query, key).n_pairs;
                    for n in had..had + wanted(index, query, key) {
                        pairs.push((index, key, self.scale(layer, query, key, n, noise.eps)));
                    }
                }
            }
            for group in pairs.chunks(engine.pairs_at_once(query)) {
                let both =
                    |(_, _, scale): &(usize, usize, Scale)| [scale.clone(), Scale { eps: -scale.eps, ..scale.clone() }];
                let losses = engine.losses(query, &group.iter().flat_map(both).collect::<Vec<_>>())?;
                for ((index, key, scale), losses) in group.iter().zip(losses.chunks_exact(2)) {
                    cells[*index].row_mut(query)[*key].add(losses, scale.eps, noise);
                }
                forwards(losses.len());
            }
            engine.advance(query)?;
        }
        Ok(())
    }

    /// The `n`-th scale of a cell. Steps differ, since the same step would meet the same rounding.
    fn scale(&self, layer: usize, query: usize, key: usize, n: usize, eps: f64) -> Scale {
        // Multiples of the golden ratio spread evenly.
        let shorter = 0.3 * (n as f64 * 0.618_033_988_749_895).fract();
        let (eps, seed) = match self.estimator {
            Estimator::Signed => (eps * (1.0 - shorter), None),
            Estimator::Rms => {
                let place =
                    [layer, query, key, n].iter().fold(self.seed, |hash, &x| SplitMix64::new(hash ^ x as u64).next());
                (eps, Some(place))
            }
        };
        Scale { layer, queries: self.pool.tokens(query), keys: self.pool.tokens(key), eps, seed }
    }

    /// The noise of the loss when a query step's attention changes in the first layer that is measured, where most is
    /// computed anew after it, and the step that suits it.
    fn noise(&self, engine: &mut Engine<'_>, query: usize) -> Result<Noise, LlamaError> {
        let level = noise_level(&self.table(engine, query, CLOSE)?);
        let losses = self.table(engine, query, 1.0)?;
        Ok(Noise { level, eps: best_step(&losses, level), loss: losses[OFFSETS.len() / 2] })
    }

    /// The loss with all of a query step's attention scaled by each of [`OFFSETS`] times a factor.
    fn table(&self, engine: &mut Engine<'_>, query: usize, times: f64) -> Result<[f64; OFFSETS.len()], LlamaError> {
        let queries = self.pool.tokens(query);
        let scales = OFFSETS.map(|offset| {
            let (queries, keys) = (queries.clone(), 0..queries.end);
            Scale { layer: self.layers[0], queries, keys, eps: times * offset, seed: None }
        });
        let mut losses = Vec::with_capacity(OFFSETS.len());
        for scales in scales.chunks(2 * engine.pairs_at_once(query)) {
            losses.extend(engine.losses(query, scales)?);
        }
        Ok(losses.try_into().expect("one loss for each offset"))
    }

    /// Hands out pairs, one by one, to the cell with the largest standard error.
    fn where_noise_is_largest(&self, cells: &[StepMap<Cell>], n: usize) -> Vec<StepMap<usize>> {
        let mut more = vec![StepMap::new(self.pool.n_steps()); cells.len()];
        let mut heap = std::collections::BinaryHeap::new();
        for (index, map) in cells.iter().enumerate() {
            for query in 0..map.n_steps() {
                for (key, cell) in map.row(query).iter().enumerate().filter(|(_, cell)| cell.error() > 0.0) {
                    // Positive numbers are in the order of their bits.
                    heap.push((cell.error().to_bits(), index, query, key));
                }
            }
        }
        for _ in 0..n {
            let Some((error, index, query, key)) = heap.pop() else { break };
            let count = &mut more[index].row_mut(query)[key];
            let had = (cells[index].get(query, key).n_pairs + *count) as f64;
            *count += 1;
            heap.push(((f64::from_bits(error) * (had / (had + 1.0)).sqrt()).to_bits(), index, query, key));
        }
        more
    }

    fn maps(&self, layer: usize, cells: &StepMap<Cell>) -> Vec<MetricMap> {
        let heads = self.model.n_head(layer) as f64;
        let (mut values, mut estimates) = (StepMap::new(cells.n_steps()), StepMap::new(cells.n_steps()));
        for query in 0..cells.n_steps() {
            for (key, cell) in cells.row(query).iter().enumerate() {
                let (queries, keys) = (self.pool.tokens(query).len() as f64, self.pool.tokens(key).len() as f64);
                let (sum, se, curvature, unit) = match self.estimator {
                    Estimator::Signed => (cell.slope(), cell.error(), cell.curvature(), queries * keys),
                    Estimator::Rms => {
                        // Without pairs it is NaN too.
                        let (rms, se) = cell.root_mean_square();
                        (rms, se, 0.0, (heads * queries).sqrt() * keys)
                    }
                };
                values.row_mut(query)[key] = sum / unit;
                estimates.row_mut(query)[key] =
                    Estimate { se: se / unit, curvature: curvature / unit, eps: cell.eps, n_probes: 2 * cell.n_pairs };
            }
        }
        let metric = match self.estimator {
            Estimator::Signed => Metric::Signed,
            Estimator::Rms => Metric::Rms,
        };
        vec![MetricMap { metric, values, estimates: Some(estimates) }]
    }
}

/// What is known of probing a query step.
struct Noise {
    /// Standard deviation of the loss.
    level: f64,
    /// The step to take.
    eps: f64,
    /// The loss where nothing is scaled.
    loss: f64,
}

/// Sums over a cell's central differences.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    n_pairs: usize,
    eps: f64,
    slopes: f64,
    squares: f64,
    fourths: f64,
    /// Of the slopes' standard errors.
    variances: f64,
    curvatures: f64,
}

impl Cell {
    /// Adds a pair: the losses at `1 + eps` and `1 - eps`.
    fn add(&mut self, losses: &[f64], eps: f64, noise: &Noise) {
        let slope = (losses[0] - losses[1]) / (2.0 * eps);
        if self.n_pairs == 0 {
            self.eps = eps;
        }
        self.n_pairs += 1;
        self.slopes += slope;
        self.squares += slope.powi(2);
        self.fourths += slope.powi(4);
        self.variances += standard_error(noise.level, eps).powi(2);
        self.curvatures += (losses[0] + losses[1] - 2.0 * noise.loss) / (2.0 * eps);
    }

    fn n(&self) -> f64 {
        self.n_pairs as f64
    }

    fn slope(&self) -> f64 {
        self.slopes / self.n()
    }

    /// Standard error of [`Cell::slope`].
    fn error(&self) -> f64 {
        self.variances.sqrt() / self.n()
    }

    fn curvature(&self) -> f64 {
        (self.curvatures / self.n()).abs()
    }

    /// Of the slope, without what noise adds to it; and its standard error.
    fn root_mean_square(&self) -> (f64, f64) {
        let mean_square = self.squares / self.n();
        let noise = self.variances / self.n();
        let spread = (self.fourths / self.n() - mean_square.powi(2)).max(0.0);
        // Of a mean square of `n` normal numbers at least as much as their noise gives.
        let error = ((spread + 2.0 * noise * noise) / self.n()).sqrt();
        let excess = mean_square - noise;
        let root = if excess < 0.0 { 0.0 } else { excess.sqrt() };
        (root, if root > 0.0 { (error / (2.0 * root)).min(error.sqrt()) } else { error.sqrt() })
    }
}

/// A context with the unchanged trace in sequence 0 and probes in others.
struct Engine<'a> {
    probe: &'a Probe<'a>,
    plan: Plan,
    context: Context,
    /// The last token that the loss counts: nothing after it is needed.
    last: usize,
    /// Of the tokens that sequence 0 predicted and the loss counts; NaN before they are.
    surprises: Vec<f64>,
}

impl<'a> Engine<'a> {
    fn new(probe: &'a Probe<'a>) -> Result<Self, LlamaError> {
        let n = probe.tokens.len();
        let room = n.max(probe.params.n_ubatch as usize);
        let n_sequences = MAX_SEQUENCES as u32 + 1;
        let params = ContextParams { n_ctx: (n + room) as u32, n_sequences, streams: false, ..probe.params.clone() };
        let plan = Plan::default();
        let context = Context::new(probe.model.clone(), &params, Some(Box::new(Scaler(plan.clone()))))?;
        let last = probe.counted.iter().rposition(|counted| *counted).unwrap_or(0);
        Ok(Self { probe, plan, context, last, surprises: vec![f64::NAN; n] })
    }

    /// Central differences of a query step that fit side by side.
    fn pairs_at_once(&self, query: usize) -> usize {
        let length = self.last.saturating_sub(self.probe.pool.tokens(query).start).max(1);
        (self.context.max_batch() / length).clamp(2, MAX_SEQUENCES) / 2
    }

    /// The loss under each scale, up to what comes before the query step.
    fn losses(&mut self, query: usize, scales: &[Scale]) -> Result<Vec<f64>, LlamaError> {
        let start = self.probe.pool.tokens(query).start;
        self.plan.set(scales);
        let sequences = 1..=scales.len() as u32;
        sequences.clone().for_each(|sequence| self.context.share(0, sequence, start));
        let outcome = self.decode(sequences.clone(), start..self.last);
        sequences.for_each(|sequence| _ = self.context.truncate(sequence, 0));
        self.plan.set(&[]);
        Ok(outcome?.iter().map(|surprises| self.mean(surprises.iter().map(|(_, nats)| *nats))).collect())
    }

    /// Decodes a query step in sequence 0.
    fn advance(&mut self, query: usize) -> Result<(), LlamaError> {
        for (token, nats) in self.decode(0..=0, self.probe.pool.tokens(query))?.into_iter().flatten() {
            self.surprises[token] = nats;
        }
        Ok(())
    }

    /// Empties sequence 0.
    fn rewind(&mut self) {
        self.context.truncate(0, 0);
    }

    /// Decodes the trace's tokens in several sequences. Returns, for each, the tokens predicted that count, with how
    /// surprising they are.
    fn decode(
        &mut self,
        sequences: std::ops::RangeInclusive<u32>,
        tokens: std::ops::Range<usize>,
    ) -> Result<Vec<Vec<(usize, f64)>>, LlamaError> {
        let n = sequences.clone().count();
        let mut surprises = vec![Vec::new(); n];
        let mut start = tokens.start;
        while start < tokens.end {
            let chunk = start..tokens.end.min(start + self.context.max_batch() / n);
            let rows: Vec<Row> = sequences
                .clone()
                .flat_map(|sequence| chunk.clone().map(move |position| (sequence, position)))
                .map(|(sequence, position)| self.row(sequence, position))
                .collect();
            let batch = Batch { rows };
            self.context.decode(&batch)?;
            if !self.context.offers_attention() {
                return Err(LlamaError::Hook("this model shows no attention".to_owned()));
            }
            for (index, row) in batch.rows.iter().enumerate().filter(|(_, row)| row.logits) {
                let next = row.position + 1;
                let nats = self.context.surprise(index, self.probe.tokens[next]);
                surprises[index / chunk.len()].push((next, nats));
            }
            start = chunk.end;
        }
        Ok(surprises)
    }

    fn row(&self, sequence: u32, position: usize) -> Row {
        let logits = self.probe.counted.get(position + 1).copied().unwrap_or(false);
        Row { sequence, logits, ..Row::plain(self.probe.tokens[position], position) }
    }

    /// The loss of the trace as it is, once all of it is decoded.
    fn loss(&self) -> Option<f64> {
        let counted = self.surprises.iter().zip(self.probe.counted).skip(1).filter(|(_, counted)| **counted);
        Some(self.mean(counted.map(|(nats, _)| *nats))).filter(|loss| loss.is_finite())
    }

    /// The share of these surprises in the loss.
    fn mean(&self, surprises: impl Iterator<Item = f64>) -> f64 {
        let n_counted = self.probe.counted[1..].iter().filter(|counted| **counted).count();
        surprises.sum::<f64>() / n_counted as f64
    }
}
