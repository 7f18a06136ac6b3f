//! The kernel against [`crate::stepflow::attend`], on every processor that this machine is.

use half::{bf16, f16};
use proptest::prelude::*;

use std::ffi::c_void;

use super::*;
use crate::random::SplitMix64;
use crate::stepflow::attend::Query;
use crate::stepflow::oeb::Group;
use crate::stepflow::smi;

/// Normal numbers that a seed gives again.
struct Normal(SplitMix64);

impl Normal {
    fn next(&mut self) -> f32 {
        let uniform = |random: &mut SplitMix64| (random.next() >> 11) as f64 / (1u64 << 53) as f64;
        let (a, b) = (1.0 - uniform(&mut self.0), uniform(&mut self.0));
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }

    fn below(&mut self, n: usize) -> usize {
        (self.0.next() % n as u64) as usize
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// A layer in memory of its own.
#[derive(Debug, Clone)]
struct Case {
    keys: Kind,
    values: Kind,
    dim: usize,
    value_dim: usize,
    group: usize,
    n_head_kv: usize,
    n_rows: usize,
    n_streams: usize,
    n_kv: usize,
    softcap: f32,
    sinks: bool,
    alibi: bool,
    seed: u64,
}

struct Memory {
    case: Case,
    queries: Vec<f32>,
    keys: Stored,
    values: Stored,
    sinks: Vec<f32>,
    slopes: Vec<f32>,
    rows: Vec<RowWork>,
    seen: Vec<Vec<Option<(Group, f32)>>>,
}

/// A cache, `[streams][cells][heads][dim]`, as stored and as it reads.
struct Stored {
    bytes: Vec<u8>,
    floats: Vec<f32>,
    cache: Cache,
}

/// Elements that are none of those read by hand: bytes over 64.
unsafe extern "C" fn from_bytes(from: *const c_void, to: *mut f32, n: i64) {
    for i in 0..n as usize {
        // SAFETY: the kernel asks for as many as a cell has.
        unsafe { *to.add(i) = f32::from(*from.cast::<i8>().add(i)) / 64.0 };
    }
}

fn stored(kind: Kind, dim: usize, n_heads: usize, n_cells: usize, n_streams: usize, normal: &mut Normal) -> Stored {
    let floats = normal.many(n_streams * n_cells * n_heads * dim);
    let mut bytes = Vec::new();
    for row in floats.chunks(dim) {
        match kind {
            Kind::F32 => row.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
            Kind::F16 => row.iter().for_each(|x| bytes.extend(f16::from_f32(*x).to_le_bytes())),
            Kind::Bf16 => row.iter().for_each(|x| bytes.extend(bf16::from_f32(*x).to_le_bytes())),
            Kind::Q8_0 => row.chunks(32).for_each(|block| {
                let scale = f16::from_f32(block.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0);
                bytes.extend(scale.to_le_bytes());
                bytes.extend(block.iter().map(|x| ((x / scale.to_f32()).round() as i8).cast_unsigned()));
            }),
            Kind::Q4_0 => row.chunks(32).for_each(|block| {
                let scale = f16::from_f32(block.iter().fold(0f32, |max, x| max.max(x.abs())) / 7.0);
                bytes.extend(scale.to_le_bytes());
                let nibble = |x: f32| ((x / scale.to_f32()).round() + 8.0).clamp(0.0, 15.0) as u8;
                bytes.extend((0..16).map(|i| nibble(block[i]) | nibble(block[i + 16]) << 4));
            }),
            Kind::Other(_) => bytes.extend(row.iter().map(|x| ((x * 32.0).clamp(-127.0, 127.0) as i8).cast_unsigned())),
        }
    }
    let row = bytes.len() / (n_streams * n_cells * n_heads);
    let (cell, stream) = (row * n_heads, row * n_heads * n_cells);
    let cache = Cache { data: bytes.as_ptr(), kind, dim, cell, head: row, stream };
    let mut read = vec![0f32; floats.len()];
    for (i, to) in read.chunks_mut(dim).enumerate() {
        // SAFETY: rows follow each other.
        unsafe { cache.read(bytes.as_ptr().add(i * row), to) };
    }
    Stored { bytes, floats: read, cache }
}

impl Memory {
    fn new(case: Case) -> Self {
        let mut normal = Normal(SplitMix64::new(case.seed));
        let Case { dim, value_dim, group, n_head_kv, n_rows, n_streams, n_kv, .. } = case;
        let n_head = group * n_head_kv;
        let queries = normal.many(n_streams * n_rows * n_head * dim);
        let keys = stored(case.keys, dim, n_head_kv, n_kv, n_streams, &mut normal);
        let values = stored(case.values, value_dim, n_head_kv, n_kv, n_streams, &mut normal);
        let slopes =
            if case.alibi { (0..n_head).map(|head| 0.5f32.powi(head as i32 + 1)).collect() } else { Vec::new() };
        let (mut rows, mut seen) = (Vec::new(), Vec::new());
        for at in 0..n_streams * n_rows {
            // Runs of one group, as segments are, and cells of other sequences.
            let mut group = None;
            let cells: Vec<_> = (0..n_kv)
                .map(|cell| {
                    if cell == 0 || normal.below(40) == 0 {
                        group = [None, Some(Group::Same), Some(Group::Bridge), Some(Group::Other)][normal.below(4)];
                    }
                    let bias = if case.alibi { cell as f32 - n_kv as f32 } else { 0.0 };
                    group.map(|group| (group, bias))
                })
                .collect();
            let window = (normal.below(3) == 0).then(|| Momentum {
                cells: (0..1 + normal.below(20)).map(|_| normal.below(n_kv) as u32).collect(),
                alpha: 0.3,
            });
            rows.push(RowWork {
                stream: at / n_rows,
                row: at % n_rows,
                plan: Some(Arc::new(Plan::new(cells.iter().copied()))),
                tau_max: (normal.below(4) > 0).then_some(0.7),
                momentum: window,
            });
            seen.push(cells);
        }
        let sinks = if case.sinks { normal.many(n_head) } else { Vec::new() };
        Self { case, queries, keys, values, sinks, slopes, rows, seen }
    }

    /// Outputs, `[streams][rows][heads][value_dim]`.
    fn run(&self, processor: Processor, n_threads: usize) -> (Vec<f32>, Vec<Outcome>) {
        self.run_rows(self.rows.clone(), processor, n_threads)
    }

    fn run_rows(&self, rows: Vec<RowWork>, processor: Processor, n_threads: usize) -> (Vec<f32>, Vec<Outcome>) {
        let Case { dim, value_dim, group, n_head_kv, n_rows, n_streams, .. } = self.case;
        let n_head = group * n_head_kv;
        let mut output = vec![0f32; n_streams * n_rows * n_head * value_dim];
        let layer = Layer {
            queries: Floats {
                data: self.queries.as_ptr(),
                row: n_head * dim,
                head: dim,
                stream: n_rows * n_head * dim,
            },
            keys: self.keys.cache,
            values: self.values.cache,
            output: Floats {
                data: output.as_mut_ptr(),
                row: n_head * value_dim,
                head: value_dim,
                stream: n_rows * n_head * value_dim,
            },
            sinks: if self.sinks.is_empty() { std::ptr::null() } else { self.sinks.as_ptr() },
            n_head,
            n_head_kv,
            scale: 1.0 / (dim as f32).sqrt(),
            softcap: self.case.softcap,
            slopes: self.slopes.clone(),
        };
        assert!(!self.keys.bytes.is_empty() && !self.values.bytes.is_empty());
        // SAFETY: all of it outlives the threads, which are done below.
        let attend = unsafe { Attend::new(layer, rows, processor, Arc::default()) };
        std::thread::scope(|scope| (0..n_threads).for_each(|_| _ = scope.spawn(|| attend.work())));
        let (_, outcomes) = attend.finish().unwrap();
        (output, outcomes)
    }

    /// The oracle's output of one row and head, and whether OEB changed the row.
    fn expected(&self, at: usize, head: usize) -> (Vec<f64>, bool) {
        let Case { dim, value_dim, group, n_head_kv, n_kv, .. } = self.case;
        let n_head = group * n_head_kv;
        let (work, seen) = (&self.rows[at], &self.seen[at]);
        let cells = |stored: &Stored, dim: usize| -> Vec<Vec<f64>> {
            let row = |cell| ((work.stream * n_kv + cell) * n_head_kv + head / group) * dim;
            (0..n_kv).map(|cell| stored.floats[row(cell)..][..dim].iter().map(|x| f64::from(*x)).collect()).collect()
        };
        let query: Vec<f64> = self.queries[(at * n_head + head) * dim..][..dim].iter().map(|x| f64::from(*x)).collect();
        let slope = f64::from(self.slopes.get(head).copied().unwrap_or(1.0));
        let groups: Vec<_> = seen.iter().map(|seen| seen.map(|(group, _)| group)).collect();
        let bias: Vec<_> = seen.iter().map(|seen| slope * f64::from(seen.map_or(0.0, |(_, bias)| bias))).collect();
        let values = cells(&self.values, value_dim);
        let (mut output, changed) = Query {
            query: &query,
            keys: &cells(&self.keys, dim),
            values: &values,
            groups: &groups,
            bias: &bias,
            scale: 1.0 / f64::from((dim as f32).sqrt()),
            softcap: f64::from(self.case.softcap),
            sink: self.sinks.get(head).map(|sink| f64::from(*sink)),
            tau_max: work.tau_max.map(f64::from),
        }
        .attend();
        if let Some(Momentum { cells, alpha }) = &work.momentum {
            let window: Vec<_> = cells.iter().map(|cell| values[*cell as usize].clone()).collect();
            smi::inject(&mut output, &window, f64::from(*alpha));
        }
        (output, changed)
    }

    fn check(&self, processor: Processor) -> Result<(), TestCaseError> {
        let (output, outcomes) = self.run(processor, 2);
        let n_head = self.case.group * self.case.n_head_kv;
        // Unit-normal data: scores are in float32, whose rounding is 6e-8 of numbers up to about 5. ALiBi makes scores of half
        // as many as there are cells, and OEB can lift a group of which all are so large.
        let largest = if self.case.alibi { self.case.n_kv as f64 / 2.0 } else { 0.0 };
        let tolerance = 1e-6 * (largest / 5.0).max(1.0);
        for (at, found) in output.chunks(self.case.value_dim).enumerate() {
            let (expected, changed) = self.expected(at / n_head, at % n_head);
            // Rounding may tip a row that meets its floor almost exactly; everywhere else both agree.
            if outcomes[at].bridged.is_some_and(|bridged| bridged.changed != changed) {
                continue;
            }
            for (found, expected) in found.iter().zip(&expected) {
                let error = (f64::from(*found) - expected).abs();
                prop_assert!(error <= tolerance, "{processor:?}, {:?}: {found} against {expected}", self.case);
            }
        }
        Ok(())
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let kind = || {
        prop::sample::select(vec![Kind::F32, Kind::F16, Kind::Bf16, Kind::Q8_0, Kind::Q4_0, Kind::Other(from_bytes)])
    };
    let shape = (
        prop::sample::select(vec![32usize, 64, 96, 128]),
        prop::sample::select(vec![32usize, 64, 128]),
        1..=9usize,
        1..=3usize,
        1..=3usize,
        1..=2usize,
    );
    let rest =
        (prop::sample::select(vec![1usize, 2, 15, 16, 17, 63, 65, 300, 700, 2000]), 0..3u8, any::<(bool, bool, u64)>());
    (kind(), kind(), shape, rest).prop_map(|(keys, values, shape, (n_kv, cap, (sinks, alibi, seed)))| {
        let (dim, value_dim, group, n_head_kv, n_rows, n_streams) = shape;
        let softcap = if cap == 0 { 5.0 } else { 0.0 };
        Case { keys, values, dim, value_dim, group, n_head_kv, n_rows, n_streams, n_kv, softcap, sinks, alibi, seed }
    })
}

fn plain(keys: Kind, values: Kind) -> Case {
    Case {
        keys,
        values,
        dim: 64,
        value_dim: 64,
        group: 3,
        n_head_kv: 3,
        n_rows: 1,
        n_streams: 1,
        n_kv: 300,
        softcap: 0.0,
        sinks: false,
        alibi: false,
        seed: 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn attends_as_the_oracle(case in cases()) {
        let memory = Memory::new(case);
        for processor in Processor::all() {
            memory.check(processor)?;
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_other_rows(case in cases()) {
        let memory = Memory::new(Case { n_rows: 3, ..case });
        let width = memory.case.value_dim * memory.case.group * memory.case.n_head_kv;
        for processor in Processor::all() {
            let (all, _) = memory.run(processor, 1);
            for n_threads in 2..=8 {
                prop_assert_eq!(&memory.run(processor, n_threads).0, &all);
            }
            for (at, row) in memory.rows.iter().enumerate() {
                let (alone, _) = memory.run_rows(vec![row.clone()], processor, 2);
                prop_assert_eq!(&alone[at * width..][..width], &all[at * width..][..width]);
            }
        }
    }
}

/// Head widths that are no whole blocks, and 32,768 cells.
#[test]
fn odd_widths_and_long_caches() {
    for processor in Processor::all() {
        for dim in [1, 5, 40, 72, 100, 576] {
            let case = Case { dim, value_dim: dim.min(80), n_rows: 2, ..plain(Kind::F16, Kind::F32) };
            Memory::new(case).check(processor).unwrap();
        }
        for kind in [Kind::F16, Kind::Q8_0] {
            let case = Case { n_kv: 32_768, group: 1, n_head_kv: 1, ..plain(kind, kind) };
            Memory::new(case).check(processor).unwrap();
        }
    }
}

/// So many rows that each is the work of one thread get the bits of a row by itself.
#[test]
fn many_rows_are_as_single_ones() {
    let memory = Memory::new(Case { n_rows: 40, n_kv: 1200, ..plain(Kind::F16, Kind::Q8_0) });
    let width = memory.case.value_dim * memory.case.group * memory.case.n_head_kv;
    assert!(memory.rows.len() >= WHOLE_FROM);
    let (all, _) = memory.run(Processor::here(), 3);
    for (at, row) in memory.rows.iter().enumerate() {
        let (alone, _) = memory.run_rows(vec![row.clone()], Processor::here(), 2);
        assert_eq!(&alone[at * width..][..width], &all[at * width..][..width]);
    }
}

/// A row that sees nothing has zeros, and what is no number shows in the output of the rows that see it, and there alone.
#[test]
fn nothing_seen_and_no_numbers() {
    for processor in Processor::all() {
        let mut memory = Memory::new(Case { n_rows: 2, ..plain(Kind::F32, Kind::F32) });
        memory.rows.iter_mut().for_each(|row| row.momentum = None);
        memory.rows[0].plan = Some(Arc::new(Plan::new(std::iter::empty())));
        let (output, outcomes) = memory.run(processor, 2);
        let width = output.len() / 2;
        assert!(output[..width].iter().all(|x| *x == 0.0) && output[width..].iter().all(|x| x.is_finite()));
        assert!(!outcomes[0].bridged.is_some_and(|bridged| bridged.changed));
        for bad in [f32::NAN, f32::INFINITY] {
            let mut memory = Memory::new(Case { n_rows: 2, ..plain(Kind::F32, Kind::F32) });
            memory.rows.iter_mut().for_each(|row| row.momentum = None);
            let seen = |cell: usize| (0..300).map(move |at| (at == cell).then_some((Group::Same, 0.0)));
            memory.rows[0].plan = Some(Arc::new(Plan::new(seen(7))));
            memory.rows[1].plan = Some(Arc::new(Plan::new(seen(8))));
            let mut floats = memory.values.floats.clone();
            floats[7 * 3 * 64..][..3 * 64].fill(bad);
            memory.values.bytes = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
            memory.values.cache.data = memory.values.bytes.as_ptr();
            let (output, _) = memory.run(processor, 2);
            assert!(output[..width].iter().all(|x| !x.is_finite()), "{processor:?}, {bad}");
            assert!(output[width..].iter().all(|x| x.is_finite()), "{processor:?}, {bad}");
            // Of a key, it is a score that is no number, and so is all that comes of it.
            let mut floats = memory.keys.floats.clone();
            floats[7 * 3 * 64..][..3 * 64].fill(f32::NAN);
            memory.keys.bytes = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
            memory.keys.cache.data = memory.keys.bytes.as_ptr();
            let (output, _) = memory.run(processor, 2);
            assert!(output[..width].iter().all(|x| !x.is_finite()), "{processor:?}, {bad}");
        }
    }
}

/// Rows whose output is there already are added to, and nothing else.
#[test]
fn momentum_alone_adds_to_what_is_there() {
    let mut memory = Memory::new(Case { n_rows: 2, ..plain(Kind::Q8_0, Kind::Q8_0) });
    let momentum = Some(Momentum { cells: vec![3, 4, 5], alpha: 0.5 });
    memory.rows = vec![RowWork { plan: None, momentum, tau_max: None, ..memory.rows[1].clone() }];
    let (output, outcomes) = memory.run(Processor::here(), 2);
    let width = output.len() / 2;
    assert!(output[..width].iter().all(|x| *x == 0.0));
    for (at, found) in output[width..].iter().enumerate() {
        let (head, dim) = (at / 64, at % 64);
        let value = |cell: usize| f64::from(memory.values.floats[(cell * 3 + head / 3) * 64 + dim]);
        let expected = 0.5 * (value(3) + value(4) + value(5)) / 3.0;
        assert!((f64::from(*found) - expected).abs() <= 1e-6, "{found} against {expected}");
    }
    assert!(outcomes.iter().all(|outcome| outcome.bridged.is_none() && outcome.injected.0 > 0.0));
}
