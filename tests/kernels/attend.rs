//! Flash attention with OEB and SMI inside against the oracle.

use std::sync::Arc;

use proptest::prelude::*;
use stepflow::kernels::attend::{Momentum, OnDevice, Outcome, Plan, RowWork};
use stepflow::kernels::*;
use stepflow::stepflow::attend::Query;
use stepflow::stepflow::oeb::Group;
use stepflow::stepflow::smi::inject;

use crate::cache::{Cache, cache};
use crate::draw::Draw;
use crate::{On, check, devices, table};

const FLOATS: [u32; 3] = [SF_F32, SF_F16, SF_BF16];
const BLOCKS: [u32; 6] = [SF_Q8_0, SF_Q4_0, SF_Q4_1, SF_Q5_0, SF_Q5_1, SF_IQ4_NL];

/// Element type and elements of a cell.
type Kind = (u32, usize);

#[derive(Debug, Clone)]
struct Shape {
    keys: Kind,
    values: Kind,
    n_kv: usize,
    n_rows: usize,
    n_head_kv: usize,
    group: usize,
    softcap: f32,
    sinks: bool,
    alibi: bool,
}

struct Case {
    shape: Shape,
    queries: Vec<f32>,
    keys: Cache,
    values: Cache,
    sinks: Vec<f32>,
    slopes: Vec<f32>,
    output: Vec<f32>,
    rows: Vec<RowWork>,
    /// By row of `rows`, how it sees each cell and what the mask adds there.
    seen: Vec<Vec<Option<(Group, f32)>>>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let kind = |dims: Vec<usize>| {
        let of_blocks: Vec<usize> = dims.iter().copied().filter(|dim| dim % 32 == 0).collect();
        prop_oneof![
            (prop::sample::select(FLOATS.to_vec()), prop::sample::select(dims)),
            (prop::sample::select(BLOCKS.to_vec()), prop::sample::select(of_blocks)),
        ]
    };
    let kinds = (kind(vec![4, 40, 64, 80, 128, 256, 576]), kind(vec![4, 40, 64, 80, 128, 256, 512]));
    let n_kv = prop_oneof![1..=64usize, 65..=600usize, 601..=4096usize, Just(32768), Just(256), Just(1)];
    let flags = (0..3u8, any::<bool>(), any::<bool>());
    (kinds, n_kv, 1..=5usize, 1..=3usize, 1..=12usize, flags).prop_map(
        |((keys, values), n_kv, n_rows, n_head_kv, group, (cap, sinks, alibi))| {
            // Small enough together for kernels on the CPU.
            let n_head_kv = n_head_kv.min((600_000 / n_kv / keys.1).max(1));
            let group = group.min((1_200_000 / n_kv / keys.1 / n_head_kv).max(1));
            let n_rows = n_rows.min((2_400_000 / n_kv / keys.1 / n_head_kv / group).max(1));
            let softcap = if cap == 0 { 5.0 } else { 0.0 };
            Shape { keys, values, n_kv, n_rows, n_head_kv, group, softcap, sinks, alibi }
        },
    )
}

fn normal(draw: &mut Draw) -> f32 {
    // Sums of twelve uniform numbers are near enough.
    (0..12).map(|_| draw.real()).sum::<f32>() / 2.0
}

impl Case {
    fn draw(shape: Shape, seed: u64) -> Self {
        let mut draw = Draw(seed);
        let Shape { keys, values, n_kv, n_rows, n_head_kv, group, sinks, alibi, .. } = shape;
        let n_head = n_head_kv * group;
        let mut stored = |(kind, dim): Kind| {
            let floats: Vec<f32> = (0..n_kv * n_head_kv * dim).map(|_| normal(&mut draw)).collect();
            cache(&floats, kind, n_kv, n_head_kv, dim, false)
        };
        let (of_keys, of_values) = (stored(keys), stored(values));
        let mut many = |n: usize| (0..n).map(|_| normal(&mut draw)).collect::<Vec<f32>>();
        let (queries, output) = (many(n_rows * n_head * keys.1), many(n_rows * n_head * values.1));
        let sinks = if sinks { many(n_head) } else { Vec::new() };
        let slopes = if alibi { (0..n_head).map(|head| 0.5f32.powi(head as i32 + 1)).collect() } else { Vec::new() };
        let (mut rows, mut seen) = (Vec::new(), Vec::new());
        for row in (0..n_rows).filter(|row| n_rows == 1 || row % 4 != 2) {
            let sees = sees(&mut draw, n_kv, alibi);
            let window = (draw.below(2) == 0).then(|| Momentum {
                cells: (0..1 + draw.below(12)).map(|_| draw.below(n_kv) as u32).collect(),
                alpha: 0.3,
            });
            rows.push(RowWork {
                stream: 0,
                row,
                plan: (draw.below(6) > 0).then(|| Arc::new(Plan::new(sees.iter().copied()))),
                tau_max: (draw.below(4) > 0).then_some(0.7),
                momentum: window,
            });
            seen.push(sees);
        }
        Self { shape, queries, keys: of_keys, values: of_values, sinks, slopes, output, rows, seen }
    }

    /// Outputs and outcomes, after the same work was done `times` times on outputs as they were.
    fn run(&self, On { device, place, .. }: &On, times: usize) -> (Vec<f32>, Vec<Outcome>) {
        let Shape { keys, values, n_kv, n_rows, n_head_kv, group, softcap, .. } = self.shape;
        let n_head = n_head_kv * group;
        let [queries, sinks] = [&self.queries, &self.sinks].map(|floats| table(device, floats.clone()));
        let caches = [&self.keys, &self.values].map(|cache| table(device, cache.bytes.clone()));
        let of_cache = |cache: &Cache, (kind, dim): Kind| SfCache {
            cell_stride: cache.strides[0] as u64,
            head_stride: cache.strides[2] as u64,
            type_: kind,
            dim: dim as u32,
        };
        let args = SfFlash {
            query_row: (n_head * keys.1) as u64,
            query_head: keys.1 as u64,
            output_row: (n_head * values.1) as u64,
            output_head: values.1 as u64,
            keys: of_cache(&self.keys, keys),
            values: of_cache(&self.values, values),
            n_kv: n_kv as u32,
            n_rows: n_rows as u32,
            n_head: n_head as u32,
            n_head_kv: n_head_kv as u32,
            scale: 1.0 / (keys.1 as f32).sqrt(),
            softcap,
        };
        let mut there = OnDevice::default();
        let mut found = (Vec::new(), Vec::new());
        for _ in 0..times {
            let mut output = table(device, self.output.clone());
            // Waits for all uploads: the kernels run on a stream of their own.
            output.download(device).unwrap();
            let data = SfFlashData {
                queries: queries.as_ptr(),
                keys: caches[0].as_ptr(),
                values: caches[1].as_ptr(),
                sinks: if self.sinks.is_empty() { std::ptr::null() } else { sinks.as_ptr() },
                slopes: std::ptr::null(),
                output: output.as_ptr().cast_mut(),
            };
            // SAFETY: tables of the device, as large as the shapes say, that nothing else uses meanwhile.
            let flash = unsafe { FlashData::new(args, data) }.expect("the kernels read it");
            let outcomes = there.attend(*place, &flash, &self.slopes, &self.rows).unwrap();
            found = (output.download(device).unwrap().to_vec(), outcomes);
        }
        found
    }

    /// The oracle's output of a head of `rows[at]`, and whether OEB changed the row.
    fn expected(&self, at: usize, head: usize) -> (Vec<f64>, bool) {
        let Shape { keys, values, n_kv, n_head_kv, group, softcap, .. } = self.shape;
        let (work, seen, n_head) = (&self.rows[at], &self.seen[at], n_head_kv * group);
        let cells = |cache: &Cache, dim: usize| -> Vec<Vec<f64>> {
            let first = |cell: usize| (cell * n_head_kv + head / group) * dim;
            (0..n_kv).map(|cell| float64(&cache.decoded[first(cell)..][..dim])).collect()
        };
        let of_values = cells(&self.values, values.1);
        let before = &self.output[(work.row * n_head + head) * values.1..][..values.1];
        let (mut output, mut changed) = (float64(before), false);
        if work.plan.is_some() {
            let slope = f64::from(self.slopes.get(head).copied().unwrap_or(1.0));
            let groups: Vec<_> = seen.iter().map(|seen| seen.map(|(group, _)| group)).collect();
            let bias: Vec<_> = seen.iter().map(|seen| slope * f64::from(seen.map_or(0.0, |(_, bias)| bias))).collect();
            let query = Query {
                query: &float64(&self.queries[(work.row * n_head + head) * keys.1..][..keys.1]),
                keys: &cells(&self.keys, keys.1),
                values: &of_values,
                groups: &groups,
                bias: &bias,
                scale: 1.0 / f64::from((keys.1 as f32).sqrt()),
                softcap: f64::from(softcap),
                sink: self.sinks.get(head).map(|sink| f64::from(*sink)),
                tau_max: work.tau_max.map(f64::from),
            };
            (output, changed) = query.attend();
        }
        if let Some(Momentum { cells, alpha }) = &work.momentum {
            let window: Vec<_> = cells.iter().map(|cell| of_values[*cell as usize].clone()).collect();
            inject(&mut output, &window, f64::from(*alpha));
        }
        (output, changed)
    }
}

/// How a row sees cells: runs of one group, as segments are, single cells hidden, and the end not computed yet.
fn sees(draw: &mut Draw, n_kv: usize, alibi: bool) -> Vec<Option<(Group, f32)>> {
    let (end, every) = (1 + draw.below(n_kv), 2 + draw.below(40));
    let mut group = None;
    let groups = [None, Some(Group::Same), Some(Group::Bridge), Some(Group::Other)];
    let one = |cell: usize| {
        if cell == 0 || draw.below(60) == 0 {
            group = groups[draw.below(4)];
        }
        let bias = if alibi { cell as f32 - n_kv as f32 } else { 0.0 };
        group.filter(|_| cell < end && cell % every != 1).map(|group| (group, bias))
    };
    (0..n_kv).map(one).collect()
}

fn float64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

#[test]
fn attention_is_the_oracle() {
    check(60, (shapes(), any::<u64>()), |(shape, seed)| {
        let case = Case::draw(shape, seed);
        let (width, n_head) = (case.shape.values.1, case.shape.n_head_kv * case.shape.group);
        // As on the host: scores are in F32, whose rounding is 6e-8 of numbers up to about 5. ALiBi makes scores of half as many
        // as there are cells.
        let largest = if case.shape.alibi { case.shape.n_kv as f64 / 2.0 } else { 0.0 };
        let tolerance = 1e-6 * (largest / 5.0).max(1.0);
        for on in devices() {
            let (output, outcomes) = case.run(on, 1);
            for (at, (before, after)) in case.output.chunks(width).zip(output.chunks(width)).enumerate() {
                let (row, head) = (at / n_head, at % n_head);
                let Some(index) = case.rows.iter().position(|work| work.row == row) else {
                    prop_assert!(before == after, "{}: row {row} was not to be touched", on.name);
                    continue;
                };
                let outcome = outcomes[index * n_head + head];
                let (expected, changed) = case.expected(index, head);
                prop_assert_eq!(outcome.injected.0 > 0.0, case.rows[index].momentum.is_some());
                // Rounding may tip a row that meets its floor almost exactly; everywhere else both agree.
                if outcome.bridged.is_some_and(|bridged| bridged.changed != changed) {
                    continue;
                }
                for (found, expected) in after.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    prop_assert!(error <= tolerance, "{}, {:?}: {found} for {expected}", on.name, case.shape);
                }
            }
        }
        Ok(())
    });
}

/// How often floors are met almost exactly is what lets cases pass above without a look at their numbers.
#[test]
fn few_rows_are_at_their_floor() {
    let shape = Shape {
        keys: (SF_F16, 64),
        values: (SF_F16, 64),
        n_kv: 700,
        n_rows: 40,
        n_head_kv: 2,
        group: 3,
        softcap: 0.0,
        sinks: false,
        alibi: false,
    };
    let case = Case::draw(shape, 5);
    for on in devices() {
        let (_, outcomes) = case.run(on, 1);
        let changed =
            |at: usize| outcomes[at].bridged.map(|bridged| bridged.changed == case.expected(at / 6, at % 6).1);
        let found: Vec<bool> = (0..outcomes.len()).filter_map(changed).collect();
        let agreed = found.iter().filter(|agreed| **agreed).count();
        assert!(found.len() >= 100 && found.len() - agreed <= 1, "{}: {agreed} of {}", on.name, found.len());
    }
}

/// A row sees fewer cells here than a piece has: one for each of the groups.
fn pieces((_, seen): (&RowWork, &Vec<Option<(Group, f32)>>)) -> usize {
    let of_group = |group| seen.iter().flatten().any(|(own, _)| *own == group);
    [Group::Same, Group::Bridge, Group::Other].into_iter().filter(|group| of_group(*group)).count()
}

/// Tables that were sent once serve layers that follow; many rows are computed some at a time.
#[test]
fn what_was_sent_is_used_again_and_bits_stay() {
    let shape = Shape {
        keys: (SF_Q8_0, 64),
        values: (SF_F16, 512),
        n_kv: 300,
        n_rows: 1100,
        n_head_kv: 1,
        group: 8,
        softcap: 0.0,
        sinks: true,
        alibi: false,
    };
    let case = Case::draw(shape, 9);
    let pieces: usize = case.rows.iter().zip(&case.seen).filter(|(work, _)| work.plan.is_some()).map(pieces).sum();
    assert!(pieces * 8 * 514 * 4 > 16 << 20, "more than one launch, of {pieces} pieces");
    for on in devices() {
        let (again, _) = case.run(on, 2);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for index in [0, case.rows.len() - 1] {
            let row = case.rows[index].row;
            let alone = Case { rows: vec![case.rows[index].clone()], ..Case::draw(case.shape.clone(), 9) };
            let of_row = row * 8 * 512..(row + 1) * 8 * 512;
            assert!(bits(&alone.run(on, 1).0[of_row.clone()]) == bits(&again[of_row]), "{}, row {row}", on.name);
        }
    }
}
