//! What a call of a kernel costs, from its launch until it is done, in microseconds: `cargo bench --bench kernel-cost -- LIBRARY`.
//!
//! By the library of kernels that the argument names, on its first GPU. One line an operation and shape
//! as CSV, shapes in turns; the median of all calls, and the 10th and 90th percentile. Of `attend` also how fast it reads its
//! caches, for the card's bandwidth is its bound.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use stepflow::kernels::attend::{OnDevice, Plan, RowWork};
use stepflow::kernels::*;
use stepflow::stepflow::oeb::Group;

/// The name under which the library's first GPU is found.
const PLACE: Place = Place { backend: "bench", ordinal: 0 };

const HEADS: u32 = 40;
const HEADS_KV: u32 = 8;
const HEAD_DIM: u32 = 128;
const CALLS: usize = 200;

fn table<T: Plain>(device: &Device, values: Vec<T>) -> Table<T> {
    let mut table = Table::default();
    table.upload(device, values).unwrap();
    table
}

/// An operation and its shape, ready to be called.
struct Case {
    name: &'static str,
    n_rows: u32,
    n_kv: u32,
    /// Bytes of the caches that a call reads.
    bytes: u64,
    call: Box<dyn FnMut()>,
    micros: Vec<f64>,
}

impl Case {
    fn new(name: &'static str, n_rows: u32, n_kv: u32, call: impl FnMut() + 'static) -> Self {
        Self { name, n_rows, n_kv, bytes: 0, call: Box::new(call), micros: Vec::new() }
    }
}

fn attention(n_rows: u32, n_kv: u32) -> SfAttention {
    SfAttention { mask_stride: 4 * u64::from(n_kv), mask_type: SF_F32, n_kv, n_rows, n_head: HEADS }
}

/// OEB where every row is below its floor, so that every row is written.
fn oeb(device: &Device, n_rows: u32, n_kv: u32) -> Case {
    let device = device.clone();
    let keys = (n_kv * n_rows) as usize;
    let labels = table(&device, (0..n_kv).map(|cell| u8::from(cell >= n_kv / 10)).collect());
    let rows = (0..n_rows).map(|row| SfOebRow { row, same: 1, bridge: 0, tau_max: 1.0 });
    let (rows, mask) = (table(&device, rows.collect()), table(&device, vec![0u8; keys * 4]));
    let probs = table(&device, vec![1.0 / n_kv as f32; keys * HEADS as usize]);
    let mut found = Shared::default();
    Case::new("oeb", n_rows, n_kv, move || {
        let at = probs.as_ptr().cast_mut();
        // SAFETY: tables of the device, as large as the shapes say, that nothing else uses.
        let data = unsafe { AttentionData::new(attention(n_rows, n_kv), false, at, mask.as_ptr()) };
        device.oeb(&data, &labels, &rows, &mut found).unwrap();
    })
}

/// Attention with OEB inside, where every row is below its floor; over caches of blocks of so many bytes for 32 elements.
fn attend(device: &Device, name: &'static str, n_rows: u32, n_kv: u32, (kind, of_block): (u32, u32)) -> Case {
    let of_head = HEAD_DIM / 32 * of_block;
    let cache =
        SfCache { cell_stride: (HEADS_KV * of_head).into(), head_stride: of_head.into(), type_: kind, dim: HEAD_DIM };
    let args = SfFlash {
        query_row: (HEADS * HEAD_DIM).into(),
        query_head: HEAD_DIM.into(),
        output_row: (HEADS * HEAD_DIM).into(),
        output_head: HEAD_DIM.into(),
        keys: cache,
        values: cache,
        n_kv,
        n_rows,
        n_head: HEADS,
        n_head_kv: HEADS_KV,
        scale: 0.1,
        softcap: 0.0,
    };
    let floats = || table(device, vec![0.5f32; (n_rows * HEADS * HEAD_DIM) as usize]);
    let caches = [(); 2].map(|()| table(device, vec![0u8; (n_kv * HEADS_KV * of_head) as usize]));
    let (queries, mut output) = (floats(), floats());
    // The kernels run on a stream of their own.
    output.download(device).unwrap();
    let group = |cell| if cell < n_kv / 10 { Group::Bridge } else { Group::Same };
    let plan = Arc::new(Plan::new((0..n_kv).map(|cell| Some((group(cell), 0.0)))));
    let row = |row| RowWork { stream: 0, row, plan: Some(plan.clone()), tau_max: Some(1.0), momentum: None };
    let (rows, mut there): (Vec<_>, _) = ((0..n_rows as usize).map(row).collect(), OnDevice::default());
    let call = move || {
        let data = SfFlashData {
            queries: queries.as_ptr(),
            keys: caches[0].as_ptr(),
            values: caches[1].as_ptr(),
            sinks: std::ptr::null(),
            slopes: std::ptr::null(),
            output: output.as_ptr().cast_mut(),
        };
        // SAFETY: as in `oeb`.
        let flash = unsafe { FlashData::new(args, data) }.expect("the kernels read it");
        there.attend(PLACE, &flash, &[], &rows).unwrap();
    };
    let bytes = 2 * u64::from(n_rows) * u64::from(n_kv) * u64::from(HEADS_KV * of_head);
    Case { bytes, ..Case::new(name, n_rows, n_kv, call) }
}

/// SMI over a transposed F16 cache.
fn smi(device: &Device, window: u32, n_kv: u32) -> Case {
    let device = device.clone();
    let args = SfHeadOutput {
        output_row: HEAD_DIM.into(),
        output_head: HEAD_DIM.into(),
        cell_stride: 2,
        dim_stride: 2 * u64::from(n_kv),
        head_stride: 2 * u64::from(n_kv * HEAD_DIM),
        value_type: SF_F16,
        head_dim: HEAD_DIM,
        n_kv,
        n_rows: 1,
        n_head: HEADS,
        n_head_kv: HEADS_KV,
    };
    let values = table(&device, vec![0u8; (2 * n_kv * HEAD_DIM * HEADS_KV) as usize]);
    let cells = table(&device, (0..window).collect());
    let rows = table(&device, vec![SfSmiRow { row: 0, first: 0, n_cells: window, alpha: 0.06 }]);
    let output = table(&device, vec![0f32; (HEAD_DIM * HEADS) as usize]);
    let mut found = Shared::default();
    Case::new("smi", 1, n_kv, move || {
        let at = output.as_ptr().cast_mut();
        // SAFETY: as in `oeb`.
        let data = unsafe { HeadOutputData::new(args, at, values.as_ptr()) };
        device.smi(&data, &cells, &rows, &mut found).unwrap();
    })
}

/// A probe of 32 keys a row.
fn probe(device: &Device, n_rows: u32, n_kv: u32) -> Case {
    let device = device.clone();
    let keys = (n_kv * n_rows) as usize;
    let keys_of_row = (0..32).map(|cell| SfProbeKey { own: cell, shared: SF_NO_CELL });
    let rows = (0..n_rows).map(|row| SfProbeRow { row, first: 0, n_keys: 32 });
    let (keys_there, rows) = (table(&device, keys_of_row.collect()), table(&device, rows.collect()));
    let factors = table(&device, vec![1.0; (n_rows * HEADS) as usize]);
    let (mask, probs) = (table(&device, vec![0u8; keys * 4]), table(&device, vec![0f32; keys * HEADS as usize]));
    Case::new("probe", n_rows, n_kv, move || {
        let at = probs.as_ptr().cast_mut();
        // SAFETY: as in `oeb`.
        let data = unsafe { AttentionData::new(attention(n_rows, n_kv), false, at, mask.as_ptr()) };
        device.probe(&data, &keys_there, &rows, &factors).unwrap();
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo passes `--bench`.
    let Some(path) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else {
        eprintln!("kernel-cost: skipped: no library of kernels is named; scripts/gpu-check builds and names one");
        return Ok(());
    };
    let library = Library::open(Path::new(&path))?;
    library.provide(PLACE.backend);
    let device = Device::open(library, 0)?;
    let mut cases: Vec<Case> = [256, 4096, 16384, 32768].map(|n_kv| oeb(&device, 1, n_kv)).into();
    cases.extend([oeb(&device, 64, 4096), oeb(&device, 512, 4096)]);
    cases.extend([smi(&device, 4, 16384), smi(&device, 64, 16384), probe(&device, 1, 16384), probe(&device, 64, 4096)]);
    for n_kv in [256, 4096, 16384, 32768] {
        cases.push(attend(&device, "attend-f16", 1, n_kv, (SF_F16, 64)));
        cases.push(attend(&device, "attend-q8_0", 1, n_kv, (SF_Q8_0, 34)));
        cases.push(attend(&device, "attend-q4_0", 1, n_kv, (SF_Q4_0, 18)));
    }
    cases.push(attend(&device, "attend-f16", 8, 4096, (SF_F16, 64)));
    for call in 0..=CALLS {
        for case in &mut cases {
            let started = Instant::now();
            (case.call)();
            // The first call of each warms up.
            if call > 0 {
                case.micros.push(started.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    println!("kernel,rows,n_kv,heads,us_p10,us_median,us_p90,gb_per_s");
    for Case { name, n_rows, n_kv, bytes, mut micros, .. } in cases {
        micros.sort_by(f64::total_cmp);
        let at = |share: usize| micros[(micros.len() - 1) * share / 100];
        let speed = if bytes == 0 { String::new() } else { format!("{:.0}", bytes as f64 / at(50) / 1e3) };
        println!("{name},{n_rows},{n_kv},{HEADS},{:.1},{:.1},{:.1},{speed}", at(10), at(50), at(90));
    }
    Ok(())
}
