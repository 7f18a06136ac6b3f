//! The functions of shim.cpp.

use std::ffi::{c_char, c_void};
use std::marker::{PhantomData, PhantomPinned};

use super::ChatError;

/// `common_chat_templates`.
#[repr(C)]
pub(super) struct Templates {
    _opaque: (),
    _pinned: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `sf_parser`.
#[repr(C)]
pub(super) struct Parser {
    _opaque: (),
    _pinned: PhantomData<(*mut u8, PhantomPinned)>,
}

/// UTF-8 that is borrowed for a call.
#[repr(C)]
pub(super) struct Text {
    data: *const c_char,
    length: usize,
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self { data: text.as_ptr().cast(), length: text.len() }
    }
}

/// Where a function puts its answer, or what is wrong.
#[repr(C)]
pub(super) struct Sink {
    out: *mut c_void,
    write: unsafe extern "C" fn(*mut c_void, *const c_char, usize),
}

unsafe extern "C" {
    pub(super) fn sf_chat_open(
        model: *const llama_cpp_sys_2::llama_model,
        source: Text,
        bos: Text,
        eos: Text,
        templates: *mut *mut Templates,
        sink: Sink,
    ) -> i32;
    pub(super) fn sf_chat_free(templates: *mut Templates);
    pub(super) fn sf_chat_apply(templates: *const Templates, request: Text, sink: Sink) -> i32;
    pub(super) fn sf_parser_open(applied: Text, echo: bool, parser: *mut *mut Parser, sink: Sink) -> i32;
    pub(super) fn sf_parser_free(parser: *mut Parser);
    pub(super) fn sf_parser_update(parser: *mut Parser, text: Text, is_partial: bool, sink: Sink) -> i32;
    pub(super) fn sf_parser_message(parser: *const Parser, sink: Sink) -> i32;
    pub(super) fn sf_schema_to_grammar(schema: Text, sink: Sink) -> i32;
}

/// What `function` puts into its sink. If it refuses what it was passed, `refused` makes an error of its message.
pub(super) fn call(
    refused: impl FnOnce(String) -> ChatError,
    function: impl FnOnce(Sink) -> i32,
) -> Result<String, ChatError> {
    let mut out = Vec::<u8>::new();
    let status = function(Sink { out: (&raw mut out).cast(), write });
    let text = String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    match status {
        0 => Ok(text),
        1 => Err(refused(text)),
        _ => Err(ChatError::Internal(text)),
    }
}

unsafe extern "C" fn write(out: *mut c_void, text: *const c_char, length: usize) {
    // SAFETY: `out` is the vector of the `call` that is waiting for this function's return, which touches it nowhere
    // meanwhile; `text` has `length` bytes.
    unsafe { (*out.cast::<Vec<u8>>()).extend_from_slice(std::slice::from_raw_parts(text.cast(), length)) };
}
