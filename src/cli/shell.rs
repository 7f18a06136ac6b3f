//! What packagers and shells need: version, completions, man page.

use clap::CommandFactory;

use super::command::Cli;
use super::{exit, output};

/// `--version`.
pub fn version() -> anyhow::Result<u8> {
    output::write_result(None, |out| {
        writeln!(out, "stepflow {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "llama.cpp of llama-cpp-sys-2 {}", env!("LLAMA_CPP_SYS_VERSION"))?;
        writeln!(out, "{}", stepflow::llama::system_info())
    })?;
    Ok(exit::OK)
}

/// `completions`.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "stepflow", &mut script);
    output::write_result(None, |out| out.write_all(&script))?;
    Ok(exit::OK)
}

/// `man`.
pub fn man() -> anyhow::Result<u8> {
    output::write_result(None, |out| clap_mangen::Man::new(Cli::command()).render(&mut &mut *out))?;
    Ok(exit::OK)
}
