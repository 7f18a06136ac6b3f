//! The shapes of published models, and the metadata that says them.

use clap::ValueEnum;
use stepflow::gguf::{GgufError, GgufWriter, Value};

/// Most positions of each of the models.
const CONTEXT: u32 = 131_072;

/// GPT-OSS was trained on texts of this length and stretched by YaRN to [`CONTEXT`].
const UNSTRETCHED: u32 = 4096;

/// Positions that every other layer of GPT-OSS sees.
const SLIDING_WINDOW: u32 = 128;

/// Models whose shapes are known here.
#[derive(Clone, Copy, ValueEnum)]
pub enum Published {
    #[value(name = "qwq-32b")]
    Qwq32B,
    #[value(name = "r1-distill-7b")]
    R1Distill7B,
    #[value(name = "gpt-oss-20b")]
    GptOss20B,
}

/// The sizes of a model, by the names of its configuration.
pub struct Shape {
    pub name: &'static str,
    pub layers: u32,
    pub embedding: u64,
    pub feed_forward: u64,
    pub heads: u64,
    pub kv_heads: u64,
    /// Size of a head.
    pub head: u64,
    pub rope_base: f32,
    pub norm_epsilon: f32,
    /// Tokens.
    pub vocabulary: usize,
    /// GPT-OSS has them, and Qwen2 none.
    pub experts: Option<Experts>,
}

/// Feed-forward networks side by side, of which a token takes some.
#[derive(Clone, Copy)]
pub struct Experts {
    pub count: u64,
    pub used: u32,
}

impl Published {
    /// As the model's own `config.json` has it.
    pub fn shape(self) -> Shape {
        match self {
            Self::Qwq32B => Shape {
                name: "QwQ 32B",
                layers: 64,
                embedding: 5120,
                feed_forward: 27_648,
                heads: 40,
                kv_heads: 8,
                head: 128,
                rope_base: 1e6,
                norm_epsilon: 1e-5,
                vocabulary: 152_064,
                experts: None,
            },
            Self::R1Distill7B => Shape {
                name: "DeepSeek R1 Distill Qwen 7B",
                layers: 28,
                embedding: 3584,
                feed_forward: 18_944,
                heads: 28,
                kv_heads: 4,
                head: 128,
                rope_base: 1e4,
                norm_epsilon: 1e-6,
                vocabulary: 152_064,
                experts: None,
            },
            Self::GptOss20B => Shape {
                name: "GPT-OSS 20B",
                layers: 24,
                embedding: 2880,
                feed_forward: 2880,
                heads: 64,
                kv_heads: 8,
                head: 64,
                rope_base: 150_000.0,
                norm_epsilon: 1e-5,
                vocabulary: 201_088,
                experts: Some(Experts { count: 32, used: 4 }),
            },
        }
    }
}

impl Shape {
    /// llama.cpp's name of the architecture.
    pub fn architecture(&self) -> &'static str {
        if self.experts.is_some() { "gpt-oss" } else { "qwen2" }
    }

    /// Writes everything but the vocabulary.
    pub fn metadata(&self, out: &mut GgufWriter) -> Result<(), GgufError> {
        // Numbers of llama.cpp: mostly MXFP4, mostly Q4_K.
        let file_type = if self.experts.is_some() { 38_u32 } else { 15 };
        out.metadata("general.architecture", self.architecture())?;
        out.metadata("general.name", format!("{}, random weights", self.name))?;
        out.metadata("general.file_type", file_type)?;
        out.metadata("general.quantization_version", 2_u32)?;
        let mut set = |name: &str, value: Value| out.metadata(&format!("{}.{name}", self.architecture()), value);
        set("block_count", self.layers.into())?;
        set("context_length", CONTEXT.into())?;
        set("embedding_length", (self.embedding as u32).into())?;
        set("feed_forward_length", (self.feed_forward as u32).into())?;
        set("attention.head_count", (self.heads as u32).into())?;
        set("attention.head_count_kv", (self.kv_heads as u32).into())?;
        set("attention.layer_norm_rms_epsilon", self.norm_epsilon.into())?;
        set("rope.freq_base", self.rope_base.into())?;
        let Some(experts) = self.experts else { return Ok(()) };
        set("attention.key_length", (self.head as u32).into())?;
        set("attention.value_length", (self.head as u32).into())?;
        set("attention.sliding_window", SLIDING_WINDOW.into())?;
        set("expert_count", (experts.count as u32).into())?;
        set("expert_used_count", experts.used.into())?;
        set("expert_feed_forward_length", (self.feed_forward as u32).into())?;
        set("rope.scaling.type", "yarn".into())?;
        set("rope.scaling.factor", ((CONTEXT / UNSTRETCHED) as f32).into())?;
        set("rope.scaling.original_context_length", UNSTRETCHED.into())
    }
}
