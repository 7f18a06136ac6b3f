use std::collections::HashSet;
use std::io::{self, Write};

use stepflow::gguf::{GgmlType, Gguf, TensorInfo, Value};

use super::*;
use crate::shape::Experts;
use crate::weights::DEVIATION;

/// Bytes that hold the header of any of the models.
const HEADER: usize = 1 << 25;

/// Keeps the beginning of what is written, and counts the rest.
#[derive(Default)]
struct Beginning {
    kept: Vec<u8>,
    length: u64,
}

impl Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEADER.saturating_sub(self.kept.len());
        self.kept.extend(&bytes[..bytes.len().min(room)]);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a model without its weights, which are never read.
fn beginning(shape: &Shape) -> Beginning {
    let tensors = tensors(shape);
    let zeros = vec![0; tensors.iter().map(Tensor::bytes).max().unwrap() as usize];
    let mut out = Beginning::default();
    model(shape, &tensors, |tensor| zeros[..tensor.bytes() as usize].into()).unwrap().finish(&mut out).unwrap();
    out
}

#[test]
fn published_shapes_have_the_published_parameters_sizes_and_types() {
    use GgmlType::*;
    // Numbers of parameters, and sizes of files in GB as Hugging Face shows them; vocabularies of other words differ by
    // some megabytes.
    for (published, parameters, size, mix) in [
        (Published::Qwq32B, 32_763_876_352, 19.85, [(F32, 321), (Q4_K, 385), (Q6_K, 65)].as_slice()),
        (Published::R1Distill7B, 7_615_616_512, 4.68, &[(F32, 141), (Q4_K, 169), (Q6_K, 29)]),
        (Published::GptOss20B, 20_914_757_184, 12.1, &[(F32, 289), (Q8_0, 98), (MXFP4, 72)]),
    ] {
        let shape = published.shape();
        let written = beginning(&shape);
        let found = written.length as f64 / 1e9;
        assert!((found - size).abs() < 0.02, "{}: expected {size} GB, found {found}", shape.name);
        let gguf = Gguf::parse(&written.kept[..], written.length).unwrap();
        gguf.check_loadable().unwrap();
        let found: u64 = gguf.tensors().iter().map(TensorInfo::elements).sum();
        assert_eq!(found, parameters, "{}: parameters", shape.name);
        for (ty, count) in mix {
            let found = gguf.tensors().iter().filter(|tensor| tensor.ty == *ty).count();
            assert_eq!(found, *count, "{}: tensors of {ty:?}", shape.name);
        }
    }
}

/// Small enough to be written and decoded in a moment.
fn small(published: Published) -> Shape {
    let shape = published.shape();
    let experts = shape.experts.map(|_| Experts { count: 4, used: 2 });
    Shape {
        layers: 4,
        embedding: 512,
        feed_forward: 768,
        heads: 8,
        kv_heads: 2,
        head: 64,
        vocabulary: 1000,
        experts,
        ..shape
    }
}

#[test]
fn llama_cpp_decodes_weights_of_the_meant_size() {
    for published in [Published::Qwq32B, Published::GptOss20B] {
        let folder = tempfile::tempdir().unwrap();
        let (path, decoded) = (folder.path().join("random.gguf"), folder.path().join("f32.gguf"));
        let shape = small(published);
        let tensors = tensors(&shape);
        let mut random = SplitMix64::new(7);
        let weights = Weights::new(&tensors, &mut random);
        let out = model(&shape, &tensors, |tensor| weights.of(tensor, &mut random)).unwrap();
        out.finish(std::fs::File::create(&path).unwrap()).unwrap();
        stepflow::llama::quantize(&path, &decoded, GgmlType::F32).unwrap();

        let (bytes, gguf) = (std::fs::read(&decoded).unwrap(), Gguf::open(&decoded).unwrap());
        for tensor in tensors.iter().filter(|tensor| tensor.ty() != GgmlType::F32) {
            let stored = gguf.tensor(&tensor.name).unwrap();
            assert_eq!(stored.ty, GgmlType::F32);
            let (values, _) = bytes[stored.start as usize..][..stored.bytes as usize].as_chunks();
            let values = values.iter().map(|value| f64::from(f32::from_le_bytes(*value)));
            let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
            let count = stored.elements() as f64;
            let (mean, deviation) = (sum / count, (squares / count).sqrt());
            // Scales of MXFP4 are powers of two, whose mix misses by a tenth; the smallest matrix has 65,536 weights.
            let meant = f64::from(DEVIATION);
            assert!((deviation / meant - 1.0).abs() < 0.15, "{}: {deviation}", tensor.name);
            assert!(mean.abs() < 0.02 * meant, "{}: {mean}", tensor.name);
        }
    }
}

#[test]
fn every_merge_joins_two_tokens_to_a_third() {
    let written = beginning(&small(Published::R1Distill7B));
    let gguf = Gguf::parse(&written.kept[..], written.length).unwrap();
    let tokens: HashSet<&str> = gguf.tokens().unwrap().iter().map(String::as_str).collect();
    // Bytes and special tokens have no merge.
    let merges = gguf.get("tokenizer.ggml.merges").and_then(Value::as_strings).unwrap();
    assert_eq!((tokens.len(), merges.len()), (1000, 1000 - 256 - 5));
    for merge in merges {
        let (left, right) = merge.split_once(' ').unwrap();
        assert!([left, right, &format!("{left}{right}")].iter().all(|text| tokens.contains(text)), "{merge}");
    }
}
