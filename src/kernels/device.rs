//! The kernels of a device, on memory that is already there.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use super::ffi::{
    SfAttention, SfDevice, SfHeadOutput, SfKernels, SfOebOutcome, SfOebRow, SfProbeKey, SfProbeRow, SfSmiOutcome,
    SfSmiRow,
};
use super::library::Library;

/// What a device said when it failed.
#[derive(Debug, thiserror::Error)]
#[error("the kernels' device failed: {0}")]
pub struct DeviceError(String);

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
