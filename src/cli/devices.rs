//! `--list-devices`.

use stepflow::kernels::{Device, Library, Place};
use stepflow::llama::{DeviceInfo, backends, backends_not_loaded, devices, memory_free as available};
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
            // Of host memory ggml tells the total twice.
            let host = (device.place.backend == "CPU").then(|| available(None)).flatten();
            let (total, free) = (memory_total >> 20, host.map_or(*memory_free, |free| free.min(*memory_total)) >> 20);
            let kernels = kernels_of(device.place);
            writeln!(out, "  {name}: {description} ({total} MiB, {free} MiB free), StepFlow: {kernels}")?;
        }
        Ok(())
    })?;
    backends_not_loaded().iter().for_each(|problem| say!("stepflow: {problem}"));
    Ok(if devices.is_empty() { exit::FAILURE } else { exit::OK })
}

/// What works on data there; of a device with kernels only if it opens.
fn kernels_of(place: Place) -> String {
    let opened = match Library::find(place.backend) {
        _ if place.backend == "CPU" => return Kernels::Fused.name().to_owned(),
        Ok(None) => return Kernels::ReadBack.name().to_owned(),
        Ok(Some(library)) => Device::open(library, place.ordinal).map(|_| ()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match opened {
        Ok(()) => Kernels::of(place.backend).name().to_owned(),
        Err(problem) => format!("{} ({problem})", Kernels::ReadBack.name()),
    }
}
