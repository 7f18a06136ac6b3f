//! kernels/device.h in Rust, as the package's own build script makes it.

#[allow(dead_code)]
#[path = "../../../core/bind_kernels.rs"]
mod bind_kernels;

fn main() {
    bind_kernels::bind("../..");
}
