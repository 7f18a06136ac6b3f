//! Tells the program which llama.cpp it is built with, and builds the way to what that offers in C++ alone.

#[path = "build/llama_sources.rs"]
mod llama_sources;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    llama_version();
    build_shims();
    if std::env::var_os("CARGO_FEATURE_DYNAMIC_BACKENDS").is_some() {
        // The program finds llama.cpp's libraries beside itself.
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN");
    }
}

fn llama_version() {
    println!("cargo:rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let mut lines = lock.lines().skip_while(|line| *line != "name = \"llama-cpp-sys-2\"");
    let version = lines.nth(1).and_then(|line| line.split('"').nth(1)).unwrap_or("unknown");
    println!("cargo:rustc-env=LLAMA_CPP_SYS_VERSION={version}");
}

/// What llama.cpp offers in C++ alone: its common library, which llama-cpp-sys-2 links, and its staging interface.
fn build_shims() {
    let sources = ["src/llama/chat/shim.cpp", "src/llama/memory.cpp"];
    sources.iter().for_each(|source| println!("cargo:rerun-if-changed={source}"));
    let llama = llama_sources::llama_sources();
    // For tests that build another program of the same llama.cpp.
    println!("cargo:rustc-env=LLAMA_SOURCES={}", llama.display());
    let root = std::env::var("DEP_LLAMA_ROOT").unwrap_or_default();
    println!("cargo:rustc-env=LLAMA_BUILD={root}");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(true).extra_warnings(true).files(sources);
    for folder in ["common", "include", "src", "ggml/include", "vendor"] {
        // Their warnings are not ours.
        build.flag("-isystem").flag(llama.join(folder));
    }
    // llama-cpp-sys-2 links the C++ library, behind this one.
    build.cpp_link_stdlib(None).compile("stepflow-shims");
}
