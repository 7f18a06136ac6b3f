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

/// Tables of losses that say how noisy they are, and how far to step.
const TABLES: usize = 1 + CLOSE.len();

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
    /// Forwards that give every cell its pairs: those that find the noise and those that stand idle beside others included.
    pub fn n_forwards(&self) -> usize {
        let of = |query| {
            let width = self.width(query);
            width + (TABLES * OFFSETS.len()).next_multiple_of(width) + self.n_probes(query).next_multiple_of(width)
        };
        (0..self.pool.n_steps()).map(of).sum()
    }

    /// Forwards with something scaled that give every cell of a query step its pairs.
    fn n_probes(&self, query: usize) -> usize {
        2 * self.pairs * self.layers.len() * (query + 1)
    }

    /// Sequences that always run side by side while a query step is probed: about as many as fill a micro-batch.
    fn width(&self, query: usize) -> usize {
        let length = self.last().saturating_sub(self.pool.tokens(query).start).max(1);
        let fit = (self.params.n_ubatch as usize / length).clamp(1, MAX_SEQUENCES);
        let needed = self.n_probes(query).max(1);
        needed.div_ceil(needed.div_ceil(fit))
    }

    /// The last token that the loss counts: nothing after it is needed.
    fn last(&self) -> usize {
        self.counted.iter().rposition(|counted| *counted).unwrap_or(0)
    }

    /// Probes every cell. `progress` is told how many forwards are done. An interrupt ends the work early; what is not
    /// measured then is NaN.
    ///
    /// # Errors
    /// When llama.cpp fails, or the model has no attention to scale.
    pub fn run(&self, progress: &mut dyn FnMut(usize)) -> Result<Saliency, LlamaError> {
        let mut engine = Engine::new(self, progress)?;
        let mut cells = vec![StepMap::new(self.pool.n_steps()); self.layers.len()];
        let mut noises = Vec::new();
        let first = |_: usize, _: usize, _: usize| self.pairs;
        let mut outcome = self.sweep(&mut engine, &mut cells, &mut noises, &first);
        if outcome.is_ok()
            && let Some(budget) = self.budget
        {
            let more = self.where_noise_is_largest(&cells, budget.saturating_sub(self.n_forwards()));
            let wanted = |layer: usize, query: usize, key: usize| more[layer].get(query, key);
            outcome = self.sweep(&mut engine, &mut cells, &mut noises, &wanted);
        }
        match outcome {
            Ok(()) | Err(LlamaError::Interrupted) => {}
            Err(error) => return Err(error),
        }
        let layers = self.layers.iter().zip(&cells).map(|(&layer, cells)| LayerMaps {
            layer,
            maps: self.maps(layer, cells),
            heads: Vec::new(),
        });
        Ok(Saliency { loss: engine.loss(), layers: layers.collect() })
    }

    /// Gives every cell as many pairs as `wanted` says of the index of its layer, its query and its key.
    fn sweep(
        &self,
        engine: &mut Engine<'_>,
        cells: &mut [StepMap<Cell>],
        noises: &mut Vec<Noise>,
        wanted: &dyn Fn(usize, usize, usize) -> usize,
    ) -> Result<(), LlamaError> {
        engine.rewind();
        for query in 0..self.pool.n_steps() {
            if noises.len() == query {
                noises.push(self.noise(engine, query)?);
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
            let width = self.width(query);
            // Groups of whole pairs that fill whole decodes: what is measured when the work is interrupted counts.
            for group in pairs.chunks(if width.is_multiple_of(2) { width / 2 } else { width }) {
                let both =
                    |(_, _, scale): &(usize, usize, Scale)| [scale.clone(), Scale { eps: -scale.eps, ..scale.clone() }];
                let scales: Vec<Scale> = group.iter().flat_map(both).collect();
                let losses = engine.losses(query, &scales, &noise.unscaled)?;
                for ((index, key, scale), losses) in group.iter().zip(losses.chunks_exact(2)) {
                    cells[*index].row_mut(query)[*key].add(losses, scale.eps, noise);
                }
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
        let unscaled = engine.side_by_side(query, &[], self.width(query))?;
        let tables = [1.0, CLOSE[0], CLOSE[1]].map(|times| self.table(query, times)).concat();
        let losses = engine.losses(query, &tables, &unscaled)?;
        let (far, close) = losses.split_at(OFFSETS.len());
        let levels = close.chunks_exact(OFFSETS.len()).map(noise_level);
        let level = (levels.map(|level| level * level).sum::<f64>() / CLOSE.len() as f64).sqrt();
        let eps = best_step(far.try_into().expect("one loss for each offset"), level);
        Ok(Noise { level, eps, loss: unscaled[0], unscaled })
    }

    /// All of a query step's attention scaled by each of [`OFFSETS`] times a factor.
    fn table(&self, query: usize, times: f64) -> [Scale; OFFSETS.len()] {
        let queries = self.pool.tokens(query);
        OFFSETS.map(|offset| {
            let (queries, keys) = (queries.clone(), 0..queries.end);
            Scale { layer: self.layers[0], queries, keys, eps: times * offset, seed: None }
        })
    }

    /// Hands out pairs, one by one, to the cell with the largest standard error, as long as whole decodes of its query step
    /// take no more than `left` forwards.
    fn where_noise_is_largest(&self, cells: &[StepMap<Cell>], mut left: usize) -> Vec<StepMap<usize>> {
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
        // Forwards of each query step that are paid for and not used yet.
        let mut room = vec![0; self.pool.n_steps()];
        let decodes: Vec<usize> = (0..room.len()).map(|query| 2_usize.next_multiple_of(self.width(query))).collect();
        while let Some((error, index, query, key)) = heap.pop() {
            if room[query] < 2 && left >= decodes[query] {
                (left, room[query]) = (left - decodes[query], room[query] + decodes[query]);
            }
            if room[query] < 2 {
                continue;
            }
            room[query] -= 2;
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
    /// The same in each of the sequences side by side: their places in the cache decide in which order numbers are added.
    unscaled: Vec<f64>,
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
    progress: &'a mut dyn FnMut(usize),
    /// Forwards so far.
    done: usize,
    plan: Plan,
    context: Context,
    /// Of the tokens that sequence 0 predicted and the loss counts; NaN before they are.
    surprises: Vec<f64>,
}

impl<'a> Engine<'a> {
    fn new(probe: &'a Probe<'a>, progress: &'a mut dyn FnMut(usize)) -> Result<Self, LlamaError> {
        let n = probe.tokens.len();
        let room = n.max(probe.params.n_ubatch as usize);
        let n_sequences = MAX_SEQUENCES as u32 + 1;
        let params = ContextParams { n_ctx: (n + room) as u32, n_sequences, streams: false, ..probe.params.clone() };
        let plan = Plan::default();
        let context = Context::new(probe.model.clone(), &params, Some(Box::new(Scaler::new(plan.clone()))))?;
        Ok(Self { probe, progress, done: 0, plan, context, surprises: vec![f64::NAN; n] })
    }

    /// The loss under each scale, up to what comes before the query step, freed of what its place in the cache brings.
    fn losses(&mut self, query: usize, scales: &[Scale], unscaled: &[f64]) -> Result<Vec<f64>, LlamaError> {
        let mut losses = Vec::with_capacity(scales.len());
        for scales in scales.chunks(unscaled.len()) {
            let raw = self.side_by_side(query, scales, unscaled.len())?;
            let freed = raw.iter().zip(unscaled).map(|(loss, own)| unscaled[0] + (loss - own));
            losses.extend(freed.take(scales.len()));
        }
        Ok(losses)
    }

    /// The loss under each scale, and in sequences without one up to `n`.
    fn side_by_side(&mut self, query: usize, scales: &[Scale], n: usize) -> Result<Vec<f64>, LlamaError> {
        let start = self.probe.pool.tokens(query).start;
        self.plan.set(scales);
        let sequences = 1..=n as u32;
        sequences.clone().for_each(|sequence| self.context.share(0, sequence, start));
        let outcome = self.decode(sequences.clone(), start..self.probe.last());
        sequences.for_each(|sequence| _ = self.context.truncate(sequence, 0));
        self.plan.set(&[]);
        self.done += n;
        (self.progress)(self.done);
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
