//! The kernels of a device, on memory that is already there.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use super::ffi::{
    SF_BF16, SF_F16, SF_F32, SF_IQ4_NL, SF_KEY_DIMS, SF_PIECE, SF_Q4_0, SF_Q4_1, SF_Q5_0, SF_Q5_1, SF_Q8_0,
    SF_VALUE_DIMS, SfAttention, SfCache, SfDevice, SfFlash, SfFlashData, SfFlashRow, SfHeadOutput, SfKernels,
    SfOebOutcome, SfOebRow, SfPiece, SfProbeKey, SfProbeRow, SfSmiOutcome, SfSmiRow, block_of,
};
use super::library::Library;

/// What a device said when it failed.
#[derive(Debug, thiserror::Error)]
#[error("the kernels' device failed: {0}")]
pub struct DeviceError(String);

/// Bytes that the parts of one launch take, about: many rows are computed some at a time.
const PARTS: usize = 16 << 20;

/// A device with kernels of ours.
#[derive(Clone)]
pub struct Device(Arc<Opened>);

struct Opened {
    table: &'static SfKernels,
    raw: NonNull<SfDevice>,
}

// SAFETY: device.h lets every thread use a device, several at once too.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: `open` returned it, and nothing uses it after this.
        unsafe { (self.table.close.expect("the table is full"))(self.raw.as_ptr()) };
    }
}

/// Calls a function of the table with the device and further arguments.
macro_rules! call {
    ($device:expr, $function:ident $(, $argument:expr)*) => {
        ($device.0.table.$function.expect("the table is full"))($device.0.raw.as_ptr() $(, $argument)*)
    };
}

impl DeviceError {
    /// Of a device without kernels.
    pub(super) fn none() -> Self {
        Self("it has no kernels of ours".to_owned())
    }
}

fn check(problem: *const c_char) -> Result<(), DeviceError> {
    if problem.is_null() {
        return Ok(());
    }
    // SAFETY: by device.h what is not null is a text that stays.
    Err(DeviceError(unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned()))
}

impl Device {
    /// Opens device `ordinal` of its kind.
    ///
    /// # Errors
    /// When there is none, or its driver refuses.
    pub fn open(library: Library, ordinal: u32) -> Result<Self, DeviceError> {
        let table = library.table();
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is written only in the call.
        check(unsafe { (table.open.expect("the table is full"))(ordinal, &mut raw) })?;
        let raw = NonNull::new(raw).ok_or_else(|| DeviceError("it opened nothing".to_owned()))?;
        Ok(Self(Arc::new(Opened { table, raw })))
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Waits until everything that was started is done.
    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the device is open.
        check(unsafe { call!(self, wait) })
    }

    /// OEB on `rows`, in every head. `labels` has the segment label of each cell. Returns `[rows][n_head]`, which `found`
    /// keeps.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When a row is outside the attention, a cell has no label, or a table is in the memory of another device.
    pub fn oeb<'o>(
        &self,
        attention: &AttentionData<'_>,
        labels: &Table<u8>,
        rows: &Table<SfOebRow>,
        found: &'o mut Shared<SfOebOutcome>,
    ) -> Result<&'o [SfOebOutcome], DeviceError> {
        let args = &attention.args;
        assert!(rows.values.iter().all(|row| row.row < args.n_rows) && labels.values.len() >= args.n_kv as usize);
        found.resize(self, rows.values.len() * args.n_head as usize)?;
        if rows.values.is_empty() {
            return Ok(&[]);
        }
        assert!(labels.is_on(self) && rows.is_on(self));
        // SAFETY: `AttentionData` vouches for its memory; tables are on this device and as long as they say, rows and cells
        // are inside.
        check(unsafe {
            let (probs, mask, sinks) = (attention.probs, attention.mask, attention.sinks);
            let (n, found) = (rows.values.len() as u32, found.as_mut_ptr());
            call!(self, oeb, args, sinks, probs, mask, labels.as_ptr(), rows.as_ptr(), n, found)
        })?;
        self.wait()?;
        Ok(found.as_slice())
    }

    /// SMI on `rows`, in every head; `cells` has their windows. Returns `[rows][n_head]`, which `found` keeps.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When a row, a window or a cell is outside, a window is empty, or a table is in the memory of another device.
    pub fn smi<'o>(
        &self,
        output: &HeadOutputData<'_>,
        cells: &Table<u32>,
        rows: &Table<SfSmiRow>,
        found: &'o mut Shared<SfSmiOutcome>,
    ) -> Result<&'o [SfSmiOutcome], DeviceError> {
        let args = &output.args;
        let inside = |row: &SfSmiRow| {
            row.row < args.n_rows && row.n_cells > 0 && ends_inside(row.first, row.n_cells, cells.values.len())
        };
        assert!(rows.values.iter().all(inside) && cells.values.iter().all(|&cell| cell < args.n_kv));
        found.resize(self, rows.values.len() * args.n_head as usize)?;
        if rows.values.is_empty() {
            return Ok(&[]);
        }
        assert!(cells.is_on(self) && rows.is_on(self));
        // SAFETY: as in `oeb`.
        check(unsafe {
            let (data, values) = (output.output, output.values);
            let (n, found) = (rows.values.len() as u32, found.as_mut_ptr());
            call!(self, smi, args, data, values, cells.as_ptr(), rows.as_ptr(), n, found)
        })?;
        self.wait()?;
        Ok(found.as_slice())
    }

    /// Attention with OEB inside of `rows` of `flash`, in every head. Returns `[rows][n_head]`, which `found` keeps.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When a row, a piece or a cell is outside, or a table is in the memory of another device.
    pub fn attend<'o>(
        &self,
        flash: &FlashData<'_>,
        FlashTables { cells, bias, pieces, rows }: &FlashTables,
        slopes: &Table<f32>,
        parts: &mut Parts,
        found: &'o mut Shared<SfOebOutcome>,
    ) -> Result<&'o [SfOebOutcome], DeviceError> {
        let args = &flash.args;
        let n_head = args.n_head as usize;
        let has = |table: &Table<f32>| !table.values.is_empty();
        let fits =
            |row: &SfFlashRow| row.row < args.n_rows && ends_inside(row.first, row.n_pieces, pieces.values.len());
        let lies_inside = |piece: &SfPiece| {
            let row = rows.values.get(piece.row as usize).is_some();
            row && piece.n_cells <= SF_PIECE && ends_inside(piece.first, piece.n_cells, cells.values.len())
        };
        assert!(rows.values.iter().all(fits) && pieces.values.iter().all(lies_inside));
        assert!(cells.values.iter().all(|&cell| cell < args.n_kv));
        assert!(!has(bias) || bias.values.len() == cells.values.len());
        assert!(!has(slopes) || slopes.values.len() == n_head);
        found.resize(self, rows.values.len() * n_head)?;
        assert!(rows.values.is_empty() || rows.is_on(self) && cells.is_on(self) && pieces.is_on(self));
        assert!([bias, slopes].into_iter().all(|table| !has(table) || table.is_on(self)));
        let of_piece = n_head * (args.values.dim as usize + 2) * size_of::<f32>();
        let pointer = |table: &Table<f32>| if has(table) { table.as_ptr() } else { std::ptr::null() };
        let data = SfFlashData { slopes: pointer(slopes), ..flash.data };
        let mut first = 0;
        while first < rows.values.len() {
            let from = rows.values[first].first;
            let pieces_to = |row: &SfFlashRow| (row.first + row.n_pieces - from) as usize;
            let more = rows.values[first + 1..].iter().take_while(|row| pieces_to(row) * of_piece <= PARTS).count();
            let some = &rows.values[first..=first + more];
            let n_pieces = some.last().map_or(0, pieces_to);
            parts.grow(self, n_pieces * of_piece)?;
            // SAFETY: `FlashData` vouches for its memory; tables are on this device and as long as they say, rows, pieces and
            // cells are inside; launches run one after the other, so they may use the same parts.
            check(unsafe {
                let (cells, bias, pieces, rows) = (cells.as_ptr(), pointer(bias), pieces.as_ptr(), rows.as_ptr());
                let (parts, outcomes) = (parts.as_mut_ptr(), found.as_mut_ptr());
                let (n_pieces, at, n) = (n_pieces as u32, first as u32, some.len() as u32);
                call!(self, attend, args, &data, cells, bias, pieces, from, n_pieces, rows, at, n, parts, outcomes)
            })?;
            first += some.len();
        }
        self.wait()?;
        Ok(found.as_slice())
    }

    /// Multiplies the keys of `rows` by `factors`, `[rows][n_head]`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When a row or its keys are outside, a factor is missing, or a table is in the memory of another device. Cells outside
    /// the attention are passed over.
    pub fn probe(
        &self,
        attention: &AttentionData<'_>,
        keys: &Table<SfProbeKey>,
        rows: &Table<SfProbeRow>,
        factors: &Table<f32>,
    ) -> Result<(), DeviceError> {
        let args = &attention.args;
        let inside = |row: &SfProbeRow| row.row < args.n_rows && ends_inside(row.first, row.n_keys, keys.values.len());
        assert!(rows.values.iter().all(inside) && factors.values.len() >= rows.values.len() * args.n_head as usize);
        if rows.values.is_empty() {
            return Ok(());
        }
        assert!(keys.is_on(self) && rows.is_on(self) && factors.is_on(self));
        // SAFETY: as in `oeb`.
        check(unsafe {
            let (probs, mask, n) = (attention.probs, attention.mask, rows.values.len() as u32);
            call!(self, probe, args, probs, mask, keys.as_ptr(), rows.as_ptr(), n, factors.as_ptr())
        })?;
        self.wait()
    }
}

fn ends_inside(first: u32, n: u32, len: usize) -> bool {
    first as usize + n as usize <= len
}

/// Attention of one layer in a device's memory, while the graph stands still at it.
pub struct AttentionData<'g> {
    args: SfAttention,
    sinks: bool,
    probs: *mut f32,
    mask: *const u8,
    graph: PhantomData<&'g mut f32>,
}

impl AttentionData<'_> {
    /// # Safety
    /// `probs` and `mask` are memory of the device that the kernels will run on, of the shapes that `args` says, and
    /// until the end of `'g` nothing else uses `probs` or writes `mask`.
    pub unsafe fn new(args: SfAttention, sinks: bool, probs: *mut f32, mask: *const u8) -> Self {
        Self { args, sinks, probs, mask, graph: PhantomData }
    }
}

/// Head outputs of one layer and the V cache behind them in a device's memory, while the graph stands still there.
pub struct HeadOutputData<'g> {
    args: SfHeadOutput,
    output: *mut f32,
    values: *const u8,
    graph: PhantomData<&'g mut f32>,
}

impl HeadOutputData<'_> {
    /// # Safety
    /// As [`AttentionData::new`].
    pub unsafe fn new(args: SfHeadOutput, output: *mut f32, values: *const u8) -> Self {
        Self { args, output, values, graph: PhantomData }
    }
}

/// Flash attention of one layer in a device's memory, while the graph stands still behind it.
pub struct FlashData<'g> {
    args: SfFlash,
    data: SfFlashData,
    graph: PhantomData<&'g mut f32>,
}

impl FlashData<'_> {
    /// `None` where the kernels cannot read its keys or values.
    ///
    /// # Safety
    /// What `data` leads to is memory of the device that the kernels will run on, of the shapes that `args` says, and until
    /// the end of `'g` nothing else uses the output or writes the rest. It has no slopes.
    pub unsafe fn new(args: SfFlash, data: SfFlashData) -> Option<Self> {
        let fits = |cache: &SfCache, most: u32, at: *const u8| {
            let (dims, bytes) = match cache.type_ {
                SF_F32 | SF_F16 | SF_BF16 => (4, 8),
                SF_Q8_0 | SF_Q4_0 | SF_Q4_1 | SF_Q5_0 | SF_Q5_1 | SF_IQ4_NL => (32, 2),
                _ => return false,
            };
            let places = [cache.cell_stride, cache.head_stride, at as u64];
            cache.dim <= most
                && cache.dim.is_multiple_of(dims)
                && places.iter().all(|place| place.is_multiple_of(bytes))
        };
        let both = fits(&args.keys, SF_KEY_DIMS, data.keys) && fits(&args.values, SF_VALUE_DIMS, data.values);
        both.then_some(Self { args, data, graph: PhantomData })
    }

    /// Query heads.
    pub fn n_head(&self) -> usize {
        self.args.n_head as usize
    }

    /// Its output and its values, as SMI sees them.
    pub fn head_output(&self) -> HeadOutputData<'_> {
        let SfFlash { output_row, output_head, values, n_kv, n_rows, n_head, n_head_kv, .. } = self.args;
        let args = SfHeadOutput {
            output_row,
            output_head,
            cell_stride: values.cell_stride,
            dim_stride: block_of(values.type_).1.into(),
            head_stride: values.head_stride,
            value_type: values.type_,
            head_dim: values.dim,
            n_kv,
            n_rows,
            n_head,
            n_head_kv,
        };
        HeadOutputData { args, output: self.data.output, values: self.data.values, graph: PhantomData }
    }
}

/// What rows of flash attention go through: see `SfFlashRow` and `SfPiece`. Without a bias, masks only hide.
#[derive(Default)]
pub struct FlashTables {
    /// Cells of all rows, group by group.
    pub cells: Table<u32>,
    /// What the mask adds to the score of each, or nothing.
    pub bias: Table<f32>,
    /// Pieces of all rows, one row after the other.
    pub pieces: Table<SfPiece>,
    /// The rows.
    pub rows: Table<SfFlashRow>,
}

/// Memory for what pieces of attention come to.
#[derive(Default)]
pub struct Parts(Option<Memory>);

impl Parts {
    fn grow(&mut self, device: &Device, size: usize) -> Result<(), DeviceError> {
        Memory::grow(&mut self.0, device, size, false)
    }

    fn as_mut_ptr(&self) -> *mut f32 {
        self.0.as_ref().map_or(std::ptr::null_mut(), |memory| memory.at.as_ptr().cast())
    }
}

/// Memory of a device, freed with its last user.
struct Memory {
    device: Device,
    at: NonNull<c_void>,
    size: usize,
    shared: bool,
}

// SAFETY: it is an address that the device gave; device.h lets every thread use it.
unsafe impl Send for Memory {}

impl Memory {
    fn new(device: &Device, size: usize, shared: bool) -> Result<Self, DeviceError> {
        let mut at = std::ptr::null_mut();
        // SAFETY: `at` is written only in the call.
        check(unsafe { call!(device, alloc, size, shared, &mut at) })?;
        let at = NonNull::new(at).ok_or_else(|| DeviceError("it has no memory left".to_owned()))?;
        Ok(Self { device: device.clone(), at, size, shared })
    }

    /// Makes `memory` hold at least `size` bytes of `device`. It grows by half, so that a growing context rarely asks; at
    /// first it is as large as asked, so that tools which watch for what lies beyond see it.
    fn grow(memory: &mut Option<Self>, device: &Device, size: usize, shared: bool) -> Result<(), DeviceError> {
        let own = memory.take_if(|memory| !memory.device.is(device) || memory.size < size);
        if memory.is_none() {
            let more = if own.is_some_and(|own| own.device.is(device)) { size / 2 } else { 0 };
            *memory = Some(Self::new(device, (size + more).max(1), shared)?);
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `alloc` returned it, and nothing uses it after this: every kernel was waited for.
        unsafe { call!(self.device, free, self.at.as_ptr(), self.shared) };
    }
}

/// Data without pointers or padding, of which any bits are a value.
///
/// # Safety
/// It is that.
pub unsafe trait Plain: Copy + PartialEq {}

// SAFETY: numbers, and structs of 32-bit numbers alone.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for SfOebRow {}
// SAFETY: as above.
unsafe impl Plain for SfOebOutcome {}
// SAFETY: as above.
unsafe impl Plain for SfSmiRow {}
// SAFETY: as above.
unsafe impl Plain for SfSmiOutcome {}
// SAFETY: as above.
unsafe impl Plain for SfPiece {}
// SAFETY: as above.
unsafe impl Plain for SfFlashRow {}
// SAFETY: as above.
unsafe impl Plain for SfProbeRow {}
// SAFETY: as above.
unsafe impl Plain for SfProbeKey {}

/// Values that kernels read: kept here too, so that equal ones are not sent twice.
pub struct Table<T> {
    values: Vec<T>,
    memory: Option<Memory>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { values: Vec::new(), memory: None }
    }
}

impl<T: Plain> Table<T> {
    /// Puts `values` into the device's memory.
    ///
    /// # Errors
    /// When the device fails.
    pub fn upload(&mut self, device: &Device, values: Vec<T>) -> Result<(), DeviceError> {
        if self.is_on(device) && self.values == values {
            return Ok(());
        }
        let size = size_of_val(&values[..]);
        // What fails on the way leaves nothing that a later call could take for sent.
        self.values.clear();
        Memory::grow(&mut self.memory, device, size, false)?;
        // SAFETY: the memory holds `size` bytes, and so does the vector.
        check(unsafe { call!(device, upload, self.as_ptr().cast_mut().cast(), values.as_ptr().cast(), size) })?;
        self.values = values;
        Ok(())
    }

    fn is_on(&self, device: &Device) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.device.is(device))
    }

    /// What the device's memory holds now: kernels may have changed it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn download(&mut self, device: &Device) -> Result<&[T], DeviceError> {
        assert!(self.is_on(device));
        let size = size_of_val(&self.values[..]);
        // SAFETY: as in `upload`.
        check(unsafe { call!(device, download, self.values.as_mut_ptr().cast(), self.as_ptr().cast(), size) })?;
        Ok(&self.values)
    }

    /// Where it is in the device's memory; null before the first upload.
    pub fn as_ptr(&self) -> *const T {
        self.memory.as_ref().map_or(std::ptr::null(), |memory| memory.at.as_ptr().cast_const().cast())
    }
}

/// Values that kernels write and the host reads in place.
pub struct Shared<T> {
    len: usize,
    memory: Option<Memory>,
    kind: PhantomData<T>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { len: 0, memory: None, kind: PhantomData }
    }
}

impl<T: Plain> Shared<T> {
    fn resize(&mut self, device: &Device, len: usize) -> Result<(), DeviceError> {
        Memory::grow(&mut self.memory, device, len * size_of::<T>(), true)?;
        self.len = len;
        Ok(())
    }

    fn as_mut_ptr(&mut self) -> *mut T {
        self.memory.as_ref().map_or(std::ptr::null_mut(), |memory| memory.at.as_ptr().cast())
    }

    fn as_slice(&self) -> &[T] {
        let Some(memory) = &self.memory else { return &[] };
        // SAFETY: the memory is shared with the host and holds `len` values, which a kernel that was waited for wrote.
        unsafe { std::slice::from_raw_parts(memory.at.as_ptr().cast_const().cast(), self.len) }
    }
}
