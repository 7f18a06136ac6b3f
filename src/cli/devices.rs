//! `--list-devices`.

use stepflow::kernels::Library;
use stepflow::llama::{DeviceInfo, backends, backends_not_loaded, devices};
use stepflow::stepflow::Kernels;

use super::{exit, output};

/// Prints the backends, every device in the form of llama.cpp's tools, and what StepFlow works with on it.
pub fn list(verbose: bool) -> anyhow::Result<u8> {
    stepflow::llama::set_verbose(verbose);
    let devices = devices();
    output::write_result(None, |out| {
        match backends().as_slice() {
            [] => writeln!(out, "Backends: none; expected libggml-cpu-* beside the program")?,
            names => writeln!(out, "Backends: {}", names.join(", "))?,
        }
        writeln!(out, "Available devices:")?;
        for device in &devices {
            let DeviceInfo { name, description, memory_total, memory_free, .. } = device;
            let (total, free) = (memory_total >> 20, memory_free >> 20);
            let kernels = kernels_of(device.place.backend);
            writeln!(out, "  {name}: {description} ({total} MiB, {free} MiB free), StepFlow: {kernels}")?;
        }
        Ok(())
    })?;
    backends_not_loaded().iter().for_each(|problem| say!("stepflow: {problem}"));
    Ok(if devices.is_empty() { exit::FAILURE } else { exit::OK })
}

fn kernels_of(backend: &str) -> String {
    match Library::find(backend) {
        _ if backend == "CPU" => Kernels::Host.name().to_owned(),
        Ok(Some(_)) => Kernels::of(backend).name().to_owned(),
        Ok(None) => Kernels::ReadBack.name().to_owned(),
        Err(problem) => format!("{} ({problem})", Kernels::ReadBack.name()),
    }
}
