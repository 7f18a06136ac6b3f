//! Attention in tiles against attention as it is written down, in float64.

use std::collections::HashMap;

use super::*;
use crate::backward::bridge::Segments;
use crate::llama::replay::Softcap;
use crate::random::SplitMix64;
use crate::stepflow::oeb::{Group, bridge_row};
use crate::trace::Segment;
use proptest::prelude::*;

/// Numbers between -1 and 1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    (0..n).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect()
}

/// A layer with its data.
#[derive(Debug)]
struct Case {
    n: usize,
    attention: Attention,
    segments: Option<(Segments, f64)>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    by_outputs: Vec<f32>,
}

impl Case {
    fn new(n: usize, attention: Attention, tau_max: Option<f64>, seed: u64) -> Self {
        let Attention { n_head, n_head_kv, key_dim, value_dim, .. } = attention;
        let segment = |token: usize| match token {
            token if token < n / 4 => Segment::Question,
            token if token < n - n / 5 => Segment::Thinking,
            _ => Segment::Summary,
        };
        Self {
            n,
            segments: tau_max.map(|tau_max| (Segments::new((0..n).map(segment).collect()), tau_max)),
            queries: numbers(n * n_head * key_dim, seed).iter().map(|x| 3.0 * x).collect(),
            keys: numbers(n * n_head_kv * key_dim, seed + 1),
            values: numbers(n * n_head_kv * value_dim, seed + 2),
            by_outputs: numbers(n * n_head * value_dim, seed + 3),
            attention,
        }
    }

    fn with_layer<R>(&self, f: impl FnOnce(&Layer<'_>) -> R) -> R {
        let bridge = self.segments.as_ref().map(|(segments, tau_max)| Bridge { segments, tau_max: *tau_max });
        f(&Layer {
            attention: &self.attention,
            queries: &self.queries,
            keys: &self.keys,
            values: &self.values,
            bridge: bridge.as_ref(),
        })
    }

    /// Attention of a row and head, and its output.
    fn row(&self, query: usize, head: usize, [queries, keys, values]: [&[f64]; 3]) -> (Vec<f64>, Vec<f64>) {
        let Attention { n_head, n_head_kv, key_dim, value_dim, scale, .. } = self.attention;
        let shared = head / (n_head / n_head_kv);
        let first = self.attention.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let score = |key: usize| {
            let (q, k) = ((query * n_head + head) * key_dim, (key * n_head_kv + shared) * key_dim);
            let product: f64 = (0..key_dim).map(|i| queries[q + i] * keys[k + i]).sum();
            let capped = |cap: Softcap| f64::from(cap.outer) * (f64::from(cap.inner) * product).tanh();
            f64::from(scale) * self.attention.softcap.map_or(product, capped)
        };
        let mut probs: Vec<f64> = (first..=query).map(|key| score(key).exp()).collect();
        let sink = self.attention.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
        let sum = probs.iter().sum::<f64>() + sink;
        probs.iter_mut().for_each(|p| *p /= sum);
        if let Some((segments, tau_max)) = &self.segments {
            let own = segments.of(query);
            let group = |key: usize| match segments.of(key) {
                other if other == own => Group::Same,
                other if Some(other) == own.bridged() => Group::Bridge,
                _ => Group::Other,
            };
            let groups: Vec<_> = (first..=query).map(|key| Some(group(key))).collect();
            if own.bridged().is_some() {
                bridge_row(&mut probs, &groups, *tau_max, self.attention.sinks.is_some());
            }
        }
        let element = |i: usize| {
            let value = |key: usize| values[(key * n_head_kv + shared) * value_dim + i];
            (first..=query).map(|key| probs[key - first] * value(key)).sum()
        };
        let output = (0..value_dim).map(element).collect();
        (probs, output)
    }

    /// What the outputs are weighted and added up to.
    fn loss(&self, data: [&[f64]; 3]) -> f64 {
        let Attention { n_head, value_dim, .. } = self.attention;
        let of_row = |row: usize| {
            let outputs = self.row(row / n_head, row % n_head, data).1;
            let by = &self.by_outputs[row * value_dim..];
            outputs.iter().zip(by).map(|(a, b)| a * f64::from(*b)).sum::<f64>()
        };
        (0..self.n * n_head).map(of_row).sum()
    }

    fn data(&self) -> [Vec<f64>; 3] {
        [&self.queries, &self.keys, &self.values].map(|data| data.iter().map(|x| f64::from(*x)).collect())
    }
}

/// Keeps all that it sees, by head, query and key.
struct Seen(HashMap<(usize, usize, usize), f32>);

impl Watch for Seen {
    fn see(&mut self, seen: &Products<'_>) {
        for (key, product) in seen.keys.clone().zip(seen.products) {
            assert!(self.0.insert((seen.head, seen.query, key), *product).is_none(), "seen twice");
        }
    }

    fn merge(&mut self, other: Self) {
        let n = self.0.len() + other.0.len();
        self.0.extend(other.0);
        assert_eq!(self.0.len(), n, "seen twice");
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let heads = prop::sample::select(vec![(1, 1), (4, 2), (3, 1), (2, 2)]);
    let window = prop::option::of(1..40usize);
    let softcap = prop::option::of(Just(Softcap { inner: 0.5, outer: 2.0 }));
    let tau = prop::option::of(0.05..0.9f64);
    (1..70usize, heads, window, softcap, any::<bool>(), tau, any::<u32>()).prop_map(
        |(n, (n_head, n_head_kv), window, softcap, sinks, tau, seed)| {
            let sinks = sinks.then(|| numbers(n_head, u64::from(seed) + 9));
            let attention =
                Attention { n_head, n_head_kv, key_dim: 8, value_dim: 6, scale: 0.6, softcap, window, sinks };
            Case::new(n, attention, tau, u64::from(seed))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn outputs_and_derivatives_are_the_oracles(case in cases()) {
        let Attention { n_head, value_dim, .. } = case.attention;
        let data = case.data();
        let data_ref = [0, 1, 2].map(|i| data[i].as_slice());
        let (forward, backward, seen) = case.with_layer(|layer| {
            let forward = layer.forward();
            let (backward, seen) = layer.backward(&forward, &case.by_outputs, || Seen(HashMap::new()));
            (forward, backward, seen.0)
        });
        for row in 0..case.n * n_head {
            let (query, head) = (row / n_head, row % n_head);
            let (probs, output) = case.row(query, head, data_ref);
            let first = query + 1 - probs.len();
            for (i, expected) in output.iter().enumerate() {
                let found = f64::from(forward.outputs[row * value_dim + i]);
                // Sums of at most 70 products below 1 in float32, times factors of the repair.
                prop_assert!((found - expected).abs() <= 2e-5, "{found} {expected}");
            }
            // The loss's derivative by attention is the product of the output's and the value.
            for (key, prob) in (first..=query).zip(&probs) {
                let shared = head / (n_head / case.attention.n_head_kv);
                let value = &data[2][(key * case.attention.n_head_kv + shared) * value_dim..][..value_dim];
                let by = case.by_outputs[row * value_dim..].iter().zip(value).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
                let found = f64::from(seen[&(head, query, key)]);
                prop_assert!((found - prob * by).abs() <= 2e-5, "{found} {}", prob * by);
            }
        }
        prop_assert_eq!(seen.len(), (0..case.n * n_head).map(|row| case.row(row / n_head, row % n_head, data_ref).0.len()).sum::<usize>());
        // A few elements of each, by differences.
        for (which, found) in [&backward.queries, &backward.keys, &backward.values].into_iter().enumerate() {
            for i in (0..found.len()).step_by(found.len().div_ceil(5)) {
                const STEP: f64 = 1e-5;
                let shifted = |by: f64| {
                    let mut data = case.data();
                    data[which][i] += by;
                    case.loss([0, 1, 2].map(|i| data[i].as_slice()))
                };
                let (before, after) = (shifted(-STEP), shifted(STEP));
                let middle = case.loss(data_ref);
                // A row that is about to meet its floor has no derivative there.
                prop_assume!(((after - middle) - (middle - before)).abs() <= 1e-7);
                let expected = (after - before) / (2.0 * STEP);
                let found = f64::from(found[i]);
                // As above; the repair divides by shares of attention, which makes large numbers of small ones.
                prop_assert!((found - expected).abs() <= 2e-4 * expected.abs().max(1.0), "{which} {i}: {found} {expected}");
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let attention = Attention {
        n_head: 6,
        n_head_kv: 2,
        key_dim: 16,
        value_dim: 16,
        scale: 0.25,
        softcap: None,
        window: None,
        sinks: None,
    };
    let case = Case::new(700, attention, Some(0.3), 5);
    let with = |n_threads: usize| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        threads.install(|| {
            case.with_layer(|layer| {
                let forward = layer.forward();
                let (backward, seen) = layer.backward(&forward, &case.by_outputs, || Seen(HashMap::new()));
                (forward.outputs, backward.queries, backward.keys, backward.values, seen.0)
            })
        })
    };
    let one = with(1);
    assert!([2, 3, 5].into_iter().all(|n_threads| with(n_threads) == one));
}
