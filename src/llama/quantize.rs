//! A model file with its matrices in another type.

use std::ffi::CString;
use std::path::Path;

use llama_cpp_sys_2 as sys;

use crate::gguf::{GgmlType, Gguf};

use super::LlamaError;
use super::backend::{backend, take_complaint};

/// Writes the model in `from` to `to`, all its matrices as `ty`, by llama.cpp's quantizer; `to` appears whole or not at
/// all. The matrices of `from` may be quantized already: what they lost stays lost.
///
/// # Errors
/// When `from` is no model that llama.cpp loads, `ty` is none of F32, F16, Q8_0 and Q4_0, or `to` cannot be written.
pub fn quantize(from: &Path, to: &Path, ty: GgmlType) -> Result<(), LlamaError> {
    let invalid = |source| LlamaError::Gguf { path: from.to_owned(), source };
    Gguf::open(from).map_err(invalid)?.check_loadable().map_err(invalid)?;
    let failed = |reason: String| LlamaError::Quantize { path: to.to_owned(), reason };
    let ftype = file_type(ty).ok_or_else(|| failed(format!("expected F32, F16, Q8_0 or Q4_0, found {ty:?}")))?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = tempfile::Builder::new().prefix(".stepflow-").tempdir_in(folder).map_err(|e| failed(e.to_string()))?;
    let written = beside.path().join("model.gguf");
    let (c_from, c_to) = (c_path(from).map_err(failed)?, c_path(&written).map_err(failed)?);
    backend();
    take_complaint();
    // SAFETY: both paths are NUL-terminated and outlive the call, as do the parameters; those are llama.cpp's defaults,
    // whose pointers are null, with scalars changed. llama.cpp turns its exceptions into a status.
    let status = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = ftype;
        params.allow_requantize = true;
        params.pure_ = true;
        sys::llama_model_quantize(c_from.as_ptr(), c_to.as_ptr(), &params)
    };
    if status != 0 {
        return Err(failed(take_complaint().unwrap_or_else(|| format!("llama.cpp's status is {status}"))));
    }
    std::fs::rename(&written, to).map_err(|error| failed(error.to_string()))
}

/// llama.cpp's number for a file that is mostly of this type.
fn file_type(ty: GgmlType) -> Option<sys::llama_ftype> {
    match ty {
        GgmlType::F32 => Some(sys::LLAMA_FTYPE_ALL_F32),
        GgmlType::F16 => Some(sys::LLAMA_FTYPE_MOSTLY_F16),
        GgmlType::Q8_0 => Some(sys::LLAMA_FTYPE_MOSTLY_Q8_0),
        GgmlType::Q4_0 => Some(sys::LLAMA_FTYPE_MOSTLY_Q4_0),
        _ => None,
    }
}

fn c_path(path: &Path) -> Result<CString, String> {
    let text = path.to_str().ok_or_else(|| format!("expected a path in UTF-8, found {}", path.display()))?;
    CString::new(text).map_err(|_| format!("expected a path without NUL, found {text:?}"))
}
