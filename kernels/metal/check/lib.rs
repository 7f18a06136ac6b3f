//! core/src/kernels/metal.rs alone.
#![allow(dead_code, reason = "what calls it is not here")]

#[path = "../../../core/src/kernels/ffi.rs"]
mod ffi;
#[path = "../../../core/src/kernels/metal.rs"]
mod metal;
