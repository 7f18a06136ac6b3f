//! OEB, SMI and probes on the data of a running graph, by where it lies: [`host`] works on host memory, [`Device`] has
//! the kernels of a GPU (kernels/ in the repository). `stepflow::stepflow` holds the oracle.

mod device;
mod ffi;
pub mod host;
mod library;
#[cfg(target_os = "macos")]
mod metal;

use std::collections::HashMap;

pub use device::{AttentionData, Device, DeviceError, HeadOutputData, Plain, Shared, Table};
pub use ffi::{
    SF_BF16, SF_F16, SF_F32, SF_IQ4_NL, SF_NO_CELL, SF_Q4_0, SF_Q4_1, SF_Q5_0, SF_Q5_1, SF_Q8_0, SfAttention,
    SfHeadOutput, SfOebOutcome, SfOebRow, SfProbeKey, SfProbeRow, SfSmiOutcome, SfSmiRow,
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

/// The devices with kernels of ours, opened when they are first asked for.
#[derive(Default)]
pub struct Devices {
    /// Kernels to use for a backend in place of those that are found.
    given: HashMap<String, Library>,
    opened: HashMap<Place, Option<Device>>,
}

impl Devices {
    /// Devices of `backend` use the kernels of `library`.
    pub fn with_library(backend: &str, library: Library) -> Self {
        Self { given: HashMap::from([(backend.to_owned(), library)]), opened: HashMap::new() }
    }

    /// The kernels for data at `place`; `None` where there are none, or the device cannot be opened: then the data is
    /// read back.
    pub fn at(&mut self, place: Place) -> Option<&Device> {
        let given = &self.given;
        let open = || {
            let found = || Library::find(place.backend).ok().flatten();
            Device::open(given.get(place.backend).copied().or_else(found)?, place.ordinal).ok()
        };
        self.opened.entry(place).or_insert_with(open).as_ref()
    }
}
