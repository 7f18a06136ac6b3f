//! Binds the kernels' interface and builds the CUDA kernels.

mod bind_kernels;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    bind_kernels::bind("kernels");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        build_cuda();
    }
}

/// For every architecture that the compiler knows.
fn build_cuda() {
    println!("cargo:rerun-if-changed=kernels/cuda");
    let sources = ["device", "attend", "oeb", "smi", "probe"].map(|name| format!("kernels/cuda/{name}.cu"));
    cc::Build::new().cuda(true).cudart("static").flag("-arch=all-major").files(sources).compile("stepflow-cuda");
}
