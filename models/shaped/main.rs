//! Writes a model with the shape of a published one and random weights, to measure speed where the real one cannot be
//! had: `shaped-model qwq-32b|r1-distill-7b|gpt-oss-20b OUT.gguf [--layers N] [--seed S]`.

#[path = "../../core/src/random.rs"]
mod random;
mod shape;
mod tensors;
mod vocabulary;
mod weights;

use std::borrow::Cow;
use std::io::{BufWriter, Error};
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use random::SplitMix64;
use shape::{Published, Shape};
use stepflow::files;
use stepflow::gguf::{GgufError, GgufWriter};
use tensors::{Tensor, tensors};
use weights::Weights;

/// Writes a model with the shape of a published one and random weights.
#[derive(Parser)]
struct Args {
    model: Published,
    out: PathBuf,
    /// Layers, in place of the published model's; GPT-OSS needs two, one with a sliding window and one without.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=512))]
    layers: Option<u32>,
    /// The same seed gives the same file.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut shape = args.model.shape();
    shape.layers = args.layers.unwrap_or(shape.layers);
    let name = args.out.display().to_string();

    let tensors = tensors(&shape);
    let size = tensors.iter().map(Tensor::bytes).sum();
    eprintln!("{name}: {}, {} layers, {} of tensors", shape.name, shape.layers, DecimalBytes(size));
    let mut random = SplitMix64::new(args.seed);
    let weights = Weights::new(&tensors, &mut random);
    let out = model(&shape, &tensors, |tensor| weights.of(tensor, &mut random))?;

    let style = ProgressStyle::with_template("[{wide_bar}] {bytes}/{total_bytes} {eta}")?;
    let bar = ProgressBar::new(size).with_style(style);
    files::write_whole(&args.out, |file| out.finish(BufWriter::new(bar.wrap_write(file))).map_err(Error::other))
        .with_context(|| name.clone())?;
    bar.finish_and_clear();
    eprintln!("{name}: {} written", DecimalBytes(std::fs::metadata(&args.out)?.len()));
    Ok(())
}

/// The whole file, with the data that `data` has for each tensor.
fn model<'a>(
    shape: &Shape,
    tensors: &[Tensor],
    mut data: impl FnMut(&Tensor) -> Cow<'a, [u8]>,
) -> Result<GgufWriter<'a>, GgufError> {
    let mut out = GgufWriter::new();
    shape.metadata(&mut out)?;
    vocabulary::write(shape, &mut out)?;
    for tensor in tensors {
        out.tensor(&tensor.name, &tensor.dims, tensor.ty(), data(tensor))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
