//! A loaded model: weights, vocabulary and metadata.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;

use crate::gguf::Gguf;

use super::LlamaError;
use super::backend::{backend, take_complaint};
use super::devices::{backends, devices};
use super::stack::on_stack;
use crate::graph::Token;

/// Texts of more bytes are tokenized on a stack of their own: where llama.cpp splits words by std::regex, that recurses
/// over every letter of a word.
const LONG_TEXT: usize = 1 << 10;

/// In bytes. std::regex takes some 380 for a letter.
const STACK_PER_BYTE: usize = 1 << 10;

/// Texts of more bytes are tokenized one at a time, for the stacks of several could take all memory.
const HUGE_TEXT: usize = 1 << 18;
static HUGE_TEXTS: Mutex<()> = Mutex::new(());

/// How to load a model; the defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelParams {
    /// Layers to offload to the GPU; all of them by default.
    pub n_gpu_layers: u32,
    /// Map the file instead of reading it.
    pub mmap: bool,
    /// Keep the weights in RAM.
    pub mlock: bool,
    /// Leave the weights out: what the file says can be asked, but nothing computed.
    pub no_weights: bool,
}

impl Default for ModelParams {
    fn default() -> Self {
        Self { n_gpu_layers: u32::MAX, mmap: true, mlock: false, no_weights: false }
    }
}

/// A model of a GGUF file.
pub struct Model {
    pub(super) inner: LlamaModel,
    /// Creating contexts of one model from two threads at once is unsound in llama.cpp.
    pub(super) creating: Mutex<()>,
    metadata: Gguf,
    path: PathBuf,
    n_gpu_layers: u32,
    has_weights: bool,
}

/// The metadata of a model that can be given to llama.cpp.
///
/// # Errors
/// As [`Model::load`], as far as the metadata tells.
pub fn read(path: &Path) -> Result<Gguf, LlamaError> {
    let invalid = |source| LlamaError::Gguf { path: path.to_owned(), source };
    let metadata = Gguf::open(path).map_err(invalid)?;
    metadata.check_loadable().map_err(invalid)?;
    if backends().is_empty() {
        let reason = "expected a backend of ggml beside the program (libggml-cpu-*), found none".to_owned();
        return Err(LlamaError::Load { path: path.to_owned(), reason });
    }
    Ok(metadata)
}

/// A LoRA adapter, loaded for one model.
pub struct Adapter(pub(super) LlamaLoraAdapter);

impl Model {
    /// Loads the model in `path`, whose metadata is validated first: llama.cpp aborts on some malformed files.
    ///
    /// # Errors
    /// When the file is not a GGUF that llama.cpp can load; the message says why.
    pub fn load(path: &Path, params: &ModelParams) -> Result<Self, LlamaError> {
        Self::load_read(path, read(path)?, params)
    }

    /// The same where [`read`] has read the metadata already.
    ///
    /// # Errors
    /// When llama.cpp cannot load it.
    pub fn load_read(path: &Path, metadata: Gguf, params: &ModelParams) -> Result<Self, LlamaError> {
        let n_gpu_layers = params.n_gpu_layers.min(i32::MAX as u32);
        let raw = LlamaModelParams::default()
            .with_n_gpu_layers(n_gpu_layers)
            .with_use_mmap(params.mmap && !params.no_weights)
            .with_use_mlock(params.mlock && !params.no_weights)
            .with_no_alloc(params.no_weights);
        take_complaint();
        let inner = LlamaModel::load_from_file(backend(), path, &raw).map_err(|error| LlamaError::Load {
            path: path.to_owned(),
            reason: take_complaint().unwrap_or_else(|| error.to_string()),
        })?;
        let has_weights = !params.no_weights;
        Ok(Self { inner, creating: Mutex::new(()), metadata, path: path.to_owned(), n_gpu_layers, has_weights })
    }

    /// Loads a LoRA adapter for this model.
    ///
    /// # Errors
    /// When the file is not an adapter of this model.
    pub fn load_adapter(&mut self, path: &Path) -> Result<Adapter, LlamaError> {
        Gguf::open(path).map_err(|source| LlamaError::Gguf { path: path.to_owned(), source })?;
        take_complaint();
        self.inner.lora_adapter_init(path).map(Adapter).map_err(|error| LlamaError::Adapter {
            path: path.to_owned(),
            reason: take_complaint().unwrap_or_else(|| error.to_string()),
        })
    }

    /// Whether it was loaded with its weights, so that it can compute.
    pub fn has_weights(&self) -> bool {
        self.has_weights
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether layers of it run on a GPU.
    pub fn is_offloaded(&self) -> bool {
        self.n_gpu_layers > 0 && devices().iter().any(|device| device.is_gpu)
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &Gguf {
        &self.metadata
    }

    /// Layers.
    pub fn n_layer(&self) -> usize {
        self.inner.n_layer() as usize
    }

    /// Attention heads of a layer.
    pub fn n_head(&self, layer: usize) -> usize {
        self.metadata.at_layer("attention.head_count", layer).unwrap_or(1) as usize
    }

    /// Tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        usize::try_from(self.inner.n_vocab()).unwrap_or(0)
    }

    /// Context length that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> u32 {
        self.inner.n_ctx_train()
    }

    /// Parameters.
    pub fn n_params(&self) -> u64 {
        self.inner.n_params()
    }

    /// Size of all tensors, in bytes.
    pub fn size(&self) -> u64 {
        self.inner.size()
    }

    /// Whether the model keeps a recurrent state instead of attending over a KV cache.
    pub fn is_recurrent(&self) -> bool {
        self.inner.is_recurrent()
    }

    /// Whether some layers of it keep a recurrent state, and others attend.
    pub fn is_hybrid(&self) -> bool {
        self.inner.is_hybrid()
    }

    /// One line such as `qwen2 7B Q4_K - Medium`.
    pub fn description(&self) -> String {
        let mut buffer = [0u8; 256];
        // SAFETY: the model is valid and the buffer is as long as stated; llama.cpp terminates what it writes.
        unsafe {
            let model = self.raw();
            llama_cpp_sys_2::llama_model_desc(model, buffer.as_mut_ptr().cast(), buffer.len());
        }
        let end = buffer.iter().position(|&b| b == 0).unwrap_or(buffer.len());
        String::from_utf8_lossy(&buffer[..end]).into_owned()
    }

    /// Whether the model has an encoder.
    pub fn has_encoder(&self) -> bool {
        // SAFETY: the model is valid.
        unsafe { llama_cpp_sys_2::llama_model_has_encoder(self.raw()) }
    }

    pub(super) fn raw(&self) -> *const llama_cpp_sys_2::llama_model {
        const { assert!(size_of::<LlamaModel>() == size_of::<*const llama_cpp_sys_2::llama_model>()) };
        // SAFETY: `LlamaModel` is a struct of one field, a non-null pointer to the model; having its size it has no
        // room for anything else, so its bytes are that pointer.
        unsafe { std::mem::transmute_copy(&self.inner) }
    }

    /// Tokens of `text`. `special` reads texts such as `<think>` as the tokens they name; `add_bos` puts the model's
    /// first token in front where it wants one.
    pub fn tokenize(&self, text: &str, add_bos: bool, special: bool) -> Vec<Token> {
        let tokens = || self.inner.vocab().tokenize(text.as_bytes(), add_bos, special);
        let _one_at_a_time = (text.len() > HUGE_TEXT).then(|| HUGE_TEXTS.lock());
        let tokens = match text.len() {
            ..=LONG_TEXT => tokens(),
            // Where there is no room for the stack, there is none for the models whose words take so much of it.
            n => on_stack(n.saturating_mul(STACK_PER_BYTE), tokens).unwrap_or_else(|_| tokens()),
        };
        tokens.into_iter().map(|token| Token(token.0)).collect()
    }

    /// The text of a token, special ones included. It may end inside a UTF-8 character.
    pub fn piece(&self, token: Token) -> Vec<u8> {
        self.inner.vocab().token_to_piece(LlamaToken(token.0), true, None)
    }

    /// Whether the token is a special one, which a user does not want to read.
    pub fn is_control(&self, token: Token) -> bool {
        self.inner.vocab().is_control(LlamaToken(token.0))
    }

    /// The texts of the tokens that structure a prompt: control tokens, and those that its author defined beside the
    /// vocabulary, with whether they are of the latter.
    pub(super) fn structural_texts(&self) -> impl Iterator<Item = (String, bool)> {
        // SAFETY: the model is valid, and its vocabulary lives as long.
        let vocab = unsafe { llama_cpp_sys_2::llama_model_get_vocab(self.raw()) };
        (0..self.n_vocab() as i32).filter_map(move |token| {
            // SAFETY: the vocabulary is valid, and the token one of it.
            let attributes = unsafe { llama_cpp_sys_2::llama_vocab_get_attr(vocab, token) } as u32;
            let defined = attributes & llama_cpp_sys_2::LLAMA_TOKEN_ATTR_USER_DEFINED != 0;
            let is_structural = defined || attributes & llama_cpp_sys_2::LLAMA_TOKEN_ATTR_CONTROL != 0;
            let text = || String::from_utf8(self.piece(Token(token))).ok();
            is_structural.then(text).flatten().map(|text| (text, defined))
        })
    }

    /// Whether generation ends at this token.
    pub fn is_end(&self, token: Token) -> bool {
        self.inner.vocab().is_eog(LlamaToken(token.0))
    }

    /// The token at the beginning of every text, if the model has one.
    pub fn bos(&self) -> Option<Token> {
        let token = self.inner.vocab().bos().0;
        (token >= 0).then_some(Token(token))
    }

    /// Whether texts begin with [`Model::bos`].
    pub fn adds_bos(&self) -> bool {
        self.inner.vocab().should_add_bos()
    }

    /// The token at the end of every text, if the model has one.
    pub fn eos(&self) -> Option<Token> {
        let token = self.inner.vocab().eos().0;
        (token >= 0).then_some(Token(token))
    }

    /// The token whose text is exactly `text`, special ones included.
    pub fn token_of(&self, text: &str) -> Option<Token> {
        match self.tokenize(text, false, true)[..] {
            [token] if self.piece(token) == text.as_bytes() => Some(token),
            _ => None,
        }
    }

    /// The chat template in the metadata.
    pub fn chat_template(&self) -> Option<&str> {
        self.metadata.chat_template()
    }

    pub(crate) fn inner(&self) -> &LlamaModel {
        &self.inner
    }
}
