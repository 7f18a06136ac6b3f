//! x
pub struct R;
impl std::str::FromStr for R {
    type Err = anyhow::Error;
    fn from_str(_: &str) -> Result<Self, anyhow::Error> {
        anyhow::bail!("x")
    }
}
pub fn fetch(_: &R, _: Option<&str>, _: bool) -> anyhow::Result<std::path::PathBuf> {
    anyhow::bail!("x")
}
