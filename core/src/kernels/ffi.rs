//! kernels/device.h in Rust, by bindgen.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    clippy::undocumented_unsafe_blocks,
    clippy::type_complexity
)]

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Elements that are stored together, and their bytes: one, or a block of 32 that lie side by side.
pub(super) fn block_of(kind: u32) -> (u32, u32) {
    match kind {
        SF_F32 => (1, 4),
        SF_F16 | SF_BF16 => (1, 2),
        SF_Q4_1 => (32, 20),
        SF_Q5_0 => (32, 22),
        SF_Q5_1 => (32, 24),
        SF_Q8_0 => (32, 34),
        _ => (32, 18),
    }
}
