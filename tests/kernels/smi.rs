//! SMI against the oracle.

use proptest::prelude::*;
use stepflow::kernels::*;
use stepflow::stepflow::smi::inject;

use crate::cache::{Cache, cache};
use crate::draw::Draw;
use crate::{On, check, devices, table};

const FLOATS: [u32; 3] = [SF_F32, SF_F16, SF_BF16];
const BLOCKS: [u32; 6] = [SF_Q8_0, SF_Q4_0, SF_Q4_1, SF_Q5_0, SF_Q5_1, SF_IQ4_NL];

/// Type of the cache, width of a head, whether it is transposed; keys, rows, key-value heads, heads for each.
type Shape = ((u32, usize, bool), usize, usize, usize, usize);

struct Case {
    args: SfHeadOutput,
    alpha: f32,
    /// `[cell][head][dim]`, before the cache rounded them.
    values: Vec<f32>,
    cache: Cache,
    cells: Vec<u32>,
    rows: Vec<SfSmiRow>,
    output: Vec<f32>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let kinds = prop_oneof![
        (prop::sample::select(FLOATS.to_vec()), prop::sample::select(vec![24, 64, 80, 128, 256]), any::<bool>()),
        (prop::sample::select(BLOCKS.to_vec()), prop::sample::select(vec![32, 64, 128, 256]), Just(false)),
    ];
    (kinds, 1..300usize, 1..40usize, 1..4usize, 1..6usize)
}

impl Case {
    fn draw(((kind, dim, transposed), n_kv, n_rows, n_head_kv, group_size): Shape, seed: u64, alpha: f32) -> Self {
        let mut draw = Draw(seed);
        let n_head = n_head_kv * group_size;
        let values: Vec<f32> = (0..n_kv * n_head_kv * dim).map(|_| 3.0 * draw.real()).collect();
        let cache = cache(&values, kind, n_kv, n_head_kv, dim, transposed);
        let output = (0..n_head * n_rows * dim).map(|_| draw.real()).collect();
        let (mut cells, mut rows) = (Vec::new(), Vec::new());
        for row in (0..n_rows as u32).filter(|row| row % 3 != 1) {
            let (first, n_cells) = (cells.len() as u32, 1 + draw.below(12) as u32);
            rows.push(SfSmiRow { row, first, n_cells, alpha });
            cells.extend((0..n_cells).map(|_| draw.below(n_kv) as u32));
        }
        let [cell_stride, dim_stride, head_stride] = cache.strides.map(|stride| stride as u64);
        let args = SfHeadOutput {
            output_row: dim as u64,
            output_head: (n_rows * dim) as u64,
            cell_stride,
            dim_stride,
            head_stride,
            value_type: kind,
            head_dim: dim as u32,
            n_kv: n_kv as u32,
            n_rows: n_rows as u32,
            n_head: n_head as u32,
            n_head_kv: n_head_kv as u32,
        };
        Self { args, alpha, values, cache, cells, rows, output }
    }

    fn run(&self, device: &Device) -> (Vec<f32>, Vec<SfSmiOutcome>) {
        let mut output = table(device, self.output.clone());
        let values = table(device, self.cache.bytes.clone());
        let (cells, rows) = (table(device, self.cells.clone()), table(device, self.rows.clone()));
        let mut found = Shared::default();
        let at = output.as_ptr().cast_mut();
        // SAFETY: tables of the device, as large as the shapes say, that nothing else uses meanwhile.
        let data = unsafe { HeadOutputData::new(self.args, at, values.as_ptr()) };
        let found = device.smi(&data, &cells, &rows, &mut found).unwrap().to_vec();
        (output.download(device).unwrap().to_vec(), found)
    }

    fn window(&self, row: &SfSmiRow) -> Vec<usize> {
        self.cells[row.first as usize..][..row.n_cells as usize].iter().map(|cell| *cell as usize).collect()
    }

    /// What the oracle makes of one head's output, with these values for the cache's.
    fn expected(&self, before: &[f32], values: &[f32], window: &[usize], head: usize) -> Vec<f64> {
        let (dim, n_head_kv) = (self.args.head_dim as usize, self.args.n_head_kv as usize);
        let head_kv = head / (self.args.n_head as usize / n_head_kv);
        let value = |cell: &usize| float64(&values[(cell * n_head_kv + head_kv) * dim..][..dim]);
        let mut expected = float64(before);
        inject(&mut expected, &window.iter().map(value).collect::<Vec<_>>(), f64::from(self.alpha));
        expected
    }

    fn check_head(&self, before: &[f32], after: &[f32], window: &[usize], head: usize, found: Option<SfSmiOutcome>) {
        let (before64, after64) = (float64(before), float64(after));
        // F32 sums of at most 12 values of the cache as it is.
        let expected = self.expected(before, &self.cache.decoded, window, head);
        assert!(distance(&after64, &expected) <= 1e-5 * norm(&expected) + 1e-6, "{after:?} for {expected:?}");
        if self.args.value_type == SF_F16 {
            // The bound that the kernels are held to, against values that were never rounded to F16.
            let exact = self.expected(before, &self.values, window, head);
            assert!(distance(&after64, &exact) <= 1e-3 * norm(&exact) + 1e-6, "{after:?} for {exact:?}");
        }
        let Some(found) = found else { return };
        let added = distance(&expected, &before64).powi(2);
        let total = norm(&before64).powi(2);
        // F32 sums of at most 256 squares.
        assert!((f64::from(found.added) - added).abs() <= 1e-5 * added + 1e-9, "{found:?}, expected {added}");
        assert!((f64::from(found.total) - total).abs() <= 1e-5 * total + 1e-9, "{found:?}, expected {total}");
    }
}

fn float64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

#[test]
fn smi_is_the_oracle() {
    check(120, (shapes(), any::<u64>(), -1.0..1.0f32), |(shape, seed, alpha)| {
        let case = Case::draw(shape, seed, alpha);
        let (dim, n_rows) = (case.args.head_dim as usize, case.args.n_rows as usize);
        for On { device, .. } in devices() {
            let (output, found) = case.run(device);
            for (at, (before, after)) in case.output.chunks(dim).zip(output.chunks(dim)).enumerate() {
                let (head, row) = (at / n_rows, at % n_rows);
                let index = case.rows.iter().position(|r| r.row as usize == row);
                let window = index.map_or(Vec::new(), |index| case.window(&case.rows[index]));
                let found = index.map(|index| found[index * case.args.n_head as usize + head]);
                case.check_head(before, after, &window, head, found);
            }
        }
        Ok(())
    });
}
