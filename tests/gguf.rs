//! The GGUF reader and writer: what is written is read, and no malformed file gets past or brings the program down.

mod common;
mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::CStr;

use proptest::prelude::*;
use stepflow::gguf::{Array, GgmlType, Gguf, GgufError, GgufWriter, Value};
use tiny::{Arch, WeightType};

/// Notes the largest allocation of each thread.
struct Watch;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: both methods pass their arguments on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static WATCH: Watch = Watch;

fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::parse(bytes, bytes.len() as u64)
}

fn written(writer: GgufWriter) -> Vec<u8> {
    let mut bytes = Vec::new();
    writer.finish(&mut bytes).unwrap();
    bytes
}

/// One value of each type, and an array of each.
fn every_value() -> Vec<(&'static str, Value)> {
    vec![
        ("u8", 200_u8.into()),
        ("i8", (-3_i8).into()),
        ("u16", 60000_u16.into()),
        ("i16", (-300_i16).into()),
        ("u32", u32::MAX.into()),
        ("i32", i32::MIN.into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f32", 1.5_f32.into()),
        ("f64", (-0.25_f64).into()),
        ("bool", true.into()),
        ("string", "Ġthe\nnext".into()),
        ("u8s", vec![1_u8, 255].into()),
        ("i8s", vec![-1_i8, 127].into()),
        ("u16s", vec![1_u16, 65535].into()),
        ("i16s", vec![-1_i16, 32767].into()),
        ("u32s", vec![1_u32, u32::MAX].into()),
        ("i32s", vec![-1_i32, i32::MAX].into()),
        ("u64s", vec![1_u64, u64::MAX].into()),
        ("i64s", vec![-1_i64, i64::MAX].into()),
        ("f32s", vec![0.5_f32, f32::INFINITY].into()),
        ("f64s", vec![0.5_f64, -1e300].into()),
        ("bools", vec![true, false, true].into()),
        ("strings", vec!["a".to_owned(), String::new(), "ß".to_owned()].into()),
        ("none", Value::Array(Array::String(Vec::new()))),
    ]
}

#[test]
fn what_is_written_is_read() {
    for alignment in [None, Some(32_u32), Some(256)] {
        let mut writer = GgufWriter::new();
        for (key, value) in every_value() {
            writer.metadata(key, value).unwrap();
        }
        if let Some(alignment) = alignment {
            writer.metadata("general.alignment", alignment).unwrap();
        }
        let data: Vec<u8> = (0..180).collect();
        writer.tensor("q", &[32, 5, 2], GgmlType::Q4_0, &data[..]).unwrap();
        writer.tensor("f", &[3], GgmlType::F32, &data[..12]).unwrap();
        let bytes = written(writer);
        let gguf = parse(&bytes).unwrap();

        for (key, value) in every_value() {
            assert_eq!(gguf.get(key), Some(&value), "{key}");
        }
        let [q, f] = gguf.tensors() else { panic!("expected two tensors") };
        assert_eq!((q.dims.as_slice(), q.ty, q.elements()), (&[32, 5, 2][..], GgmlType::Q4_0, 320));
        assert_eq!((f.dims.as_slice(), f.ty, f.elements()), (&[3][..], GgmlType::F32, 3));
        for (tensor, expected) in [(q, &data[..]), (f, &data[..12])] {
            assert_eq!(tensor.start % u64::from(alignment.unwrap_or(32)), 0);
            assert_eq!(&bytes[tensor.range().start as usize..tensor.range().end as usize], expected);
        }
    }
}

#[test]
fn numbers_are_read_whatever_their_width() {
    let mut writer = GgufWriter::new();
    for (key, value) in every_value() {
        writer.metadata(key, value).unwrap();
    }
    let gguf = parse(&written(writer)).unwrap();
    assert_eq!(gguf.u64("u8"), Some(200));
    assert_eq!(gguf.u64("i8"), None, "negative");
    assert_eq!(gguf.f64("i8"), Some(-3.0));
    assert_eq!(gguf.f64("f32"), Some(1.5));
    assert_eq!(gguf.str("string"), Some("Ġthe\nnext"));
    assert_eq!(gguf.u64("string"), None);
    assert_eq!(gguf.u64("missing"), None);
}

#[test]
fn types_have_the_sizes_of_ggml() {
    for id in 0..200 {
        // SAFETY: ggml returns the traits of any number below its count, and asks for nothing else.
        let known = id < llama_cpp_sys_2::GGML_TYPE_COUNT
            && unsafe { llama_cpp_sys_2::ggml_blck_size(id as llama_cpp_sys_2::ggml_type) } > 0;
        let Some(ty) = GgmlType::from_id(id) else {
            assert!(!known, "ggml type {id} is missing");
            continue;
        };
        assert!(known, "{ty:?} is not a type of ggml");
        let id = id as llama_cpp_sys_2::ggml_type;
        // SAFETY: `id` is a type of ggml, and its name is a constant.
        let (block, bytes, name) = unsafe {
            let name = CStr::from_ptr(llama_cpp_sys_2::ggml_type_name(id)).to_str().unwrap();
            (llama_cpp_sys_2::ggml_blck_size(id), llama_cpp_sys_2::ggml_type_size(id), name)
        };
        assert_eq!((ty.block_size(), ty.block_bytes()), (block as u64, bytes as u64), "{ty:?}");
        assert_eq!(format!("{ty:?}").to_lowercase(), name.to_lowercase());
    }
}

#[test]
fn tiny_models_are_described() {
    let gguf = Gguf::open(tiny::tiny(Arch::GptOss, WeightType::Q4K)).unwrap();
    gguf.check_loadable().unwrap();
    assert_eq!(gguf.architecture(), Some("gpt-oss"));
    assert_eq!(gguf.arch_u64("block_count"), Some(8));
    assert_eq!(gguf.arch_u64("attention.sliding_window"), Some(8));
    assert_eq!(gguf.file_type(), Some(14));
    assert!(gguf.chat_template().unwrap().contains("<|channel|>"));
    assert!(gguf.tokens().unwrap().iter().any(|token| token == "<|return|>"));
    let experts = gguf.tensor("blk.7.ffn_up_exps.weight").unwrap();
    assert_eq!((experts.dims.as_slice(), experts.ty), (&[256, 256, 4][..], GgmlType::Q4_K));
}

#[test]
fn a_real_model_is_described() {
    let Some(path) = common::smollm2() else { return };
    let gguf = Gguf::open(path).unwrap();
    gguf.check_loadable().unwrap();
    assert_eq!(gguf.architecture(), Some("llama"));
    assert_eq!(gguf.arch_u64("block_count"), Some(30));
    assert_eq!(gguf.arch_u64("embedding_length"), Some(576));
    assert_eq!(gguf.arch_u64("attention.head_count"), Some(9));
    assert_eq!(gguf.arch_u64("attention.head_count_kv"), Some(3));
    assert_eq!(gguf.file_type(), Some(3), "Q4_1");
    assert_eq!(gguf.tokens().map(<[String]>::len), Some(49152));
    assert!(gguf.chat_template().unwrap().contains("<|im_start|>"));
    assert_eq!(gguf.tensor("token_embd.weight").unwrap().dims, [576, 49152]);
}

/// A small valid file as a starting point for faults.
fn model() -> Vec<(&'static str, Value)> {
    let tokens: Vec<String> = ["a", "b", "<|end|>"].map(str::to_owned).into();
    vec![
        ("general.architecture", "llama".into()),
        ("llama.context_length", 128_u32.into()),
        ("llama.embedding_length", 64_u32.into()),
        ("llama.block_count", 2_u32.into()),
        ("llama.attention.head_count", 4_u32.into()),
        ("llama.attention.head_count_kv", 2_u32.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5_f32.into()),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.tokens", tokens.into()),
        ("tokenizer.ggml.eos_token_id", 2_u32.into()),
    ]
}

/// The message of `check_loadable` after the metadata is changed; a `None` removes a key.
fn message(changes: Vec<(&'static str, Option<Value>)>) -> String {
    let mut writer = GgufWriter::new();
    for (key, value) in model() {
        if !changes.iter().any(|(changed, _)| *changed == key) {
            writer.metadata(key, value).unwrap();
        }
    }
    for (key, value) in changes {
        if let Some(value) = value {
            writer.metadata(key, value).unwrap();
        }
    }
    match parse(&written(writer)).unwrap().check_loadable() {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn contradictions_that_end_llama_cpp_are_found() {
    assert_eq!(message(vec![]), "");
    let tokens = |texts: &[&str]| Value::from(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    let cases: Vec<(&str, Option<Value>, &str)> = vec![
        ("general.architecture", None, "expected the name of an architecture, found none"),
        ("llama.context_length", None, "expected 1 to 2147483647, found none"),
        ("llama.embedding_length", Some(0_u32.into()), "expected 1 to 2147483647, found 0"),
        ("llama.block_count", Some(0_u32.into()), "expected 1 to 512, found 0"),
        ("llama.block_count", Some(513_u32.into()), "expected 1 to 512, found 513"),
        ("llama.nextn_predict_layers", Some(2_u32.into()), "expected fewer than 2, found 2"),
        ("llama.expert_count", Some(1025_u32.into()), "expected at most 1024, found 1025"),
        ("llama.expert_count", Some(4_u32.into()), "expected 1 to 4, the number of experts, found 0"),
        ("llama.expert_used_count", Some(1_u32.into()), "expected 1 to 0, the number of experts, found 1"),
        ("llama.expert_group_count", Some(2_u32.into()), "expected a divisor of the 0 experts, found 2"),
        ("llama.attention.head_count", Some(0_u32.into()), "expected at least 1, found 0"),
        ("llama.attention.head_count_kv", Some(3_u32.into()), "expected a divisor of the 4 heads, found 3"),
        ("llama.attention.head_count_kv", Some(vec![2_u32, 0].into()), "expected a divisor of the 4 heads, found 0"),
        ("llama.attention.value_length", Some(8_u32.into()), "expected 16, the size of a key, found 8"),
        ("llama.attention.key_length", Some(15_u32.into()), "expected heads of an even size, found 15"),
        ("llama.rope.dimension_count", Some(7_u32.into()), "expected an even number, found 7"),
        ("llama.rope.dimension_count", Some(8_u32.into()), "expected 16, the size of a head, found 8"),
        ("llama.rope.scaling.type", Some("wide".into()), "expected none, linear, yarn or longrope, found \"wide\""),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Some(f32::NAN.into()),
            "expected a small positive number, found NaN",
        ),
        ("tokenizer.ggml.tokens", None, "expected a list of tokens, found none"),
        ("tokenizer.ggml.tokens", Some(tokens(&["a", "b", "a"])), "expected each token once, found \"a\" twice"),
        ("tokenizer.ggml.tokens", Some(tokens(&["", "b", "[EMPTY_0]"])), "found \"[EMPTY_0]\" twice"),
        ("tokenizer.ggml.model", Some("none".into()), "expected a tokenizer, found none"),
        ("tokenizer.ggml.model", Some("llama".into()), "expected a token <0x00>, found none"),
        ("tokenizer.ggml.token_type", Some(vec![1_i32].into()), "expected 3 elements, one for each token, found 1"),
        ("tokenizer.ggml.eos_token_id", Some(3_u32.into()), "expected a token id below 3, found 3"),
        ("tokenizer.ggml.add_bos_token", Some(true.into()), "expected a token id below 3, found 11"),
        ("split.no", Some(0_u32.into()), "expected a u16, found 0"),
    ];
    for (key, value, expected) in cases {
        let found = message(vec![(key, value)]);
        assert!(found.contains(expected), "{key}: expected \"{expected}\", found \"{found}\"");
        assert!(!found.contains('\n') && found.starts_with("metadata \""), "{found}");
    }
    let dense = message(vec![
        ("general.architecture", Some("gemma3".into())),
        ("gemma3.context_length", Some(128_u32.into())),
        ("gemma3.embedding_length", Some(64_u32.into())),
        ("gemma3.block_count", Some(2_u32.into())),
        ("gemma3.attention.head_count", Some(4_u32.into())),
        ("gemma3.attention.sliding_window", Some(8_u32.into())),
        ("gemma3.attention.sliding_window_pattern", Some(1_u32.into())),
    ]);
    assert!(dense.contains("at least one layer with a sliding window"), "{dense}");
}

#[test]
fn tensors_without_a_kernel_are_found() {
    for (name, ty, expected) in [
        ("blk.0.attn_norm.weight", GgmlType::F16, "expected type F32, found F16"),
        ("blk.0.attn_q.bias", GgmlType::BF16, "expected type F32, found BF16"),
        ("blk.0.ffn_down.weight", GgmlType::I16, "expected a type of weights, found I16"),
    ] {
        let mut writer = GgufWriter::new();
        writer.tensor(name, &[4], ty, vec![0; 8]).unwrap();
        let error = parse(&written(writer)).unwrap().check_loadable().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A header with the given counts of tensors and metadata, and what follows.
fn header(tensors: u64, metadata: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    bytes.extend(rest.concat());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// One tensor, with data enough for small ones.
fn tensor(name: &str, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    bytes.extend(ty.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn each_damage_has_its_message() {
    let space = [0_u8; 1024];
    let huge = u64::MAX.to_le_bytes();
    let one = |name: &str, dims: &[u64], ty, offset| header(1, 0, &[&tensor(name, dims, ty, offset), &space]);
    let two = |first: Vec<u8>, second: Vec<u8>| header(2, 0, &[&first, &second, &space]);
    let entry = |key: &str, value: &[u8]| header(0, 1, &[&text(key), value, &space]);
    let number = [4_u32.to_le_bytes(), 7_u32.to_le_bytes()].concat();
    let array =
        |element: u32, count: u64| [&9_u32.to_le_bytes()[..], &element.to_le_bytes(), &count.to_le_bytes()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "found an empty file"),
        (b"<!DOCTYPE html>".to_vec(), "beginning with \"GGUF\", found \"<!DO\""),
        (b"GG".to_vec(), "beginning with \"GGUF\", found \"GG\""),
        (b"GGUF\0\0\0\x03".to_vec(), "found a big-endian one"),
        (b"GGUF\x01\0\0\0".to_vec(), "found version 1"),
        (b"GGUF\x04\0\0\0".to_vec(), "found version 4"),
        (b"GGUF\x03\0\0\0\0".to_vec(), "truncated: it needs 16 bytes and has 9; download it again"),
        (header(u64::MAX, 0, &[]), "expected at most 0 tensors in this file, found 18446744073709551615"),
        (header(0, u64::MAX, &[]), "expected at most 0 metadata entries in this file"),
        (header(0, 1, &[&huge, &space]), "expected a metadata key of at most 65535 bytes"),
        (entry("", &number), "expected a metadata key, found an empty one"),
        (header(0, 2, &[&text("a"), &number, &text("a"), &number]), "metadata \"a\": expected the key once"),
        (header(0, 1, &[&[1, 0, 0, 0, 0, 0, 0, 0, 0xff], &number, &space]), "a metadata key in UTF-8"),
        (entry("a\nb", &13_u32.to_le_bytes()), "metadata \"a\\nb\": expected a value type of 0 to 12, found 13"),
        (entry("a", &array(9, 1)), "found an array of arrays"),
        (entry("a", &array(13, 1)), "expected an element type of 0 to 12, found 13"),
        (entry("a", &array(0, u64::MAX)), "expected at most 16777216 elements"),
        (entry("a", &array(12, 1000)), "truncated"),
        (entry("a", &array(8, 1000)), "truncated"),
        (entry("a", &[&8_u32.to_le_bytes()[..], &huge].concat()), "metadata \"a\" of at most 67108864 bytes"),
        (entry("general.alignment", &number), "power of two of at least 32, found 7"),
        (one(&"n".repeat(64), &[1], 0, 0), "a tensor name of at most 63 bytes, found 64"),
        (one("t", &[1; 5], 0, 0), "tensor \"t\": expected 1 to 4 dimensions, found 5"),
        (one("t", &[], 0, 0), "expected 1 to 4 dimensions, found 0"),
        (one("t", &[4, 0], 0, 0), "expected dimensions above 0, found [4, 0]"),
        (one("t", &[1 << 32, 1 << 32], 0, 0), "expected a size below 2^63"),
        (one("t", &[1 << 61, 2], 28, 0), "expected a size below 2^63"),
        (one("t", &[32], 4, 0), "expected a known ggml type, found number 4"),
        (one("t", &[33], 2, 0), "expected rows of a multiple of 32 for type Q4_0, found 33"),
        (one("t", &[32], 0, 32), "expected its data at offset 0, found offset 32"),
        (one("t", &[1 << 20], 0, 0), "truncated: it needs 4194368 bytes"),
        (two(tensor("t", &[1], 0, 0), tensor("t", &[1], 0, 32)), "tensor \"t\": expected the name once"),
        (two(tensor("t", &[9], 0, 0), tensor("u", &[1], 0, 32)), "tensor \"u\": expected its data at offset 64"),
    ];
    for (bytes, expected) in cases {
        let error = parse(&bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected \"{expected}\", found \"{error}\"");
        assert!(!error.contains('\n'), "{error}");
    }
    let missing = Gguf::open("no/such/file.gguf").unwrap_err().to_string();
    assert!(missing.starts_with("cannot read or write it:"), "{missing}");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = GgufWriter::new();
    writer.metadata("a", 1_u32).unwrap();
    assert!(writer.metadata("a", 1_u32).is_err());
    assert!(writer.metadata("", 1_u32).is_err());
    writer.tensor("t", &[2], GgmlType::F32, vec![0; 8]).unwrap();
    assert!(writer.tensor("t", &[2], GgmlType::F32, vec![0; 8]).is_err());
    assert!(writer.tensor("u", &[2], GgmlType::F32, vec![0; 7]).is_err());
    assert!(writer.tensor("u", &[33], GgmlType::Q4_0, vec![0; 18]).is_err());
    assert!(writer.tensor(&"n".repeat(64), &[2], GgmlType::F32, vec![0; 8]).is_err());
    writer.metadata("general.alignment", 16_u32).unwrap();
    assert!(writer.finish(Vec::new()).is_err());
}

/// A change of a file at a place in it.
#[derive(Debug, Clone)]
enum Damage {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Number(prop::sample::Index, u64),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<prop::sample::Index>;
    let numbers = prop_oneof![Just(u64::MAX), Just(i64::MAX as u64), Just(u64::from(u32::MAX)), 0..1_u64 << 40];
    prop_oneof![
        1 => place().prop_map(Damage::Cut),
        4 => (place(), 0..8_u8).prop_map(|(place, bit)| Damage::Flip(place, bit)),
        4 => (place(), numbers).prop_map(|(place, number)| Damage::Number(place, number)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damage is in the header, where it is read; the size of the file stays known. No allocation may exceed a few
    /// times the file: an array of strings takes 24 bytes for each 8 in the file, and vectors grow by doubling.
    #[test]
    fn a_damaged_file_is_read_or_refused(damages in prop::collection::vec(damage(), 1..4)) {
        let path = tiny::tiny(Arch::Qwen3, WeightType::Q4_0);
        let mut bytes = std::fs::read(path).unwrap();
        let head = parse(&bytes).unwrap().tensors()[0].start as usize;
        for damage in damages {
            match damage {
                Damage::Cut(place) => {
                    let length = bytes.len();
                    bytes.truncate(place.index(length).max(8));
                }
                Damage::Flip(place, bit) => {
                    let place = place.index(head.min(bytes.len()));
                    bytes[place] ^= 1 << bit;
                }
                Damage::Number(place, number) => {
                    let place = place.index(head.min(bytes.len() - 7));
                    bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
                }
            }
        }
        LARGEST.set(0);
        let outcome = parse(&bytes).and_then(|gguf| gguf.check_loadable());
        let largest = LARGEST.get();
        prop_assert!(largest <= 6 * bytes.len().max(1 << 12), "allocated {largest} for {} bytes", bytes.len());
        if let Err(error) = outcome {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

/// Old converters wrote names and licences in whatever code they had.
#[test]
fn remarks_need_not_be_utf8_but_the_vocabulary_must() {
    let raw = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
    let one = |key: &str, bytes: &[u8]| header(0, 1, &[&text(key), &8_u32.to_le_bytes(), &raw(bytes)]);
    let list = |key: &str, elements: &[&[u8]]| {
        let count = elements.len() as u64;
        let elements: Vec<u8> = elements.iter().flat_map(|bytes| raw(bytes)).collect();
        header(0, 1, &[&text(key), &9_u32.to_le_bytes(), &8_u32.to_le_bytes(), &count.to_le_bytes(), &elements])
    };
    for key in ["general.name", "general.author", "general.license", "general.description", "my.own"] {
        assert_eq!(parse(&one(key, b"caf\xE9")).unwrap().str(key), Some("caf\u{FFFD}"));
    }
    assert!(parse(&list("general.tags", &[b"a", b"\xFF"])).is_ok());
    for key in ["general.architecture", "tokenizer.ggml.model", "tokenizer.chat_template"] {
        let error = parse(&one(key, b"caf\xE9")).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("offset 3"), "{error}");
    }
    let error = parse(&list("tokenizer.ggml.tokens", &[b"a", b"b", b"\xE9x"])).unwrap_err().to_string();
    assert!(error.contains("expected element 2 in UTF-8") && error.contains("xe9x"), "{error}");
    let doubled = parse(&list("tokenizer.ggml.tokens", &[b"a", b"b", b"a"])).unwrap().check_loadable().unwrap_err();
    assert!(!doubled.to_string().contains('\n'), "{doubled}");
}
