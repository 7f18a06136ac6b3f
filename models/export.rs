//! Writes the trained model as GGUF: `export-model MODEL.safetensors TOKENIZER.json OUT.gguf [--type q8_0|f32]`.

mod q8_0;
mod safetensors;
mod tokens;

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use safetensors::Safetensors;
use serde::Deserialize;
use stepflow::gguf::{GgmlType, GgufWriter};

/// Writes the model of models/train.py as GGUF.
#[derive(Parser)]
struct Args {
    model: PathBuf,
    tokenizer: PathBuf,
    out: PathBuf,
    /// Type of the matrices; the rest is F32.
    #[arg(long = "type", default_value = "q8_0")]
    ty: MatrixType,
}

#[derive(Clone, Copy, ValueEnum)]
enum MatrixType {
    #[value(name = "q8_0")]
    Q8_0,
    F32,
}

/// `CONFIG` of models/train.py.
#[derive(Deserialize)]
struct Config {
    vocabulary: u32,
    layers: u32,
    width: u32,
    heads: u32,
    kv_heads: u32,
    hidden: u32,
    rope_base: f32,
    norm_epsilon: f32,
    context: u32,
}

/// The tensors of a layer, by their names there and here.
const LAYER: [(&str, &str); 12] = [
    ("attention_norm.weight", "attn_norm.weight"),
    ("attention.q.weight", "attn_q.weight"),
    ("attention.q.bias", "attn_q.bias"),
    ("attention.k.weight", "attn_k.weight"),
    ("attention.k.bias", "attn_k.bias"),
    ("attention.v.weight", "attn_v.weight"),
    ("attention.v.bias", "attn_v.bias"),
    ("attention.output.weight", "attn_output.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    ("gate.weight", "ffn_gate.weight"),
    ("up.weight", "ffn_up.weight"),
    ("down.weight", "ffn_down.weight"),
];

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let model = Safetensors::read(&args.model)?;
    let config: Config = serde_json::from_str(model.metadata("config")?).context("metadata `config`")?;
    let mut out = GgufWriter::new();
    metadata(&config, args.ty, &mut out)?;
    tokens::write(&args.tokenizer, config.vocabulary, &mut out)?;
    tensors(&model, config.layers, args.ty, &mut out)?;
    save(out, &args.out)
}

fn metadata(config: &Config, ty: MatrixType, out: &mut GgufWriter) -> anyhow::Result<()> {
    // Numbers of llama.cpp: a file that is mostly of this type.
    let file_type = match ty {
        MatrixType::F32 => 0_u32,
        MatrixType::Q8_0 => 7,
    };
    out.metadata("general.architecture", "qwen2")?;
    out.metadata("general.name", "StepFlow Reasoner")?;
    out.metadata("general.license", "MIT OR Apache-2.0")?;
    out.metadata("general.file_type", file_type)?;
    out.metadata("general.quantization_version", 2_u32)?;
    // Greedy: each step of a calculation has one right continuation.
    out.metadata("general.sampling.temp", 0_f32)?;
    out.metadata("qwen2.block_count", config.layers)?;
    out.metadata("qwen2.context_length", config.context)?;
    out.metadata("qwen2.embedding_length", config.width)?;
    out.metadata("qwen2.feed_forward_length", config.hidden)?;
    out.metadata("qwen2.attention.head_count", config.heads)?;
    out.metadata("qwen2.attention.head_count_kv", config.kv_heads)?;
    out.metadata("qwen2.attention.layer_norm_rms_epsilon", config.norm_epsilon)?;
    out.metadata("qwen2.rope.freq_base", config.rope_base)?;
    Ok(())
}

/// Embeddings are tied: without `output.weight` llama.cpp takes `token_embd.weight` at both ends.
fn tensors(model: &Safetensors, layers: u32, ty: MatrixType, out: &mut GgufWriter) -> anyhow::Result<()> {
    let ends = [("embedding.weight", "token_embd.weight"), ("norm.weight", "output_norm.weight")];
    let mut names: Vec<(String, String)> = ends.map(|(from, to)| (from.to_owned(), to.to_owned())).to_vec();
    for layer in 0..layers {
        names.extend(LAYER.iter().map(|(from, to)| (format!("layers.{layer}.{from}"), format!("blk.{layer}.{to}"))));
    }
    ensure!(names.len() == model.len(), "expected {} tensors, found {}", names.len(), model.len());
    for (from, to) in &names {
        let (shape, values) = model.tensor(from)?;
        // GGUF begins with the length of a row.
        let dims: Vec<u64> = shape.iter().rev().copied().collect();
        let (ty, data) = match ty {
            MatrixType::Q8_0 if dims.len() == 2 => (GgmlType::Q8_0, q8_0::quantize(&values)),
            _ => (GgmlType::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        };
        out.tensor(to, &dims, ty, data)?;
    }
    Ok(())
}

/// Beside first: the program that is being built may be reading the file.
fn save(out: GgufWriter, path: &Path) -> anyhow::Result<()> {
    let beside = path.with_extension("tmp");
    let file = std::fs::File::create(&beside).with_context(|| beside.display().to_string())?;
    out.finish(BufWriter::new(file))?;
    std::fs::rename(&beside, path).with_context(|| path.display().to_string())
}
