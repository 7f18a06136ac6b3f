//! The tensors of a model: names, sizes and types, as published files have them.

use stepflow::gguf::GgmlType;

use super::shape::{Experts, Shape};

/// A tensor to be written.
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// Dimensions, the length of a row first.
    pub dims: Vec<u64>,
    /// What it holds.
    pub content: Content,
}

/// What a tensor holds.
#[derive(Clone, Copy)]
pub enum Content {
    /// Weights in blocks of a quantized type.
    Blocks(GgmlType),
    /// Single numbers of this mean and standard deviation.
    Floats(f32, f32),
}

impl Tensor {
    fn new(name: impl Into<String>, dims: &[u64], content: Content) -> Self {
        Self { name: name.into(), dims: dims.to_vec(), content }
    }

    fn norm(name: &str, length: u64) -> Self {
        Self::new(name, &[length], Content::Floats(1.0, 0.05))
    }

    fn bias(name: &str, dims: &[u64]) -> Self {
        Self::new(name, dims, Content::Floats(0.0, 0.02))
    }

    /// Its type in the file.
    pub fn ty(&self) -> GgmlType {
        match self.content {
            Content::Blocks(ty) => ty,
            Content::Floats(..) => GgmlType::F32,
        }
    }

    /// Size of its data in bytes.
    pub fn bytes(&self) -> u64 {
        self.dims.iter().product::<u64>() / self.ty().block_size() * self.ty().block_bytes()
    }
}

/// All tensors of a model.
pub fn tensors(shape: &Shape) -> Vec<Tensor> {
    let tokens = shape.vocabulary as u64;
    let end = |name: &str| Tensor::new(format!("{name}.weight"), &[shape.embedding, tokens], blocks(shape, name, 0));
    let mut all = vec![end("token_embd"), Tensor::norm("output_norm.weight", shape.embedding), end("output")];
    for layer in 0..shape.layers {
        let mut own = attention(shape, layer);
        own.extend(match shape.experts {
            None => feed_forward(shape, layer),
            Some(experts) => expert_networks(shape, experts, layer),
        });
        all.extend(own.into_iter().map(|tensor| Tensor { name: format!("blk.{layer}.{}", tensor.name), ..tensor }));
    }
    all
}

fn attention(shape: &Shape, layer: u32) -> Vec<Tensor> {
    let (queries, keys) = (shape.heads * shape.head, shape.kv_heads * shape.head);
    let mut tensors = vec![Tensor::norm("attn_norm.weight", shape.embedding)];
    for (name, columns, rows) in [
        ("attn_q", shape.embedding, queries),
        ("attn_k", shape.embedding, keys),
        ("attn_v", shape.embedding, keys),
        ("attn_output", queries, shape.embedding),
    ] {
        tensors.push(Tensor::new(format!("{name}.weight"), &[columns, rows], blocks(shape, name, layer)));
        if name != "attn_output" || shape.experts.is_some() {
            tensors.push(Tensor::bias(&format!("{name}.bias"), &[rows]));
        }
    }
    if shape.experts.is_some() {
        tensors.push(Tensor::new("attn_sinks.weight", &[shape.heads], Content::Floats(0.0, 1.0)));
    }
    tensors
}

fn feed_forward(shape: &Shape, layer: u32) -> Vec<Tensor> {
    let (narrow, wide) = (shape.embedding, shape.feed_forward);
    let matrix =
        |name: &str, columns, rows| Tensor::new(format!("{name}.weight"), &[columns, rows], blocks(shape, name, layer));
    vec![
        Tensor::norm("ffn_norm.weight", narrow),
        matrix("ffn_gate", narrow, wide),
        matrix("ffn_up", narrow, wide),
        matrix("ffn_down", wide, narrow),
    ]
}

fn expert_networks(shape: &Shape, experts: Experts, layer: u32) -> Vec<Tensor> {
    let (narrow, wide) = (shape.embedding, shape.feed_forward);
    let mut tensors = vec![
        Tensor::norm("post_attention_norm.weight", narrow),
        Tensor::new("ffn_gate_inp.weight", &[narrow, experts.count], Content::Floats(0.0, 0.02)),
        Tensor::bias("ffn_gate_inp.bias", &[experts.count]),
    ];
    for (name, columns, rows) in
        [("ffn_gate_exps", narrow, wide), ("ffn_up_exps", narrow, wide), ("ffn_down_exps", wide, narrow)]
    {
        let content = blocks(shape, name, layer);
        tensors.push(Tensor::new(format!("{name}.weight"), &[columns, rows, experts.count], content));
        tensors.push(Tensor::bias(&format!("{name}.bias"), &[rows, experts.count]));
    }
    tensors
}

/// The type of a matrix: Q4_K_M by the rules of llama-quantize, and GPT-OSS as it is converted, its experts in the
/// MXFP4 that it was trained in.
fn blocks(shape: &Shape, name: &str, layer: u32) -> Content {
    let precise = match name {
        "output" => true,
        "attn_v" | "ffn_down" => more_bits(layer, shape.layers),
        _ => false,
    };
    Content::Blocks(match shape.experts {
        Some(_) if name.ends_with("_exps") => GgmlType::MXFP4,
        Some(_) => GgmlType::Q8_0,
        None if precise => GgmlType::Q6_K,
        None => GgmlType::Q4_K,
    })
}

/// Whether Q4_K_M gives this layer more bits: the first eighth, the last, and every third layer between.
fn more_bits(layer: u32, layers: u32) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
