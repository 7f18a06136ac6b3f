//! Each tiny model loads in llama.cpp and predicts something.

mod tiny;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use tiny::{Arch, WeightType};

fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        let mut backend = LlamaBackend::init().unwrap();
        backend.void_logs();
        backend
    })
}

/// Tokens of a prompt and the logits after it.
fn predict(path: &Path) -> (usize, Vec<f32>) {
    let model = LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default()).unwrap();
    let tokens = model.vocab().tokenize(b"<|im_start|>user\nAdd 2 and 3.\n\n<think>", false, true);
    let mut context = model.new_context(backend(), LlamaContextParams::default()).unwrap();
    let mut batch = LlamaBatch::new(tokens.len(), 1);
    batch.add_sequence(&tokens, 0, false).unwrap();
    context.decode(&mut batch).unwrap();
    (tokens.len(), context.get_logits().to_vec())
}

#[test]
fn every_tiny_model_predicts() {
    for arch in Arch::ALL {
        let mut reference: Option<Vec<f32>> = None;
        for ty in WeightType::ALL {
            let path = tiny::tiny(arch, ty);
            stepflow::gguf::Gguf::open(&path).unwrap().check_loadable().unwrap();
            let (tokens, logits) = predict(&path);
            assert!(tokens > 10, "{arch:?}: the prompt has more than 10 tokens in any of the vocabularies");
            assert!(logits.iter().all(|logit| logit.is_finite()), "{arch:?} {ty:?}: not finite");
            let spread = deviation(&logits, &vec![logits.iter().sum::<f32>() / logits.len() as f32; logits.len()]);
            assert!(spread > 0.1, "{arch:?} {ty:?}: logits are nearly constant, spread {spread}");
            // All types store the same weights; 4-bit weights of 8 layers still leave most of the prediction.
            let reference = reference.get_or_insert_with(|| logits.clone());
            let error = deviation(&logits, reference) / spread;
            let tolerance = match ty {
                WeightType::F32 | WeightType::F16 => 0.05,
                WeightType::Q8_0 => 0.2,
                WeightType::Q4_0 | WeightType::Q4K => 1.0,
            };
            assert!(error <= tolerance, "{arch:?} {ty:?}: {error} of the spread away from F32");
        }
    }
}

/// The model that results says the same as its source, up to the rounding of activations in quantized products.
#[test]
fn a_dequantized_model_predicts_the_same() {
    let source: PathBuf = tiny::tiny(Arch::Qwen3, WeightType::Q4_0);
    let floats = tiny::dequantize::dequantized(&source);
    let gguf = stepflow::gguf::Gguf::open(&floats).unwrap();
    assert_eq!(gguf.file_type(), Some(0));
    assert!(gguf.tensors().iter().all(|tensor| tensor.ty == stepflow::gguf::GgmlType::F32));
    let (quantized, float) = (predict(&source).1, predict(&floats).1);
    let spread = deviation(&float, &vec![float.iter().sum::<f32>() / float.len() as f32; float.len()]);
    let error = deviation(&quantized, &float) / spread;
    // Activations in 8 bits are off by less than 1 % in each product; random layers amplify it.
    assert!(error <= 0.2, "{error} of the spread apart");
}

/// Root of the mean squared difference.
fn deviation(a: &[f32], b: &[f32]) -> f32 {
    (a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / a.len() as f32).sqrt()
}
