//! `eval merge`: joins the parts of a run.

use anyhow::bail;
use stepflow::eval::{Folder, Run, folder};

use super::args::MergeArgs;
use super::conclude;
use crate::cli::exit;

/// Runs the command.
pub fn run(args: &MergeArgs) -> anyhow::Result<u8> {
    let mut whole: Option<Run> = None;
    let mut samples = Vec::new();
    for path in &args.folders {
        let part = folder::read_run(path)?;
        if let Some(difference) = whole.as_ref().and_then(|whole| whole.difference(&part)) {
            bail!("{} is part of another run ({difference})", path.display());
        }
        samples.extend(folder::read_samples(&path.join("samples.jsonl"))?.0);
        whole.get_or_insert(Run { shard: (0, 1), ..part });
    }
    let Some(whole) = whole else { bail!("nothing to merge") };
    samples.sort_by(|a, b| a.key().cmp(&b.key()));
    if let Some(pair) = samples.windows(2).find(|pair| pair[0].key() == pair[1].key()) {
        bail!("sample {} of {} by {} is in two parts", pair[0].sample, pair[0].problem, pair[0].arm);
    }
    let expected = whole.n_problems * whole.arms.len() * whole.samples;
    if samples.len() < expected {
        let n = samples.len();
        bail!("{n} of {expected} samples are in these parts; name all shards, and finish each with --resume first");
    }
    let (mut folder, _) = Folder::open(&args.output, &whole, false)?;
    samples.iter().try_for_each(|sample| folder.add(sample))?;
    conclude(&folder, &whole, &samples, args.json)?;
    Ok(exit::OK)
}
