//! The Metal kernels behind kernels/device.h: compiled when the device is opened, run on unified memory.
//!
//! ggml's buffers lie in memory that the CPU and the GPU share. A kernel sees them through a buffer made for the call, of
//! the pages around the data: one that was kept could outlive the memory.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSString;
use objc2_metal::{
    MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue, MTLCompileOptions,
    MTLComputeCommandEncoder, MTLComputePipelineState, MTLCreateSystemDefaultDevice, MTLDevice, MTLLibrary,
    MTLResourceOptions, MTLSize,
};

use super::ffi::{
    SF_VERSION, SfAttention, SfCache, SfDevice, SfFlash, SfFlashData, SfFlashRow, SfHeadOutput, SfKernels,
    SfOebOutcome, SfOebRow, SfPiece, SfProbeKey, SfProbeRow, SfSmiOutcome, SfSmiRow, block_of,
};

type Buffer = Retained<ProtocolObject<dyn MTLBuffer>>;
type Pipeline = Retained<ProtocolObject<dyn MTLComputePipelineState>>;

/// Of Apple's GPUs; memory is wrapped by whole pages.
const PAGE: usize = 16384;
/// Threads of a threadgroup, as the sources say.
const OEB_THREADS: usize = 256;
const SMI_THREADS: usize = 128;
const PROBE_THREADS: usize = 256;
const ATTEND_THREADS: usize = 128;
/// Heads of a threadgroup, as the source says.
const ATTEND_HEADS: u32 = 4;

const SOURCES: [&str; 5] = [
    include_str!("../../kernels/args.h"),
    include_str!("../../kernels/metal/oeb.metal"),
    include_str!("../../kernels/metal/smi.metal"),
    include_str!("../../kernels/metal/probe.metal"),
    include_str!("../../kernels/metal/attend.metal"),
];

struct Metal {
    device: Retained<ProtocolObject<dyn MTLDevice>>,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    oeb: Pipeline,
    smi: Pipeline,
    probe: Pipeline,
    attend: Pipeline,
    combine: Pipeline,
    /// Memory that `alloc` gave, by address.
    allocated: Mutex<HashMap<usize, Buffer>>,
}

/// One argument of a kernel.
enum Argument<'a> {
    Bytes(&'a [u8]),
    /// Memory at an address, this many bytes.
    Memory(*const c_void, usize),
}

impl Metal {
    fn open() -> Result<Self, String> {
        let device = MTLCreateSystemDefaultDevice().ok_or("Metal has no device")?;
        let queue = device.newCommandQueue().ok_or("Metal gives no command queue")?;
        // Metal compiles from one text, so what the sources include is in front of them.
        let lines = SOURCES.iter().flat_map(|source| source.lines()).filter(|line| !line.starts_with("#include \"../"));
        let source = NSString::from_str(&lines.collect::<Vec<_>>().join("\n"));
        let options = MTLCompileOptions::new();
        // Masks hold infinities, which fast arithmetic may take for impossible.
        #[allow(deprecated, reason = "its successor needs macOS 15")]
        options.setFastMathEnabled(false);
        let library = device
            .newLibraryWithSource_options_error(&source, Some(&options))
            .map_err(|error| error.localizedDescription().to_string())?;
        let pipeline = |name: &str, threads: usize| {
            let function = library.newFunctionWithName(&NSString::from_str(name)).ok_or(format!("no kernel {name}"))?;
            let pipeline = device
                .newComputePipelineStateWithFunction_error(&function)
                .map_err(|error| error.localizedDescription().to_string())?;
            match (pipeline.maxTotalThreadsPerThreadgroup(), pipeline.threadExecutionWidth()) {
                (most, _) if most < threads => Err(format!("expected room for {threads} threads, found {most}")),
                (_, lanes) if lanes != 32 => Err(format!("expected SIMD groups of 32 lanes, found {lanes}")),
                _ => Ok(pipeline),
            }
        };
        let (oeb, smi) = (pipeline("oeb", OEB_THREADS)?, pipeline("smi", SMI_THREADS)?);
        let probe = pipeline("probe", PROBE_THREADS)?;
        let (attend, combine) = (pipeline("attend", ATTEND_THREADS)?, pipeline("combine", ATTEND_THREADS)?);
        Ok(Self { device, queue, oeb, smi, probe, attend, combine, allocated: Mutex::default() })
    }

    /// The buffer that holds `len` bytes from `at` on, and where in it they begin.
    fn buffer(&self, at: *const c_void, len: usize) -> Result<(Buffer, usize), String> {
        let allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = allocated.get(&(at as usize)) {
            return Ok((buffer.clone(), 0));
        }
        let (start, end) = (at as usize / PAGE * PAGE, (at as usize + len).next_multiple_of(PAGE));
        let pages = NonNull::new(start as *mut c_void).ok_or("expected memory, found null")?;
        let shared = MTLResourceOptions::StorageModeShared;
        // SAFETY: whole pages of a buffer of ggml's, which maps pages; they outlive the call, and so the buffer.
        let buffer = unsafe {
            self.device.newBufferWithBytesNoCopy_length_options_deallocator(pages, end - start, shared, None)
        };
        Ok((buffer.ok_or("Metal cannot share the memory of a tensor")?, at as usize - start))
    }

    /// Runs `width` x `height` threadgroups and waits for them.
    fn run(
        &self,
        pipeline: &Pipeline,
        threads: usize,
        [width, height]: [u32; 2],
        arguments: &[Argument<'_>],
    ) -> Result<(), String> {
        // Before there is an encoder, which must not be left open when something fails.
        let mut buffers = Vec::new();
        for argument in arguments {
            buffers.push(match argument {
                Argument::Bytes(_) => None,
                Argument::Memory(at, len) => Some(self.buffer(*at, *len)?),
            });
        }
        let commands = self.queue.commandBuffer().ok_or("Metal gives no command buffer")?;
        let encoder = commands.computeCommandEncoder().ok_or("Metal gives no encoder")?;
        encoder.setComputePipelineState(pipeline);
        for (index, (argument, buffer)) in arguments.iter().zip(&buffers).enumerate() {
            if let Argument::Bytes(bytes) = argument {
                // SAFETY: Metal copies the bytes, of which there are as many as it says.
                unsafe { encoder.setBytes_length_atIndex(NonNull::from(*bytes).cast(), bytes.len(), index) };
            }
            if let Some((buffer, offset)) = buffer {
                // SAFETY: the offset is inside the buffer, which outlives the kernel.
                unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), *offset, index) };
            }
        }
        let groups = MTLSize { width: width as usize, height: height as usize, depth: 1 };
        encoder.dispatchThreadgroups_threadsPerThreadgroup(groups, MTLSize { width: threads, height: 1, depth: 1 });
        encoder.endEncoding();
        commands.commit();
        commands.waitUntilCompleted();
        match commands.status() {
            MTLCommandBufferStatus::Completed => Ok(()),
            _ => Err(commands.error().map_or("a kernel failed".to_owned(), |e| e.localizedDescription().to_string())),
        }
    }
}

/// Null, or what went wrong, which is never freed.
fn outcome(result: Result<(), String>) -> *const c_char {
    match result {
        Ok(()) => std::ptr::null(),
        Err(problem) => CString::new(problem.replace('\0', " ")).unwrap_or_default().into_raw(),
    }
}

/// # Safety
/// `device` came from [`open`] and was not closed.
unsafe fn metal<'d>(device: *mut SfDevice) -> &'d Metal {
    // SAFETY: by this function's contract.
    unsafe { &*device.cast::<Metal>() }
}

/// # Safety
/// `value` is plain data that outlives the bytes.
unsafe fn bytes_of<'v, T>(value: *const T) -> Argument<'v> {
    // SAFETY: by this function's contract.
    Argument::Bytes(unsafe { std::slice::from_raw_parts(value.cast(), size_of::<T>()) })
}

unsafe extern "C" fn open(_: u32, device: *mut *mut SfDevice) -> *const c_char {
    outcome(autoreleasepool(|_| {
        let metal = Metal::open()?;
        // SAFETY: by device.h there is room for one pointer.
        unsafe { *device = Box::into_raw(Box::new(metal)).cast() };
        Ok(())
    }))
}

unsafe extern "C" fn close(device: *mut SfDevice) {
    // SAFETY: by device.h it came from `open`, and this is the last use.
    drop(unsafe { Box::from_raw(device.cast::<Metal>()) });
}

unsafe extern "C" fn alloc(
    device: *mut SfDevice,
    size: usize,
    _shared: bool,
    memory: *mut *mut c_void,
) -> *const c_char {
    // SAFETY: by device.h.
    let metal = unsafe { metal(device) };
    let Some(buffer) = metal.device.newBufferWithLength_options(size, MTLResourceOptions::StorageModeShared) else {
        return c"out of memory".as_ptr();
    };
    let at = buffer.contents();
    metal.allocated.lock().unwrap_or_else(PoisonError::into_inner).insert(at.as_ptr() as usize, buffer);
    // SAFETY: by device.h there is room for one pointer.
    unsafe { *memory = at.as_ptr() };
    std::ptr::null()
}

unsafe extern "C" fn free(device: *mut SfDevice, memory: *mut c_void, _shared: bool) {
    // SAFETY: by device.h.
    let metal = unsafe { metal(device) };
    metal.allocated.lock().unwrap_or_else(PoisonError::into_inner).remove(&(memory as usize));
}

unsafe extern "C" fn copy(_: *mut SfDevice, to: *mut c_void, from: *const c_void, size: usize) -> *const c_char {
    // SAFETY: by device.h both hold `size` bytes; memory is shared, and no kernel runs.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), size) };
    std::ptr::null()
}

/// Bytes of attention and of its mask.
fn extents(attention: &SfAttention) -> (usize, usize) {
    let SfAttention { n_kv, n_rows, n_head, mask_stride, .. } = *attention;
    (n_kv as usize * n_rows as usize * n_head as usize * 4, n_rows as usize * mask_stride as usize)
}

unsafe extern "C" fn oeb(
    device: *mut SfDevice,
    attention: *const SfAttention,
    sinks: bool,
    probs: *mut f32,
    mask: *const u8,
    labels: *const u8,
    rows: *const SfOebRow,
    n: u32,
    outcomes: *mut SfOebOutcome,
) -> *const c_char {
    // SAFETY: by device.h.
    let (metal, attention) = unsafe { (metal(device), &*attention) };
    let ((of_probs, of_mask), sinks) = (extents(attention), u32::from(sinks));
    // SAFETY: plain data that lives for the call.
    let (first, second) = unsafe { (bytes_of(attention), bytes_of(&raw const sinks)) };
    let arguments = [
        first,
        second,
        Argument::Memory(probs.cast(), of_probs),
        Argument::Memory(mask.cast(), of_mask),
        Argument::Memory(labels.cast(), 0),
        Argument::Memory(rows.cast(), 0),
        Argument::Memory(outcomes.cast(), 0),
    ];
    outcome(autoreleasepool(|_| metal.run(&metal.oeb, OEB_THREADS, [n, attention.n_head], &arguments)))
}

/// Bytes from the first value of a V cache to the end of the last.
fn extent_of_values(heads: &SfHeadOutput) -> usize {
    let (elements, width) = block_of(heads.value_type);
    let dims = heads.head_dim / elements;
    let last = u64::from(heads.n_kv - 1) * heads.cell_stride
        + u64::from(heads.n_head_kv - 1) * heads.head_stride
        + u64::from(dims - 1) * heads.dim_stride;
    last as usize + width as usize
}

unsafe extern "C" fn smi(
    device: *mut SfDevice,
    heads: *const SfHeadOutput,
    output: *mut f32,
    values: *const u8,
    cells: *const u32,
    rows: *const SfSmiRow,
    n: u32,
    outcomes: *mut SfSmiOutcome,
) -> *const c_char {
    // SAFETY: by device.h.
    let (metal, heads) = unsafe { (metal(device), &*heads) };
    let last = u64::from(heads.n_rows - 1) * heads.output_row + u64::from(heads.n_head - 1) * heads.output_head;
    let of_output = (last as usize + heads.head_dim as usize) * 4;
    // SAFETY: plain data that lives for the call.
    let first = unsafe { bytes_of(heads) };
    let arguments = [
        first,
        Argument::Memory(output.cast(), of_output),
        Argument::Memory(values.cast(), extent_of_values(heads)),
        Argument::Memory(cells.cast(), 0),
        Argument::Memory(rows.cast(), 0),
        Argument::Memory(outcomes.cast(), 0),
    ];
    outcome(autoreleasepool(|_| metal.run(&metal.smi, SMI_THREADS, [n, heads.n_head], &arguments)))
}

/// Bytes from the first element of a cache to the end of the last.
fn extent_of_cache(cache: &SfCache, flash: &SfFlash) -> usize {
    let (elements, width) = block_of(cache.type_);
    let of_cell = cache.dim / elements * width;
    let last = u64::from(flash.n_kv - 1) * cache.cell_stride + u64::from(flash.n_head_kv - 1) * cache.head_stride;
    last as usize + of_cell as usize
}

unsafe extern "C" fn attend(
    device: *mut SfDevice,
    flash: *const SfFlash,
    data: *const SfFlashData,
    cells: *const u32,
    bias: *const f32,
    pieces: *const SfPiece,
    first_piece: u32,
    n_pieces: u32,
    rows: *const SfFlashRow,
    first_row: u32,
    n: u32,
    parts: *mut f32,
    outcomes: *mut SfOebOutcome,
) -> *const c_char {
    // SAFETY: by device.h.
    let (metal, flash, data) = unsafe { (metal(device), &*flash, &*data) };
    let SfFlash { n_rows, n_head, n_head_kv, .. } = *flash;
    let optional: u32 =
        [data.sinks, data.slopes, bias].iter().enumerate().map(|(i, at)| u32::from(!at.is_null()) << i).sum();
    // What is not there is not read, but an argument all the same.
    let given =
        |at: *const f32| Argument::Memory(if at.is_null() { outcomes.cast_const().cast() } else { at.cast() }, 0);
    let floats = |row: u64, head: u64, dim: u32| {
        (u64::from(n_rows - 1) * row + u64::from(n_head - 1) * head + u64::from(dim)) as usize * 4
    };
    // SAFETY: plain data that lives for the call.
    let first = || unsafe { [bytes_of(flash), bytes_of(&raw const optional), bytes_of(&raw const first_piece)] };
    let of_n_head = n_head as usize * 4;
    let sinks = if data.sinks.is_null() { given(data.sinks) } else { Argument::Memory(data.sinks.cast(), of_n_head) };
    let [a, b, c] = first();
    let pieces_of = [
        a,
        b,
        c,
        Argument::Memory(data.queries.cast(), floats(flash.query_row, flash.query_head, flash.keys.dim)),
        Argument::Memory(data.keys.cast(), extent_of_cache(&flash.keys, flash)),
        Argument::Memory(data.values.cast(), extent_of_cache(&flash.values, flash)),
        given(data.slopes),
        Argument::Memory(cells.cast(), 0),
        given(bias),
        Argument::Memory(pieces.cast(), 0),
        Argument::Memory(rows.cast(), 0),
        Argument::Memory(parts.cast_const().cast(), 0),
    ];
    let [a, b, c] = first();
    let together = [
        a,
        b,
        c,
        // SAFETY: as above.
        unsafe { bytes_of(&raw const first_row) },
        sinks,
        Argument::Memory(pieces.cast(), 0),
        Argument::Memory(rows.cast(), 0),
        Argument::Memory(parts.cast_const().cast(), 0),
        Argument::Memory(
            data.output.cast_const().cast(),
            floats(flash.output_row, flash.output_head, flash.values.dim),
        ),
        Argument::Memory(outcomes.cast_const().cast(), 0),
    ];
    let blocks = n_head_kv * (n_head / n_head_kv).div_ceil(ATTEND_HEADS);
    outcome(autoreleasepool(|_| {
        // A row that sees nothing has no pieces.
        if n_pieces > 0 {
            metal.run(&metal.attend, ATTEND_THREADS, [n_pieces, blocks], &pieces_of)?;
        }
        metal.run(&metal.combine, ATTEND_THREADS, [n, n_head], &together)
    }))
}

unsafe extern "C" fn probe(
    device: *mut SfDevice,
    attention: *const SfAttention,
    probs: *mut f32,
    mask: *const u8,
    keys: *const SfProbeKey,
    rows: *const SfProbeRow,
    n: u32,
    factors: *const f32,
) -> *const c_char {
    // SAFETY: by device.h.
    let (metal, attention) = unsafe { (metal(device), &*attention) };
    let (of_probs, of_mask) = extents(attention);
    // SAFETY: plain data that lives for the call.
    let first = unsafe { bytes_of(attention) };
    let arguments = [
        first,
        Argument::Memory(probs.cast(), of_probs),
        Argument::Memory(mask.cast(), of_mask),
        Argument::Memory(keys.cast(), 0),
        Argument::Memory(rows.cast(), 0),
        Argument::Memory(factors.cast(), 0),
    ];
    outcome(autoreleasepool(|_| metal.run(&metal.probe, PROBE_THREADS, [n, attention.n_head], &arguments)))
}

/// Kernels are waited for where they are started.
unsafe extern "C" fn wait(_: *mut SfDevice) -> *const c_char {
    std::ptr::null()
}

static KERNELS: SfKernels = SfKernels {
    version: SF_VERSION,
    open: Some(open),
    close: Some(close),
    alloc: Some(alloc),
    free: Some(free),
    upload: Some(copy),
    download: Some(copy),
    oeb: Some(oeb),
    smi: Some(smi),
    attend: Some(attend),
    probe: Some(probe),
    wait: Some(wait),
};

/// The table of this file's functions.
pub(super) fn kernels() -> &'static SfKernels {
    &KERNELS
}
