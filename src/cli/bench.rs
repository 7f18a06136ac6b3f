//! x
pub fn run(_: &super::args::BenchArgs) -> anyhow::Result<u8> {
    anyhow::bail!("x")
}
