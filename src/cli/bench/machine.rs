//! What the results say of the machine and the moment.

/// The processor's name; its architecture where the system does not tell.
pub fn cpu_info() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// ggml's backends; the CPU, which is always there, only if it is the only one.
pub fn backends() -> String {
    let mut names: Vec<_> = stepflow::llama::devices().iter().map(|device| device.place.backend).collect();
    names.dedup();
    names.retain(|name| *name != "CPU");
    if names.is_empty() { "CPU".to_owned() } else { names.join(",") }
}

/// Memory of this process that is in RAM, in bytes. `None` where the system does not tell (all but Linux).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_holds_memory() {
        assert!(resident_bytes().unwrap() > 1 << 16);
    }
}
