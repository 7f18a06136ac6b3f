//! The GPU kernels against the oracle, case by case: their sources on the CPU, or with `STEPFLOW_KERNELS` a built library
//! on the GPU that it is for.

mod shim;

use std::sync::OnceLock;

use half::{bf16, f16};
use llama_cpp_sys_2 as sys;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shim::Language;
use stepflow::kernels::*;
use stepflow::stepflow::oeb::{EPSILON, Group, Mass};
use stepflow::stepflow::{oeb, smi};

/// Every device with kernels to check, by name.
fn devices() -> &'static [(String, Device)] {
    static DEVICES: OnceLock<Vec<(String, Device)>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let open = |library| Device::open(library, 0).unwrap();
        if let Some(path) = std::env::var_os("STEPFLOW_KERNELS") {
            let library = Library::open(path.as_ref()).unwrap();
            return vec![("GPU".to_owned(), open(library))];
        }
        let folder = tempfile::tempdir().unwrap();
        let shim = |language| (format!("{language:?} sources"), open(shim::library(language, folder.path())));
        vec![shim(Language::Cuda), shim(Language::Metal)]
    })
}

/// Runs `check` on `cases` draws, as many as some seconds allow on the CPU: ten times as many on a GPU, or as many as
/// `STEPFLOW_KERNEL_CASES` says.
fn check<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let asked = std::env::var("STEPFLOW_KERNEL_CASES").map(|text| text.parse().expect("a number of cases"));
    let cases = asked.unwrap_or(if std::env::var_os("STEPFLOW_KERNELS").is_some() { 10 * cases } else { cases });
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, check).unwrap();
}

/// Numbers that a seed gives again: shapes are drawn by proptest, contents by this.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// In -1..1.
    fn real(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// A mask, `[n_rows][n_kv]`, of F32 or F16 and with rows a little apart.
struct Mask {
    hidden: Vec<bool>,
    bytes: Vec<u8>,
    stride: usize,
    kind: u32,
}

impl Mask {
    fn draw(draw: &mut Draw, n_rows: usize, n_kv: usize, half: bool) -> Self {
        let (kind, width) = if half { (SF_F16, 2) } else { (SF_F32, 4) };
        let stride = n_kv * width + 64;
        let (mut hidden, mut bytes) = (vec![false; n_rows * n_kv], vec![0; stride * n_rows]);
        for row in 0..n_rows {
            // The end is not computed yet, as in a causal mask; of the rest a run and single cells are hidden.
            let (end, from, n) = (1 + draw.below(n_kv), draw.below(n_kv), draw.below(n_kv / 2 + 1));
            let every = 2 + draw.below(40);
            for cell in 0..n_kv {
                let hide = cell >= end || (from..from + n).contains(&cell) || cell % every == 1;
                hidden[row * n_kv + cell] = hide;
                let value = if hide { f32::NEG_INFINITY } else { 0.0 };
                let at = row * stride + cell * width;
                match half {
                    true => bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_ne_bytes()),
                    false => bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes()),
                }
            }
        }
        Self { hidden, bytes, stride, kind }
    }
}

/// Softmax rows, `[n_head][n_rows][n_kv]`. Hidden cells hold what no kernel may read or write.
fn probabilities(draw: &mut Draw, mask: &Mask, n_head: usize, n_kv: usize, sinks: bool) -> Vec<f32> {
    let mut all = Vec::new();
    for _ in 0..n_head {
        for hidden in mask.hidden.chunks(n_kv) {
            let spread = 8.0 * f64::from(draw.real()).abs();
            let weights: Vec<f64> =
                hidden.iter().map(|h| if *h { 0.0 } else { (spread * f64::from(draw.real())).exp() }).collect();
            let sink = if sinks { (4.0 * f64::from(draw.real())).exp() * weights.len() as f64 * 0.2 } else { 0.0 };
            let total = weights.iter().sum::<f64>() + sink;
            all.extend(weights.iter().zip(hidden).map(|(weight, hidden)| match hidden {
                true => [0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30][draw.below(5)],
                false => (weight / total) as f32,
            }));
        }
    }
    all
}

fn table<T: Plain>(device: &Device, values: Vec<T>) -> Table<T> {
    let mut table = Table::default();
    table.upload(device, values).unwrap();
    table
}

/// Attention in the memory of a device.
struct Attention {
    probs: Table<f32>,
    mask: Table<u8>,
    args: SfAttention,
    sinks: bool,
}

impl Attention {
    fn new(device: &Device, probs: Vec<f32>, mask: &Mask, n_head: usize, n_kv: usize, sinks: bool) -> Self {
        let n_rows = (probs.len() / n_head / n_kv) as u32;
        let (n_kv, n_head) = (n_kv as u32, n_head as u32);
        let args = SfAttention { mask_stride: mask.stride as u64, mask_type: mask.kind, n_kv, n_rows, n_head };
        Self { probs: table(device, probs), mask: table(device, mask.bytes.clone()), args, sinks }
    }

    fn data(&mut self) -> AttentionData<'_> {
        let probs = self.probs.as_ptr().cast_mut();
        // SAFETY: both are tables of the device, as large as the shapes say, and borrowed until the data is gone.
        unsafe { AttentionData::new(self.args, self.sinks, probs, self.mask.as_ptr()) }
    }
}

/// Shapes of attention: keys, rows, heads. Small enough together for kernels on the CPU.
fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    let n_kv = prop_oneof![1..=64usize, 65..=2048usize, 2049..=32768usize, Just(32768), Just(2048), Just(1)];
    (n_kv, 1..=512usize, 1..=8usize).prop_map(|(n_kv, n_rows, n_head)| {
        let n_head = if n_rows > 64 { 1 } else { n_head };
        (n_kv, n_rows.min((200_000 / n_kv / n_head).max(1)), n_head)
    })
}

/// Whether float32 may decide otherwise than float64 whether a row is below its floor: its share is as near to a
/// threshold as rounding of 32,768 sums reaches.
fn is_close(row: &[f64], groups: &[Option<Group>], tau_max: f64) -> bool {
    let count = |group| groups.iter().filter(|g| **g == Some(group)).count() as f64;
    let mass = |group| row.iter().zip(groups).filter(|(_, g)| **g == Some(group)).map(|(p, _)| p).sum::<f64>();
    let mass = Mass { same: mass(Group::Same), bridge: mass(Group::Bridge), other: mass(Group::Other) };
    let keys = mass.same + mass.bridge + mass.other;
    let (same, bridge) = (mass.same / keys, mass.bridge / keys);
    let tau = (count(Group::Bridge) / (count(Group::Bridge) + count(Group::Same))).sqrt().min(tau_max);
    (bridge - tau).abs() < 1e-6 || (same - EPSILON).abs() < 1e-10 || (same + bridge - EPSILON).abs() < 1e-10
}

#[test]
fn oeb_is_the_oracle() {
    let inputs = (shapes(), any::<u64>(), any::<bool>(), any::<bool>(), 0.0..=1.0f32);
    check(40, inputs, |case| {
        let ((n_kv, n_rows, n_head), seed, sinks, half, tau_max) = case;
        let mut draw = Draw(seed);
        let mask = Mask::draw(&mut draw, n_rows, n_kv, half);
        // Three segments of any length, some none, and cells of no segment.
        let (a, b) = (draw.below(n_kv + 1), draw.below(n_kv + 1));
        let stray = 2 + draw.below(60);
        let labels: Vec<u8> = (0..n_kv)
            .map(|cell| if cell % stray == 1 { 3 } else { u8::from(cell >= a) + u8::from(cell >= b) })
            .collect();
        let rows: Vec<SfOebRow> = (0..n_rows as u32)
            .filter(|row| n_rows == 1 || row % 7 != 3)
            .map(|row| SfOebRow { row, same: 1 + row % 2, bridge: row % 2, tau_max })
            .collect();
        let probs = probabilities(&mut draw, &mask, n_head, n_kv, sinks);
        for (name, device) in devices() {
            let mut attention = Attention::new(device, probs.clone(), &mask, n_head, n_kv, sinks);
            let (labels_there, rows_there) = (table(device, labels.clone()), table(device, rows.clone()));
            let mut found = Shared::default();
            let found = device.oeb(&attention.data(), &labels_there, &rows_there, &mut found).unwrap().to_vec();
            let actual = attention.probs.download(device).unwrap();
            for (at, (before, after)) in probs.chunks(n_kv).zip(actual.chunks(n_kv)).enumerate() {
                let (head, row) = (at / n_rows, at % n_rows);
                let Some(index) = rows.iter().position(|r| r.row as usize == row) else {
                    prop_assert!(
                        before.iter().zip(after).all(|(b, a)| b.to_bits() == a.to_bits()),
                        "{name}: row {row}"
                    );
                    continue;
                };
                let hidden = &mask.hidden[row * n_kv..][..n_kv];
                let group = |cell: usize| match u32::from(labels[cell]) {
                    _ if hidden[cell] => None,
                    label if label == rows[index].same => Some(Group::Same),
                    label if label == rows[index].bridge => Some(Group::Bridge),
                    _ => Some(Group::Other),
                };
                let groups: Vec<_> = (0..n_kv).map(group).collect();
                let mut expected: Vec<f64> = before.iter().map(|p| f64::from(*p)).collect();
                let close = is_close(&expected, &groups, f64::from(tau_max));
                let changed = oeb::bridge_row(&mut expected, &groups, f64::from(tau_max), sinks);
                let outcome = found[index * n_head + head];
                prop_assert!(close || changed == (outcome.changed == 1), "{name}: {outcome:?}, expected {changed}");
                let share = |row: &[f64]| {
                    let sum = |of: &dyn Fn(Option<Group>) -> bool| {
                        row.iter().zip(&groups).filter(|(_, g)| of(**g)).map(|(p, _)| p).sum::<f64>()
                    };
                    let keys = sum(&|g| g.is_some());
                    if keys > 0.0 { sum(&|g| g == Some(Group::Bridge)) / keys } else { 0.0 }
                };
                if changed == (outcome.changed == 1) {
                    let (b, a) = (before.iter().map(|p| f64::from(*p)).collect::<Vec<_>>(), share(&expected));
                    // Shares are sums of up to 32,768 F32 numbers, of which each thread adds up to 128.
                    prop_assert!((f64::from(outcome.before) - share(&b)).abs() <= 2e-6, "{name}: {outcome:?}");
                    prop_assert!((f64::from(outcome.after) - a).abs() <= 2e-6, "{name}: {outcome:?}, expected {a}");
                }
                for cell in 0..n_kv {
                    if hidden[cell] {
                        prop_assert_eq!(
                            before[cell].to_bits(),
                            after[cell].to_bits(),
                            "{}: hidden cell {}",
                            name,
                            cell
                        );
                    } else if changed == (outcome.changed == 1) {
                        // The bound that the kernels are held to: F32 sums and factors on probabilities.
                        let error = (f64::from(after[cell]) - expected[cell]).abs();
                        prop_assert!(error <= 2e-6, "{name}: {} for {}", after[cell], expected[cell]);
                    }
                }
            }
        }
        Ok(())
    });
}

/// A V cache: bytes, strides of cell, dimension (or block) and head, and what they decode to, `[cell][head][dim]`.
struct Cache {
    bytes: Vec<u8>,
    strides: [usize; 3],
    decoded: Vec<f32>,
}

/// Values in a cache of `kind`; transposed where cells lie side by side, which only floats can.
fn cache(values: &[f32], kind: u32, n_kv: usize, n_head_kv: usize, dim: usize, transposed: bool) -> Cache {
    let float = |value: f32| match kind {
        SF_F32 => (value.to_ne_bytes().to_vec(), value),
        SF_F16 => (f16::from_f32(value).to_ne_bytes().to_vec(), f16::from_f32(value).to_f32()),
        _ => (bf16::from_f32(value).to_ne_bytes().to_vec(), bf16::from_f32(value).to_f32()),
    };
    if !matches!(kind, SF_F32 | SF_F16 | SF_BF16) {
        return quantized(values, kind, n_head_kv, dim);
    }
    let width = float(0.0).0.len();
    let strides = match transposed {
        true => [width, n_kv * width, dim * n_kv * width],
        false => [n_head_kv * dim * width, width, dim * width],
    };
    let (mut bytes, mut decoded) = (vec![0; values.len() * width], Vec::new());
    for (i, value) in values.iter().enumerate() {
        let (cell, head, d) = (i / dim / n_head_kv, i / dim % n_head_kv, i % dim);
        let at = cell * strides[0] + d * strides[1] + head * strides[2];
        let (encoded, value) = float(*value);
        bytes[at..at + width].copy_from_slice(&encoded);
        decoded.push(value);
    }
    Cache { bytes, strides, decoded }
}

/// By ggml's own quantizer and back by its own decoder.
fn quantized(values: &[f32], kind: u32, n_head_kv: usize, dim: usize) -> Cache {
    let (rows, mut decoded) = (values.len() / dim, vec![0f32; values.len()]);
    // SAFETY: the type is one of ggml's; buffers are as long as the calls say.
    let (block, bytes) = unsafe {
        let block = sys::ggml_type_size(kind);
        let mut bytes = vec![0u8; values.len() / 32 * block];
        let (rows, dim) = (rows as i64, dim as i64);
        sys::ggml_quantize_chunk(kind, values.as_ptr(), bytes.as_mut_ptr().cast(), 0, rows, dim, std::ptr::null());
        let decode = (*sys::ggml_get_type_traits(kind)).to_float.unwrap();
        decode(bytes.as_ptr().cast(), decoded.as_mut_ptr(), values.len() as i64);
        (block, bytes)
    };
    let of_head = dim / 32 * block;
    Cache { bytes, strides: [n_head_kv * of_head, block, of_head], decoded }
}

#[test]
fn smi_is_the_oracle() {
    let floats = [SF_F32, SF_F16, SF_BF16];
    let blocks = [SF_Q8_0, SF_Q4_0, SF_Q4_1, SF_Q5_0, SF_Q5_1, SF_IQ4_NL];
    let kinds = prop_oneof![
        (prop::sample::select(floats.to_vec()), prop::sample::select(vec![24, 64, 80, 128, 256]), any::<bool>()),
        (prop::sample::select(blocks.to_vec()), prop::sample::select(vec![32, 64, 128, 256]), Just(false)),
    ];
    let inputs = (kinds, 1..300usize, 1..40usize, 1..4usize, 1..6usize, any::<u64>(), -1.0..1.0f32);
    check(120, inputs, |((kind, dim, transposed), n_kv, n_rows, n_head_kv, group_size, seed, alpha)| {
        let mut draw = Draw(seed);
        let n_head = n_head_kv * group_size;
        let mask = Mask::draw(&mut draw, n_rows, n_kv, seed % 2 == 0);
        let values: Vec<f32> = (0..n_kv * n_head_kv * dim).map(|_| 3.0 * draw.real()).collect();
        let v = cache(&values, kind, n_kv, n_head_kv, dim, transposed);
        let output: Vec<f32> = (0..n_head * n_rows * dim).map(|_| draw.real()).collect();
        let (mut cells, mut rows) = (Vec::new(), Vec::new());
        for row in (0..n_rows as u32).filter(|row| row % 3 != 1) {
            let (first, n_cells) = (cells.len() as u32, draw.below(12) as u32);
            rows.push(SfSmiRow { row, first, n_cells, alpha });
            cells.extend((0..n_cells).map(|_| draw.below(n_kv) as u32));
        }
        let args = SfHeadOutput {
            cell_stride: v.strides[0] as u64,
            dim_stride: v.strides[1] as u64,
            head_stride: v.strides[2] as u64,
            mask_stride: mask.stride as u64,
            value_type: kind,
            mask_type: mask.kind,
            head_dim: dim as u32,
            n_kv: n_kv as u32,
            n_rows: n_rows as u32,
            n_head: n_head as u32,
            n_head_kv: n_head_kv as u32,
        };
        for (name, device) in devices() {
            let (mut out, v_there) = (table(device, output.clone()), table(device, v.bytes.clone()));
            let mask_there = table(device, mask.bytes.clone());
            let (cells_there, rows_there) = (table(device, cells.clone()), table(device, rows.clone()));
            let mut found = Shared::default();
            let found = {
                let at = out.as_ptr().cast_mut();
                // SAFETY: tables of the device, as large as the shapes say, that nothing else uses meanwhile.
                let data = unsafe { HeadOutputData::new(args, at, v_there.as_ptr(), mask_there.as_ptr()) };
                device.smi(&data, &cells_there, &rows_there, &mut found).unwrap().to_vec()
            };
            let actual = out.download(device).unwrap();
            for (at, (before, after)) in output.chunks(dim).zip(actual.chunks(dim)).enumerate() {
                let (head, row) = (at / n_rows, at % n_rows);
                let window = rows.iter().position(|r| r.row as usize == row);
                let seen: Vec<usize> = window.map_or(Vec::new(), |index| {
                    let window = &cells[rows[index].first as usize..][..rows[index].n_cells as usize];
                    window.iter().map(|c| *c as usize).filter(|c| !mask.hidden[row * n_kv + c]).collect()
                });
                let value = |of: &[f32], cell: usize| -> Vec<f64> {
                    of[(cell * n_head_kv + head / group_size) * dim..][..dim].iter().map(|v| f64::from(*v)).collect()
                };
                let inject = |of: &[f32]| {
                    let mut expected: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
                    let values: Vec<_> = seen.iter().map(|&cell| value(of, cell)).collect();
                    smi::inject(&mut expected, &values, f64::from(alpha));
                    expected
                };
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let off = |expected: &[f64]| {
                    norm(&after.iter().zip(expected).map(|(a, e)| f64::from(*a) - e).collect::<Vec<_>>())
                };
                // F32 sums of at most 12 values of the cache as it is.
                let expected = inject(&v.decoded);
                prop_assert!(off(&expected) <= 1e-5 * norm(&expected) + 1e-6, "{name}: {after:?} for {expected:?}");
                if kind == SF_F16 {
                    // The bound that the kernels are held to, against values that were never rounded to F16.
                    let exact = inject(&values);
                    prop_assert!(off(&exact) <= 1e-3 * norm(&exact) + 1e-6, "{name}: {after:?} for {exact:?}");
                }
                let Some(index) = window else { continue };
                let outcome = found[index * n_head + head];
                prop_assert_eq!(outcome.n_cells as usize, seen.len());
                let before: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
                let added = norm(&expected.iter().zip(&before).map(|(e, b)| e - b).collect::<Vec<_>>()).powi(2);
                // F32 sums of at most 256 squares.
                prop_assert!((f64::from(outcome.added) - added).abs() <= 1e-5 * added + 1e-9, "{name}: {outcome:?}");
                let total = if seen.is_empty() { 0.0 } else { norm(&before).powi(2) };
                prop_assert!((f64::from(outcome.total) - total).abs() <= 1e-5 * total + 1e-9, "{name}: {outcome:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn probe_scales_what_a_row_sees_and_nothing_else() {
    check(40, (shapes(), any::<u64>(), any::<bool>()), |((n_kv, n_rows, n_head), seed, half)| {
        let mut draw = Draw(seed);
        let mask = Mask::draw(&mut draw, n_rows, n_kv, half);
        let probs = probabilities(&mut draw, &mask, n_head, n_kv, false);
        let (mut keys, mut rows) = (Vec::new(), Vec::new());
        for row in (0..n_rows as u32).filter(|row| row % 3 != 1) {
            // Keys lie in cells of their own; a key's other place is hidden, or unknown.
            let step = 1 + draw.below(3);
            let start = draw.below(n_kv);
            let of_row: Vec<SfProbeKey> = (start..n_kv)
                .step_by(step)
                .map(|cell| match mask.hidden[row as usize * n_kv + cell] {
                    true => SfProbeKey { own: cell as u32, shared: SF_NO_CELL },
                    false if cell % 2 == 0 => SfProbeKey { own: cell as u32, shared: SF_NO_CELL },
                    false => SfProbeKey { own: SF_NO_CELL, shared: cell as u32 },
                })
                .collect();
            rows.push(SfProbeRow { row, first: keys.len() as u32, n_keys: of_row.len() as u32 });
            keys.extend(of_row);
        }
        let factors: Vec<f32> = (0..rows.len() * n_head).map(|_| 1.0 + 0.3 * draw.real()).collect();
        for (name, device) in devices() {
            let mut attention = Attention::new(device, probs.clone(), &mask, n_head, n_kv, false);
            let (keys_there, rows_there) = (table(device, keys.clone()), table(device, rows.clone()));
            device.probe(&attention.data(), &keys_there, &rows_there, &table(device, factors.clone())).unwrap();
            let mut expected = probs.clone();
            for (index, row) in rows.iter().enumerate() {
                for key in &keys[row.first as usize..][..row.n_keys as usize] {
                    let hidden = |cell: u32| cell == SF_NO_CELL || mask.hidden[row.row as usize * n_kv + cell as usize];
                    let Some(cell) = [key.own, key.shared].into_iter().find(|&cell| !hidden(cell)) else { continue };
                    for head in 0..n_head {
                        let at = (head * n_rows + row.row as usize) * n_kv + cell as usize;
                        expected[at] *= factors[index * n_head + head];
                    }
                }
            }
            let actual = attention.probs.download(device).unwrap();
            let differs = expected.iter().zip(actual).position(|(e, a)| e.to_bits() != a.to_bits());
            prop_assert!(differs.is_none(), "{}: at {:?}", name, differs);
        }
        Ok(())
    });
}
