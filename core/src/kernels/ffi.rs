//! kernels/device.h in Rust, by bindgen.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    clippy::undocumented_unsafe_blocks,
    clippy::type_complexity
)]

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
