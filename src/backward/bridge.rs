//! Attention whose rows OEB repairs, and the derivatives of what it does.

use std::ops::{Add, Div, Mul, Range, Sub};

use super::lanes::RowConstants;
use crate::stepflow::oeb::{EPSILON, Mass, factors};
use crate::trace::Segment;

/// Groups of keys as a row sees them: [`Group`](crate::stepflow::oeb::Group)'s, numbered.
pub(super) const SAME: usize = 0;
pub(super) const BRIDGE: usize = 1;
pub(super) const OTHER: usize = 2;

/// The segments of a sequence's tokens.
#[derive(Debug, Clone)]
pub(super) struct Segments {
    of: Vec<Segment>,
    /// For each segment, how many of the tokens before each are of it.
    before: [Vec<u32>; 3],
}

const ALL: [Segment; 3] = [Segment::Question, Segment::Thinking, Segment::Summary];

impl Segments {
    pub fn new(of: Vec<Segment>) -> Self {
        let before = ALL.map(|segment| {
            let counted = of.iter().scan(0, |n, other| {
                *n += u32::from(*other == segment);
                Some(*n)
            });
            std::iter::once(0).chain(counted).collect()
        });
        Self { of, before }
    }

    pub fn of(&self, token: usize) -> Segment {
        self.of[token]
    }

    /// How many of some tokens are of a segment.
    fn count(&self, segment: Segment, tokens: Range<usize>) -> usize {
        let before = ALL.iter().zip(&self.before).find(|(other, _)| **other == segment).map(|(_, before)| before);
        before.map_or(0, |before| (before[tokens.end] - before[tokens.start]) as usize)
    }
}

/// How a layer's rows are bridged.
pub(super) struct Bridge<'a> {
    /// The segment of each token.
    pub segments: &'a Segments,
    /// The most that the floor may be.
    pub tau_max: f64,
}

impl Bridge<'_> {
    /// The end of the neighbouring tokens that are of one segment.
    pub fn segment_end(&self, token: usize) -> usize {
        let of = &self.segments.of;
        of[token..].iter().position(|other| *other != of[token]).map_or(of.len(), |n| token + n)
    }

    /// The group of a key for a query.
    pub fn group(&self, query: usize, key: usize) -> usize {
        let (own, key) = (self.segments.of(query), self.segments.of(key));
        if key == own {
            SAME
        } else if Some(key) == own.bridged() {
            BRIDGE
        } else {
            OTHER
        }
    }

    /// Sets the factors of a row: of the keys from `first` on it sees those up to itself.
    pub fn repair(&self, groups: &mut Groups, row: usize, query: usize, first: usize, sinks: bool) {
        let own = self.segments.of(query);
        let Some(bridged) = own.bridged() else { return };
        let [n_same, n_bridge] = [own, bridged].map(|segment| self.segments.count(segment, first..query + 1));
        let [same, bridge, other] = [SAME, BRIDGE, OTHER].map(|group| groups.masses[group][row]);
        let floor = (n_bridge as f64 / (n_bridge + n_same) as f64).sqrt();
        groups.floors[row] = floor;
        let Some(found) = factors(Mass { same, bridge, other }, n_same, n_bridge, self.tau_max, sinks) else { return };
        let slopes = Slopes::of([same, bridge, other], floor, self.tau_max, sinks);
        groups.repairs[row] = Some(Repair { factors: [found.same, found.bridge, found.other], slopes });
    }
}

/// What OEB does to a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repair {
    /// What each group is multiplied with.
    factors: [f64; 3],
    slopes: Slopes,
}

/// How factors change.
#[derive(Debug, Clone, Copy)]
struct Slopes {
    /// Of each factor by each group's mass.
    by_mass: [[f64; 3]; 3],
    /// Of each factor by the most that the floor may be.
    by_tau: [f64; 3],
}

impl Slopes {
    /// By the same formula as [`factors`], which has found that the row is changed.
    fn of([same, bridge, other]: [f64; 3], floor: f64, tau_max: f64, sinks: bool) -> Self {
        let [s, b, o, tau_max] = [same, bridge, other, tau_max].map(Dual::from);
        let [s, b, o, tau_max] = [s.along(0), b.along(1), o.along(2), tau_max.along(3)];
        let (one, epsilon) = (Dual::from(1.0), Dual::from(EPSILON));
        let keys = s + b + o;
        let (same, bridge, other) = (s / keys, b / keys, o / keys);
        let tau = if tau_max.value < floor { tau_max } else { Dual::from(floor) };
        let most = one - other - epsilon;
        let tau = if most.value < tau.value { most } else { tau };
        let tau = if tau.value < EPSILON { epsilon } else { tau };
        let to_bridge = (tau + epsilon) / (bridge + epsilon);
        let to_same = (one - other - tau + epsilon) / (same + epsilon);
        let sink = if sinks && keys.value < 1.0 { one - keys } else { Dual::from(0.0) };
        let norm = keys * (other + to_bridge * bridge + to_same * same) + sink;
        let scale = if sinks { one / norm } else { keys / norm };
        let found = [to_same * scale, to_bridge * scale, scale];
        Self {
            by_mass: found.map(|factor| [factor.slopes[0], factor.slopes[1], factor.slopes[2]]),
            by_tau: found.map(|factor| factor.slopes[3]),
        }
    }
}

/// A number and its derivatives by three masses and by tau.
#[derive(Debug, Clone, Copy)]
struct Dual {
    value: f64,
    slopes: [f64; 4],
}

impl Dual {
    fn along(self, dimension: usize) -> Self {
        let mut slopes = [0.0; 4];
        slopes[dimension] = 1.0;
        Self { slopes, ..self }
    }

    fn with(self, other: Self, value: f64, own: f64, others: f64) -> Self {
        Self { value, slopes: std::array::from_fn(|i| own * self.slopes[i] + others * other.slopes[i]) }
    }
}

impl From<f64> for Dual {
    fn from(value: f64) -> Self {
        Self { value, slopes: [0.0; 4] }
    }
}

impl Add for Dual {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, self.value + other.value, 1.0, 1.0)
    }
}

impl Sub for Dual {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(other, self.value - other.value, 1.0, -1.0)
    }
}

impl Mul for Dual {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        self.with(other, self.value * other.value, other.value, self.value)
    }
}

impl Div for Dual {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let quotient = self.value / other.value;
        self.with(other, quotient, 1.0 / other.value, -quotient / other.value)
    }
}

/// Attention of rows, by groups of keys. A row is a token and a head.
pub(super) struct Groups {
    dim: usize,
    /// Shares of attention of each group, before the repair.
    pub masses: [Vec<f64>; 3],
    /// What each group's keys give of their values, before the repair: `[rows][dim]`.
    pub outputs: [Vec<f32>; 3],
    /// The highest floor that each row may have: 0 where there is nothing to bridge to.
    floors: Vec<f64>,
    /// What was done to each row, if anything.
    repairs: Vec<Option<Repair>>,
}

impl Groups {
    pub fn new(n_tokens: usize, n_head: usize, dim: usize) -> Self {
        let n = n_tokens * n_head;
        let masses = std::array::from_fn(|_| vec![0.0; n]);
        let outputs = std::array::from_fn(|_| vec![0.0; n * dim]);
        Self { dim, masses, outputs, floors: vec![0.0; n], repairs: vec![None; n] }
    }

    /// Multiplies all of a row.
    pub fn scale(&mut self, row: usize, factor: f32) {
        self.masses.iter_mut().for_each(|masses| masses[row] *= f64::from(factor));
        for outputs in &mut self.outputs {
            outputs[row * self.dim..(row + 1) * self.dim].iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Divides all of a row.
    pub fn divide(&mut self, row: usize, by: f64) {
        self.masses.iter_mut().for_each(|masses| masses[row] /= by);
        let factor = (1.0 / by) as f32;
        for outputs in &mut self.outputs {
            outputs[row * self.dim..(row + 1) * self.dim].iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Outputs of all rows, with the repair.
    pub fn total(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.outputs[0].len()];
        for (row, to) in all.chunks_exact_mut(self.dim).enumerate() {
            let factors = self.repairs[row].map_or([1.0; 3], |repair| repair.factors.map(|factor| factor as f32));
            for (outputs, factor) in self.outputs.iter().zip(factors) {
                let from = &outputs[row * self.dim..(row + 1) * self.dim];
                to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
            }
        }
        all
    }

    /// Takes over some rows of others.
    pub fn copy(&mut self, to: usize, from: &Self, rows: Range<usize>) {
        let n = rows.len();
        for group in 0..3 {
            self.masses[group][to..to + n].copy_from_slice(&from.masses[group][rows.clone()]);
            let elements = rows.start * self.dim..rows.end * self.dim;
            self.outputs[group][to * self.dim..(to + n) * self.dim].copy_from_slice(&from.outputs[group][elements]);
        }
        self.floors[to..to + n].copy_from_slice(&from.floors[rows.clone()]);
        self.repairs[to..to + n].copy_from_slice(&from.repairs[rows]);
    }

    /// What of a row of attention is the same for all keys of each group, by the loss's derivative by the row's output.
    pub fn constants(&self, row: usize, by_output: &[f32], log_sum: f32) -> [RowConstants; 3] {
        let sums = self.sums(row, by_output);
        let Some(Repair { factors, slopes }) = self.repairs[row] else {
            return [RowConstants { log_sum, factor: 1.0, added: -sums.iter().sum::<f64>() as f32 }; 3];
        };
        // The loss's derivative by each group's mass, through all factors.
        let by_mass: [f64; 3] = std::array::from_fn(|mass| (0..3).map(|of| sums[of] * slopes.by_mass[of][mass]).sum());
        let mean: f64 =
            (0..3).map(|group| factors[group] * sums[group] + by_mass[group] * self.masses[group][row]).sum();
        std::array::from_fn(|group| RowConstants {
            log_sum,
            factor: factors[group] as f32,
            added: (by_mass[group] - mean) as f32,
        })
    }

    /// For each group, the sum over its keys of attention before the repair, times the loss's derivative by it.
    fn sums(&self, row: usize, by_output: &[f32]) -> [f64; 3] {
        std::array::from_fn(|group| {
            let output = &self.outputs[group][row * self.dim..(row + 1) * self.dim];
            output.iter().zip(by_output).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        })
    }

    /// The loss's derivative by the most that the floor may be, through one row.
    pub fn by_tau(&self, row: usize, by_output: &[f32]) -> f64 {
        let Some(Repair { slopes, .. }) = self.repairs[row] else { return 0.0 };
        self.sums(row, by_output).iter().zip(slopes.by_tau).map(|(sum, slope)| sum * slope).sum()
    }

    /// What the loss would change by, to first order, if a row that nothing was done to had a floor of at most each of `taus`.
    pub fn effects_of_tau(&self, row: usize, by_output: &[f32], taus: &[f64], effects: &mut [f64]) {
        let masses = [SAME, BRIDGE, OTHER].map(|group| self.masses[group][row]);
        let keys: f64 = masses.iter().sum();
        let share = masses[BRIDGE] / keys;
        let most = taus.iter().fold(0.0f64, |a, b| a.max(*b)).min(self.floors[row]);
        if !(share < most && masses[SAME] > EPSILON * keys) {
            return;
        }
        let sums = self.sums(row, by_output);
        // The mean derivative by attention of a group; one without any attention is not known to have any.
        let mean = |group: usize| if masses[group] > 0.0 { sums[group] / masses[group] } else { 0.0 };
        let gain = keys * (mean(BRIDGE) - mean(SAME));
        for (tau, effect) in taus.iter().zip(effects) {
            *effect += (tau.min(self.floors[row]) - share).max(0.0) * gain;
        }
    }
}
