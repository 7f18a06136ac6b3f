//! src/kernels/metal.rs alone.
#![allow(dead_code, reason = "what calls it is not here")]

#[path = "../../../src/kernels/ffi.rs"]
mod ffi;
#[path = "../../../src/kernels/metal.rs"]
mod metal;
