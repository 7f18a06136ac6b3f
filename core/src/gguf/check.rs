//! What must hold for llama.cpp to load a file or report its fault.
//!
//! Most faults make llama.cpp's loader fail with a message, and those are left to it. The ones here would end the
//! process instead: at loading, when a context is made, or at the first token.

use std::collections::HashMap;

use super::{GgmlType, Gguf, GgufError, Value, metadata_error, shown, tensor_error};

/// Fixed sizes of tables in llama.cpp.
const MAX_LAYERS: u64 = 512;
const MAX_EXPERTS: u64 = 1024;

/// Most positions; llama.cpp counts them in 32 bits with a sign.
const MAX_CONTEXT: u64 = i32::MAX as u64;

/// Architectures whose graph asserts that keys, values and the rotated part all have the full size of a head.
const PLAIN_HEADS: [&str; 9] =
    ["llama", "mistral3", "smollm3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "seed_oss", "gpt-oss"];

/// Tensors that are multiplied with, and so need a type that has a kernel.
const MATRICES: [&str; 14] = [
    "token_embd",
    "output",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
];

impl Gguf {
    /// Checks everything that llama.cpp takes for granted. Whether it knows the architecture is left to llama.cpp.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] or [`GgufError::Tensor`] names the first contradiction.
    pub fn check_loadable(&self) -> Result<(), GgufError> {
        self.check_tensor_types()?;
        if self.is_later_part()? {
            return Ok(());
        }
        self.check_sizes()?;
        self.check_experts()?;
        self.check_heads()?;
        self.check_sliding_window()?;
        self.check_numerics()?;
        self.check_vocabulary()?;
        self.check_special_tokens()
    }

    /// Whether this is a part other than the first of a model in several files; only the first describes the model.
    fn is_later_part(&self) -> Result<bool, GgufError> {
        match self.get("split.no") {
            None => Ok(false),
            Some(Value::U16(number)) => Ok(*number > 0),
            Some(other) => Err(metadata_error("split.no", format!("expected a u16, found {other}"))),
        }
    }

    fn check_tensor_types(&self) -> Result<(), GgufError> {
        for tensor in self.tensors() {
            let name = tensor.name.as_str();
            let added = name.ends_with("norm.weight") || name.ends_with(".bias") || name.ends_with("attn_sinks.weight");
            if added && tensor.ty != GgmlType::F32 {
                return Err(tensor_error(name, format!("expected type F32, found {:?}", tensor.ty)));
            }
            let stem = name.strip_suffix(".weight").map(|stem| stem.rsplit('.').next().unwrap_or(stem));
            if stem.is_some_and(|stem| MATRICES.contains(&stem)) && !tensor.ty.is_weight() {
                return Err(tensor_error(name, format!("expected a type of weights, found {:?}", tensor.ty)));
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), GgufError> {
        let Some(architecture) = self.architecture() else {
            return Err(metadata_error("general.architecture", "expected the name of an architecture, found none"));
        };
        if architecture.is_empty() {
            return Err(metadata_error("general.architecture", "expected the name of an architecture, found none"));
        }
        self.required("context_length", MAX_CONTEXT)?;
        self.required("embedding_length", MAX_CONTEXT)?;
        let layers = self.required("block_count", MAX_LAYERS)?;
        // Layers that predict further tokens ahead are counted among the blocks but do not run.
        let ahead = self.arch_u64("nextn_predict_layers").unwrap_or(0);
        if ahead >= layers {
            return Err(self.arch_error("nextn_predict_layers", format!("expected fewer than {layers}, found {ahead}")));
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<(), GgufError> {
        let experts = self.arch_u64("expert_count").unwrap_or(0);
        if experts > MAX_EXPERTS {
            return Err(self.arch_error("expert_count", format!("expected at most {MAX_EXPERTS}, found {experts}")));
        }
        let used = self.layers().filter_map(|layer| self.at_layer("expert_used_count", layer)).max().unwrap_or(0);
        if used > experts || (used == 0 && experts > 0) {
            let problem = format!("expected 1 to {experts}, the number of experts, found {used}");
            return Err(self.arch_error("expert_used_count", problem));
        }
        let groups = self.arch_u64("expert_group_count").unwrap_or(0);
        let whole = if experts == 0 { groups == 0 } else { groups < experts };
        if !whole || (groups > 1 && !experts.is_multiple_of(groups)) {
            let problem = format!("expected a divisor of the {experts} experts, found {groups}");
            return Err(self.arch_error("expert_group_count", problem));
        }
        let used = self.arch_u64("expert_group_used_count").unwrap_or(0);
        if groups > 1 && !(1..groups).contains(&used) {
            let problem = format!("expected 1 to {}, found {used}", groups - 1);
            return Err(self.arch_error("expert_group_used_count", problem));
        }
        Ok(())
    }

    fn check_heads(&self) -> Result<(), GgufError> {
        let plain = PLAIN_HEADS.contains(&self.architecture().unwrap_or_default());
        let gemma = self.architecture() == Some("gemma3");
        for layer in self.layers() {
            let heads = self.at_layer("attention.head_count", layer).unwrap_or(0);
            let shared = self.at_layer("attention.head_count_kv", layer).unwrap_or(heads);
            if (plain || gemma) && heads == 0 {
                return Err(self.arch_error("attention.head_count", "expected at least 1, found 0"));
            }
            if (plain || gemma) && shared == 0 || shared > 0 && !heads.is_multiple_of(shared) {
                let problem = format!("expected a divisor of the {heads} heads, found {shared}");
                return Err(self.arch_error("attention.head_count_kv", problem));
            }
        }
        for name in ["rope.dimension_count", "rope.dimension_count_swa"] {
            let rotated = self.arch_u64(name).unwrap_or(0);
            if !rotated.is_multiple_of(2) {
                return Err(self.arch_error(name, format!("expected an even number, found {rotated}")));
            }
        }
        if plain || gemma { self.check_head_sizes(plain) } else { Ok(()) }
    }

    fn check_head_sizes(&self, whole_rotated: bool) -> Result<(), GgufError> {
        let heads = self.at_layer("attention.head_count", 0).unwrap_or(1);
        let embedding = self.arch_u64("embedding_length").unwrap_or(0);
        let size = self.arch_u64("attention.key_length").unwrap_or(embedding / heads);
        if size == 0 || !size.is_multiple_of(2) {
            let problem = format!("expected heads of an even size, found {size}");
            return Err(self.arch_error("attention.key_length", problem));
        }
        for name in ["attention.value_length", "attention.key_length_swa", "attention.value_length_swa"] {
            let found =
                self.arch_u64(name).unwrap_or(if name.ends_with("value_length") { embedding / heads } else { size });
            if found != size {
                return Err(self.arch_error(name, format!("expected {size}, the size of a key, found {found}")));
            }
        }
        for name in ["rope.dimension_count", "rope.dimension_count_swa"] {
            let found = self.arch_u64(name).unwrap_or(size);
            if found > size || whole_rotated && found != size {
                return Err(self.arch_error(name, format!("expected {size}, the size of a head, found {found}")));
            }
        }
        if self.architecture() == Some("qwen2") && heads.checked_mul(size) != Some(embedding) {
            let problem = format!("expected {heads} heads of size {size}, found {embedding}");
            return Err(self.arch_error("embedding_length", problem));
        }
        Ok(())
    }

    /// llama.cpp keeps a second cache for layers with a sliding window and asserts that there are such layers.
    fn check_sliding_window(&self) -> Result<(), GgufError> {
        let window = self.arch_u64("attention.sliding_window");
        if window.is_some_and(|window| window > MAX_CONTEXT) {
            return Err(self.arch_error("attention.sliding_window", format!("expected at most {MAX_CONTEXT}")));
        }
        let windowed = match self.architecture() {
            Some("gpt-oss") => true,
            Some("gemma3") => window.is_some_and(|window| window > 0),
            _ => false,
        };
        if !windowed {
            return Ok(());
        }
        if window == Some(0) {
            return Err(self.arch_error("attention.sliding_window", "expected at least 1, found 0"));
        }
        let any = match self.arch("attention.sliding_window_pattern") {
            Some(Value::Array(pattern)) => self.layers().any(|layer| pattern.u64_at(layer).unwrap_or(0) != 0),
            Some(period) => period.as_u64() != Some(1),
            None => true,
        };
        if !any || self.layers().len() < 2 {
            let problem = "expected at least one layer with a sliding window, found none";
            return Err(self.arch_error("attention.sliding_window_pattern", problem));
        }
        Ok(())
    }

    fn check_numerics(&self) -> Result<(), GgufError> {
        for name in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon"]
        {
            let epsilon = self.arch(name).and_then(Value::as_f64).unwrap_or(0.0);
            if !(0.0..f64::INFINITY).contains(&epsilon) {
                return Err(self.arch_error(name, format!("expected a small positive number, found {epsilon}")));
            }
        }
        let scaling = self.arch("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
        if !["none", "linear", "yarn", "longrope"].contains(&scaling) {
            let problem = format!("expected none, linear, yarn or longrope, found \"{}\"", shown(scaling));
            return Err(self.arch_error("rope.scaling.type", problem));
        }
        Ok(())
    }

    fn check_vocabulary(&self) -> Result<(), GgufError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = self.tokens().filter(|tokens| !tokens.is_empty());
        let tokens = tokens.ok_or_else(|| metadata_error(key, "expected a list of tokens, found none"))?;
        let model = self.str("tokenizer.ggml.model").unwrap_or("none");
        if model == "none" || model == "no_vocab" {
            return Err(metadata_error("tokenizer.ggml.model", "expected a tokenizer, found none"));
        }
        let mut seen = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            // llama.cpp gives empty tokens this name, which another token could have.
            let name = if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
            let shown = shown(&name).to_string();
            if let Some(first) = seen.insert(name, id) {
                let problem = format!("expected each token once, found \"{shown}\" twice, as token {first} and {id}");
                return Err(metadata_error(key, problem));
            }
        }
        for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
            if let Some(Value::Array(array)) = self.get(key)
                && array.len() < tokens.len()
            {
                let problem = format!("expected {} elements, one for each token, found {}", tokens.len(), array.len());
                return Err(metadata_error(key, problem));
            }
        }
        if model == "llama" { check_byte_tokens(&seen) } else { Ok(()) }
    }

    /// A tokenizer that puts a special token around each text aborts if it has none.
    fn check_special_tokens(&self) -> Result<(), GgufError> {
        let tokens = self.tokens().map_or(0, <[String]>::len) as u64;
        let model = self.str("tokenizer.ggml.model").unwrap_or_default();
        let default_bos = match model {
            "llama" => Some(1),
            "gpt2" => Some(11),
            _ => None,
        };
        let default_eos = match model {
            "llama" => Some(2),
            "gpt2" => Some(11),
            "t5" => Some(1),
            _ => None,
        };
        let flag = |key| self.get(key).and_then(Value::as_bool);
        let adds_bos = model == "gemma4" || flag("tokenizer.ggml.add_bos_token").unwrap_or(model == "llama");
        let adds_eos = flag("tokenizer.ggml.add_eos_token").unwrap_or(model == "t5");
        let special = [("bos", adds_bos, default_bos), ("eos", adds_eos, default_eos), ("eot", false, None)];
        for (name, added, default) in special {
            let key = format!("tokenizer.ggml.{name}_token_id");
            // Converters write -1 as an unsigned number for a token that the model does not have.
            let own = self.u64(&key).filter(|id| *id != u64::from(u32::MAX));
            let used = own.or(default.filter(|_| added));
            if added && used.is_none() || used.is_some_and(|id| id >= tokens) {
                let found = used.map_or("none".to_owned(), |id| id.to_string());
                return Err(metadata_error(&key, format!("expected a token id below {tokens}, found {found}")));
            }
        }
        Ok(())
    }

    fn layers(&self) -> std::ops::Range<usize> {
        0..self.arch_u64("block_count").unwrap_or(0).min(MAX_LAYERS) as usize
    }

    /// A value of this architecture that is either the same in all layers or given for each.
    pub fn at_layer(&self, name: &str, layer: usize) -> Option<u64> {
        match self.arch(name)? {
            Value::Array(array) => array.u64_at(layer),
            value => value.as_u64(),
        }
    }

    fn required(&self, name: &str, most: u64) -> Result<u64, GgufError> {
        let found = self.arch(name);
        found.and_then(Value::as_u64).filter(|n| (1..=most).contains(n)).ok_or_else(|| {
            let found = found.map_or("none".to_owned(), Value::to_string);
            self.arch_error(name, format!("expected 1 to {most}, found {found}"))
        })
    }

    fn arch_error(&self, name: &str, problem: impl Into<String>) -> GgufError {
        metadata_error(&format!("{}.{name}", self.architecture().unwrap_or_default()), problem)
    }
}

/// SentencePiece spells text it has no token for in bytes, and llama.cpp aborts on a byte that has no token.
fn check_byte_tokens(tokens: &HashMap<String, usize>) -> Result<(), GgufError> {
    let missing = (0..=255_u8).find(|byte| {
        let as_text = byte.is_ascii().then(|| char::from(*byte).to_string());
        !tokens.contains_key(&format!("<0x{byte:02X}>")) && !as_text.is_some_and(|text| tokens.contains_key(&text))
    });
    match missing {
        None => Ok(()),
        Some(byte) => {
            let problem = format!("expected a token <0x{byte:02X}>, found none");
            Err(metadata_error("tokenizer.ggml.tokens", problem))
        }
    }
}
