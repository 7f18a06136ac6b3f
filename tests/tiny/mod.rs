//! Tiny models with random weights, made on the spot: every architecture the tests need, in every weight type.
//!
//! Eight layers, so that a quarter of them is two; rows of 256, so that K-quants fit; two heads share one key.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod dequantize;
mod vocabulary;

use std::path::{Path, PathBuf};

use stepflow::gguf::{GgmlType, GgufWriter, Value};

const LAYERS: u32 = 8;
const EMBEDDING: u64 = 256;
const HEADS: u64 = 4;
const HEADS_KV: u64 = 2;
const HEAD: u64 = 64;
/// Of latent attention: what keys and values are kept as, and what of a key is rotated beside it.
const LATENT: u64 = 128;
const ROTATED: u64 = 32;
const FEED_FORWARD: u64 = 256;
const EXPERTS: u64 = 4;
const EXPERTS_USED: u32 = 2;

/// Small, so that the window matters in short texts.
const SLIDING_WINDOW: u32 = 8;

const SSM_KERNEL: u64 = 4;
const SSM_STATE: u64 = 16;
const SSM_RANK: u64 = 16;

/// Part of the name of the cached files; raise it when anything written changes.
const EDITION: u32 = 3;

/// Architectures of tiny models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    GptOss,
    Gemma3,
    /// With bounds of logits, of attention and at the end.
    Gemma2,
    /// With experts.
    Qwen3Moe,
    /// Llama with experts.
    Mixtral,
    /// Latent attention: values are a part of the keys.
    Deepseek2,
    /// The same weights, and an indexer that sees every cell: the graph computes a mask that is Deepseek2's.
    Deepseek32,
    /// Recurrent: there is no attention to hook.
    Mamba,
}

impl Arch {
    /// Those with attention of the usual kind.
    pub const ALL: [Arch; 5] = [Arch::Llama, Arch::Qwen2, Arch::Qwen3, Arch::GptOss, Arch::Gemma3];

    /// And others like them, whose layers have something of their own.
    pub const MORE: [Arch; 3] = [Arch::Gemma2, Arch::Qwen3Moe, Arch::Mixtral];

    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama | Arch::Mixtral => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::GptOss => "gpt-oss",
            Arch::Gemma3 => "gemma3",
            Arch::Gemma2 => "gemma2",
            Arch::Qwen3Moe => "qwen3moe",
            Arch::Deepseek2 => "deepseek2",
            Arch::Deepseek32 => "deepseek32",
            Arch::Mamba => "mamba",
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Arch::Gemma2 | Arch::Gemma3)
    }

    fn has_experts(self) -> bool {
        matches!(self, Arch::GptOss | Arch::Qwen3Moe | Arch::Mixtral)
    }

    fn is_latent(self) -> bool {
        matches!(self, Arch::Deepseek2 | Arch::Deepseek32)
    }
}

/// Types of the matrices of tiny models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    F32,
    F16,
    Q8_0,
    Q4_0,
    Q4K,
}

impl WeightType {
    pub const ALL: [WeightType; 5] =
        [WeightType::F32, WeightType::F16, WeightType::Q8_0, WeightType::Q4_0, WeightType::Q4K];

    fn ggml(self) -> GgmlType {
        match self {
            WeightType::F32 => GgmlType::F32,
            WeightType::F16 => GgmlType::F16,
            WeightType::Q8_0 => GgmlType::Q8_0,
            WeightType::Q4_0 => GgmlType::Q4_0,
            WeightType::Q4K => GgmlType::Q4_K,
        }
    }

    /// llama.cpp's number for a file that is mostly of this type.
    fn file_type(self) -> u32 {
        match self {
            WeightType::F32 => 0,
            WeightType::F16 => 1,
            WeightType::Q4_0 => 2,
            WeightType::Q8_0 => 7,
            WeightType::Q4K => 14,
        }
    }
}

/// The tiny model of this architecture and type, written once and kept between runs.
pub fn tiny(arch: Arch, ty: WeightType) -> PathBuf {
    cached(&format!("tiny-{EDITION}-{arch:?}-{ty:?}.gguf"), |path| write_tiny(arch, ty, path))
}

/// Writes a tiny model; the same architecture and type give the same bytes.
pub fn write_tiny(arch: Arch, ty: WeightType, path: &Path) {
    let mut model = Model { arch, ty, out: GgufWriter::new() };
    model.metadata();
    vocabulary::write(arch, &mut model.out);
    model.tensors();
    let file = std::fs::File::create(path).unwrap();
    model.out.finish(std::io::BufWriter::new(file)).unwrap();
}

/// A file beside the build, or where there is no build any more in the system's temporary folder; written under another name first: tests run side by side, and may be stopped.
fn cached(name: &str, write: impl FnOnce(&Path)) -> PathBuf {
    let build = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let folder = if build.is_dir() { build } else { std::env::temp_dir() };
    let path = folder.join(name);
    if !path.exists() {
        let beside = tempfile::NamedTempFile::new_in(&folder).unwrap();
        write(beside.path());
        beside.persist(&path).unwrap();
    }
    path
}

struct Model {
    arch: Arch,
    ty: WeightType,
    out: GgufWriter<'static>,
}

impl Model {
    fn metadata(&mut self) {
        if self.arch == Arch::Mamba {
            return self.recurrent_metadata();
        }
        self.set("general.architecture", self.arch.name());
        self.set("general.name", format!("tiny {}", self.arch.name()));
        self.set("general.file_type", self.ty.file_type());
        self.arch("context_length", 2048_u32);
        self.arch("embedding_length", EMBEDDING as u32);
        self.arch("block_count", LAYERS);
        self.arch("feed_forward_length", FEED_FORWARD as u32);
        self.arch("attention.head_count", HEADS as u32);
        if !self.arch.is_latent() {
            self.arch("attention.head_count_kv", HEADS_KV as u32);
            self.arch("attention.key_length", HEAD as u32);
            self.arch("attention.value_length", HEAD as u32);
            self.arch("rope.dimension_count", HEAD as u32);
        }
        self.arch("attention.layer_norm_rms_epsilon", 1e-6_f32);
        self.arch("rope.freq_base", 10000_f32);
        if self.arch.is_gemma() || self.arch == Arch::GptOss {
            self.arch("attention.sliding_window", SLIDING_WINDOW);
        }
        if self.arch == Arch::Gemma2 {
            self.arch("attn_logit_softcapping", 2_f32);
            self.arch("final_logit_softcapping", 5_f32);
        }
        if self.arch.is_latent() {
            return self.latent_metadata();
        }
        if self.arch.has_experts() {
            self.arch("expert_count", EXPERTS as u32);
            self.arch("expert_used_count", EXPERTS_USED);
            self.arch("expert_feed_forward_length", FEED_FORWARD as u32);
        }
    }

    fn tensors(&mut self) {
        let tokens = vocabulary::tokens(self.arch).len() as u64;
        self.matrix("token_embd.weight", &[EMBEDDING, tokens]);
        if !self.arch.is_gemma() {
            self.matrix("output.weight", &[EMBEDDING, tokens]);
        }
        self.norm("output_norm.weight", EMBEDDING);
        for layer in 0..LAYERS {
            if self.arch == Arch::Mamba {
                self.recurrence(layer);
                continue;
            }
            if self.arch.is_latent() {
                self.latent_attention(layer)
            } else {
                self.attention(layer)
            }
            if self.arch.has_experts() { self.experts(layer) } else { self.feed_forward(layer) }
        }
    }

    fn latent_metadata(&mut self) {
        self.arch("attention.head_count_kv", 1_u32);
        self.arch("attention.key_length", (LATENT + ROTATED) as u32);
        self.arch("attention.value_length", LATENT as u32);
        self.arch("attention.key_length_mla", HEAD as u32);
        self.arch("attention.value_length_mla", HEAD as u32);
        self.arch("attention.q_lora_rank", LATENT as u32);
        self.arch("attention.kv_lora_rank", LATENT as u32);
        self.arch("rope.dimension_count", ROTATED as u32);
        self.arch("leading_dense_block_count", LAYERS);
        self.arch("expert_feed_forward_length", FEED_FORWARD as u32);
        self.arch("expert_shared_count", 1_u32);
        self.arch("expert_gating_func", 2_u32);
        if self.arch == Arch::Deepseek32 {
            self.arch("attention.indexer.head_count", 2_u32);
            self.arch("attention.indexer.key_length", HEAD as u32);
            self.arch("attention.indexer.top_k", 4096_u32);
        }
    }

    fn latent_attention(&mut self, layer: u32) {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        self.norm(&name("attn_norm.weight"), EMBEDDING);
        self.norm(&name("attn_q_a_norm.weight"), LATENT);
        self.norm(&name("attn_kv_a_norm.weight"), LATENT);
        self.matrix(&name("attn_q_a.weight"), &[EMBEDDING, LATENT]);
        self.matrix(&name("attn_q_b.weight"), &[LATENT, HEADS * HEAD]);
        self.matrix(&name("attn_kv_a_mqa.weight"), &[EMBEDDING, LATENT + ROTATED]);
        self.matrix(&name("attn_k_b.weight"), &[HEAD - ROTATED, LATENT, HEADS]);
        self.matrix(&name("attn_v_b.weight"), &[LATENT, HEAD, HEADS]);
        self.matrix(&name("attn_output.weight"), &[HEADS * HEAD, EMBEDDING]);
        if self.arch == Arch::Deepseek32 {
            self.norm(&name("indexer.k_norm.weight"), HEAD);
            self.bias(&name("indexer.k_norm.bias"), &[HEAD]);
            self.matrix(&name("indexer.proj.weight"), &[EMBEDDING, 2]);
            self.matrix(&name("indexer.attn_k.weight"), &[EMBEDDING, HEAD]);
            self.matrix(&name("indexer.attn_q_b.weight"), &[LATENT, 2 * HEAD]);
        }
    }

    fn recurrent_metadata(&mut self) {
        self.set("general.architecture", self.arch.name());
        self.set("general.file_type", self.ty.file_type());
        self.arch("context_length", 2048_u32);
        self.arch("embedding_length", EMBEDDING as u32);
        self.arch("block_count", LAYERS);
        self.arch("feed_forward_length", 0_u32);
        self.arch("attention.head_count", 0_u32);
        self.arch("attention.layer_norm_rms_epsilon", 1e-6_f32);
        self.arch("ssm.conv_kernel", SSM_KERNEL as u32);
        self.arch("ssm.inner_size", 2 * EMBEDDING as u32);
        self.arch("ssm.state_size", SSM_STATE as u32);
        self.arch("ssm.time_step_rank", SSM_RANK as u32);
    }

    fn recurrence(&mut self, layer: u32) {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        let inner = 2 * EMBEDDING;
        self.norm(&name("attn_norm.weight"), EMBEDDING);
        self.matrix(&name("ssm_in.weight"), &[EMBEDDING, 2 * inner]);
        self.floats(&name("ssm_conv1d.weight"), &[SSM_KERNEL, inner], 0.0, 0.5);
        self.bias(&name("ssm_conv1d.bias"), &[inner]);
        self.matrix(&name("ssm_x.weight"), &[inner, SSM_RANK + 2 * SSM_STATE]);
        self.floats(&name("ssm_dt.weight"), &[SSM_RANK, inner], 0.0, 0.1);
        self.bias(&name("ssm_dt.bias"), &[inner]);
        self.floats(&name("ssm_a"), &[SSM_STATE, inner], -1.0, 0.1);
        self.floats(&name("ssm_d"), &[inner], 1.0, 0.1);
        self.matrix(&name("ssm_out.weight"), &[inner, EMBEDDING]);
    }

    fn attention(&mut self, layer: u32) {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        self.norm(&name("attn_norm.weight"), EMBEDDING);
        for (stem, rows) in [("attn_q", HEADS * HEAD), ("attn_k", HEADS_KV * HEAD), ("attn_v", HEADS_KV * HEAD)] {
            self.matrix(&name(&format!("{stem}.weight")), &[EMBEDDING, rows]);
            if matches!(self.arch, Arch::Qwen2 | Arch::GptOss) {
                self.bias(&name(&format!("{stem}.bias")), &[rows]);
            }
        }
        self.matrix(&name("attn_output.weight"), &[HEADS * HEAD, EMBEDDING]);
        if matches!(self.arch, Arch::Qwen3 | Arch::Qwen3Moe | Arch::Gemma3) {
            self.norm(&name("attn_q_norm.weight"), HEAD);
            self.norm(&name("attn_k_norm.weight"), HEAD);
        }
        if self.arch.is_gemma() || self.arch == Arch::GptOss {
            self.norm(&name("post_attention_norm.weight"), EMBEDDING);
        }
        if self.arch == Arch::GptOss {
            self.bias(&name("attn_output.bias"), &[EMBEDDING]);
            self.floats(&name("attn_sinks.weight"), &[HEADS], 0.0, 1.0);
        }
    }

    fn feed_forward(&mut self, layer: u32) {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        self.norm(&name("ffn_norm.weight"), EMBEDDING);
        self.matrix(&name("ffn_gate.weight"), &[EMBEDDING, FEED_FORWARD]);
        self.matrix(&name("ffn_up.weight"), &[EMBEDDING, FEED_FORWARD]);
        self.matrix(&name("ffn_down.weight"), &[FEED_FORWARD, EMBEDDING]);
        if self.arch.is_gemma() {
            self.norm(&name("post_ffw_norm.weight"), EMBEDDING);
        }
    }

    fn experts(&mut self, layer: u32) {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        // Real files keep the router in F32 whatever the type of the rest.
        let router = 1.0 / (EMBEDDING as f32).sqrt();
        self.floats(&name("ffn_gate_inp.weight"), &[EMBEDDING, EXPERTS], 0.0, router);
        if self.arch == Arch::GptOss {
            self.bias(&name("ffn_gate_inp.bias"), &[EXPERTS]);
        } else {
            self.norm(&name("ffn_norm.weight"), EMBEDDING);
        }
        for (stem, columns, rows) in [
            ("ffn_gate_exps", EMBEDDING, FEED_FORWARD),
            ("ffn_up_exps", EMBEDDING, FEED_FORWARD),
            ("ffn_down_exps", FEED_FORWARD, EMBEDDING),
        ] {
            self.matrix(&name(&format!("{stem}.weight")), &[columns, rows, EXPERTS]);
            if self.arch == Arch::GptOss {
                self.bias(&name(&format!("{stem}.bias")), &[rows, EXPERTS]);
            }
        }
    }

    /// Scaled so that a product with it keeps the size of its input.
    fn matrix(&mut self, name: &str, dims: &[u64]) {
        let values = self.random(name, dims, 0.0, 1.0 / (dims[0] as f32).sqrt());
        let ty = self.ty.ggml();
        self.out.tensor(name, dims, ty, quantize(&values, dims[0], ty)).unwrap();
    }

    fn norm(&mut self, name: &str, length: u64) {
        self.floats(name, &[length], 1.0, 0.05);
    }

    fn bias(&mut self, name: &str, dims: &[u64]) {
        self.floats(name, dims, 0.0, 0.05);
    }

    fn floats(&mut self, name: &str, dims: &[u64], mean: f32, deviation: f32) {
        let values = self.random(name, dims, mean, deviation);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.out.tensor(name, dims, GgmlType::F32, bytes).unwrap();
    }

    /// Nearly normal numbers: the sum of four uniform ones, the same on every machine. They depend on the names of
    /// architecture and tensor but not on the weight type, so models of different types compare.
    fn random(&self, name: &str, dims: &[u64], mean: f32, deviation: f32) -> Vec<f32> {
        let arch = if self.arch.is_latent() { Arch::Deepseek2 } else { self.arch };
        let mut state = format!("{}/{name}", arch.name())
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut uniform = move || (split_mix(&mut state) >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
        let count: u64 = dims.iter().product();
        // Four uniform numbers of unit width have variance 4/12.
        let scale = deviation * 3_f32.sqrt();
        (0..count).map(|_| mean + scale * (uniform() + uniform() + uniform() + uniform())).collect()
    }

    fn arch(&mut self, name: &str, value: impl Into<Value>) {
        self.set(&format!("{}.{name}", self.arch.name()), value);
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.out.metadata(key, value).unwrap();
    }
}

/// The next number of the SplitMix64 generator (Steele, Lea and Flood, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Stores rows of `columns` values as `ty`.
fn quantize(values: &[f32], columns: u64, ty: GgmlType) -> Vec<u8> {
    let rows = values.len() as u64 / columns;
    let mut bytes = vec![0_u8; (rows * (columns / ty.block_size()) * ty.block_bytes()) as usize];
    // SAFETY: `values` holds `rows` rows of `columns`, `bytes` has room for them in the type, whose sizes the test of
    // types in tests/gguf.rs compares with ggml's, and none of the types used here needs an importance matrix.
    let written = unsafe {
        llama_cpp_sys_2::ggml_quantize_chunk(
            ty as llama_cpp_sys_2::ggml_type,
            values.as_ptr(),
            bytes.as_mut_ptr().cast(),
            0,
            rows as i64,
            columns as i64,
            std::ptr::null(),
        )
    };
    assert_eq!(written, bytes.len());
    bytes
}
