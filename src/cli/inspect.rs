//! x
pub fn run(_: &super::args::InspectArgs) -> anyhow::Result<u8> {
    anyhow::bail!("x")
}
