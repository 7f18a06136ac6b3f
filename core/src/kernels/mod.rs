//! OEB, SMI and probes on the data of a running graph, by where it lies: [`host`] works on host memory, [`Device`] has
//! the kernels of a GPU (kernels/ in the repository). `stepflow::stepflow` holds the oracle.

pub mod attend;
mod device;
mod ffi;
pub mod host;
mod library;
#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
mod metal;

use std::collections::HashMap;

pub use device::{
    AttentionData, Device, DeviceError, FlashData, FlashTables, HeadOutputData, Parts, Plain, Shared, Table,
};
pub use ffi::{
    SF_BF16, SF_F16, SF_F32, SF_IQ4_NL, SF_NO_CELL, SF_PIECE, SF_Q4_0, SF_Q4_1, SF_Q5_0, SF_Q5_1, SF_Q8_0, SfAttention,
    SfCache, SfFlash, SfFlashData, SfFlashRow, SfHeadOutput, SfOebOutcome, SfOebRow, SfPiece, SfProbeKey, SfProbeRow,
    SfSmiOutcome, SfSmiRow,
};
pub use library::{Library, LibraryError};

/// A device of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its backend, such as `CUDA`.
    pub backend: &'static str,
    /// Its number among the backend's devices.
    pub ordinal: u32,
}

/// Whether there are kernels for data at `place`, and its device opens.
pub fn has_kernels(place: Place) -> bool {
    Devices::default().at(place).is_some()
}

/// The devices with kernels of ours, opened when they are first asked for.
#[derive(Default)]
pub struct Devices(HashMap<Place, Option<Device>>);

impl Devices {
    /// The kernels for data at `place`; `None` where there are none, or the device cannot be opened: then the data is
    /// read back.
    pub fn at(&mut self, place: Place) -> Option<&Device> {
        let open = || Device::open(Library::find(place.backend).ok().flatten()?, place.ordinal).ok();
        self.0.entry(place).or_insert_with(open).as_ref()
    }
}
