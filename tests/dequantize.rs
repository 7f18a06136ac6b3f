//! A model with all weights in F32, made from a quantized one: the reference a quantized model is compared with.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use stepflow::gguf::{GgmlType, Gguf, GgufWriter, TensorInfo};

/// The file at `src` with each tensor in F32, written once and kept between runs.
pub fn dequantized(src: &Path) -> PathBuf {
    // The result is four to eight times as large as its source; tests side by side must not all hold one.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let name = src.file_stem().unwrap().to_str().unwrap();
    let size = std::fs::metadata(src).unwrap().len();
    super::cached(&format!("{name}-{size}-F32.gguf"), |path| dequantize(src, path))
}

fn dequantize(src: &Path, path: &Path) {
    let gguf = Gguf::open(src).unwrap();
    let mut file = std::fs::File::open(src).unwrap();
    let mut out = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        let value = if key == "general.file_type" { 0_u32.into() } else { value.clone() };
        out.metadata(key, value).unwrap();
    }
    for tensor in gguf.tensors() {
        let mut data = vec![0; tensor.bytes as usize];
        file.seek(SeekFrom::Start(tensor.start)).unwrap();
        file.read_exact(&mut data).unwrap();
        let floats = if tensor.ty == GgmlType::F32 { data } else { to_f32(tensor, &data) };
        out.tensor(&tensor.name, &tensor.dims, GgmlType::F32, floats).unwrap();
    }
    out.finish(std::io::BufWriter::new(std::fs::File::create(path).unwrap())).unwrap();
}

fn to_f32(tensor: &TensorInfo, data: &[u8]) -> Vec<u8> {
    let mut floats = vec![0_f32; tensor.elements() as usize];
    // SAFETY: the type is one of ggml's, so it has traits, and they live as long as the program.
    let traits = unsafe { &*llama_cpp_sys_2::ggml_get_type_traits(tensor.ty as llama_cpp_sys_2::ggml_type) };
    let to_float = traits.to_float.unwrap_or_else(|| panic!("{:?} has no conversion to F32", tensor.ty));
    // SAFETY: `data` holds the whole blocks of the tensor, as the reader checked, and `floats` has its elements.
    unsafe { to_float(data.as_ptr().cast(), floats.as_mut_ptr(), floats.len() as i64) };
    floats.iter().flat_map(|value| value.to_le_bytes()).collect()
}
