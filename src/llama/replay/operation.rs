//! ggml's operations, as far as there are rules for them.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

use super::node::{Glu, Operation, Unary};

/// What a tensor is computed by.
///
/// # Errors
/// When it is not known; the message names it.
pub(super) fn operation(tensor: &sys::ggml_tensor) -> Result<Operation, String> {
    let float = |i: usize| f32::from_bits(tensor.op_params[i].cast_unsigned());
    let operation = match tensor.op {
        sys::GGML_OP_RESHAPE | sys::GGML_OP_VIEW | sys::GGML_OP_PERMUTE | sys::GGML_OP_TRANSPOSE => Operation::View,
        // What is written in place leaves no trace of what was there.
        _ if !tensor.view_src.is_null() => return Err(format!("no rule for {} in place", name(tensor))),
        sys::GGML_OP_CONT | sys::GGML_OP_DUP => Operation::Copy,
        sys::GGML_OP_ADD => Operation::Add,
        sys::GGML_OP_SUB => Operation::Sub,
        sys::GGML_OP_MUL => Operation::Mul,
        sys::GGML_OP_DIV => Operation::Div,
        sys::GGML_OP_ADD_ID => Operation::AddId,
        sys::GGML_OP_SCALE => Operation::Scale(float(0)),
        sys::GGML_OP_CLAMP => Operation::Clamp(float(0), float(1)),
        sys::GGML_OP_REPEAT => Operation::Repeat,
        sys::GGML_OP_SUM_ROWS => Operation::SumRows,
        sys::GGML_OP_RMS_NORM => Operation::RmsNorm(float(0)),
        sys::GGML_OP_NORM => Operation::Norm(float(0)),
        sys::GGML_OP_MUL_MAT => Operation::MulMat,
        sys::GGML_OP_MUL_MAT_ID => Operation::MulMatId,
        sys::GGML_OP_GET_ROWS => Operation::GetRows,
        sys::GGML_OP_ARGSORT | sys::GGML_OP_TOP_K => Operation::Choice,
        sys::GGML_OP_SQR => Operation::Unary(Unary::Sqr),
        sys::GGML_OP_SQRT => Operation::Unary(Unary::Sqrt),
        sys::GGML_OP_UNARY => Operation::Unary(unary(tensor)?),
        sys::GGML_OP_GLU => {
            // SAFETY: a valid tensor of this operation.
            let kind = match unsafe { sys::ggml_get_glu_op(tensor) } {
                sys::GGML_GLU_OP_REGLU => Glu::Reglu,
                sys::GGML_GLU_OP_GEGLU => Glu::Geglu,
                sys::GGML_GLU_OP_GEGLU_ERF => Glu::GegluErf,
                sys::GGML_GLU_OP_GEGLU_QUICK => Glu::GegluQuick,
                sys::GGML_GLU_OP_SWIGLU => Glu::Swiglu,
                sys::GGML_GLU_OP_SWIGLU_OAI => Glu::SwigluOai { alpha: float(2), limit: float(3) },
                _ => return Err(format!("no rule for {}", name(tensor))),
            };
            Operation::Glu { kind, swapped: tensor.op_params[1] != 0 }
        }
        sys::GGML_OP_SOFT_MAX => {
            if !tensor.src[1].is_null() || !tensor.src[2].is_null() || float(1) != 0.0 {
                return Err("no rule for a softmax with a mask or sinks".to_owned());
            }
            Operation::SoftMax(float(0))
        }
        sys::GGML_OP_ROPE => {
            let (n_dims, mode) = (tensor.op_params[1], tensor.op_params[2]);
            if mode != sys::LLAMA_ROPE_TYPE_NORM && mode != sys::LLAMA_ROPE_TYPE_NEOX {
                return Err(format!("no rule for a rotation of kind {mode}"));
            }
            let halves = mode == sys::LLAMA_ROPE_TYPE_NEOX;
            // The table is made when the sources are known.
            Operation::Rope { table: usize::MAX, n_dims: n_dims as usize, halves }
        }
        _ => return Err(format!("no rule for {}", name(tensor))),
    };
    Ok(operation)
}

fn unary(tensor: &sys::ggml_tensor) -> Result<Unary, String> {
    // SAFETY: a valid tensor of this operation.
    Ok(match unsafe { sys::ggml_get_unary_op(tensor) } {
        sys::GGML_UNARY_OP_NEG => Unary::Neg,
        sys::GGML_UNARY_OP_TANH => Unary::Tanh,
        sys::GGML_UNARY_OP_RELU => Unary::Relu,
        sys::GGML_UNARY_OP_SIGMOID => Unary::Sigmoid,
        sys::GGML_UNARY_OP_GELU => Unary::Gelu,
        sys::GGML_UNARY_OP_GELU_ERF => Unary::GeluErf,
        sys::GGML_UNARY_OP_GELU_QUICK => Unary::GeluQuick,
        sys::GGML_UNARY_OP_SILU => Unary::Silu,
        sys::GGML_UNARY_OP_EXP => Unary::Exp,
        sys::GGML_UNARY_OP_SOFTPLUS => Unary::Softplus,
        _ => return Err(format!("no rule for {}", name(tensor))),
    })
}

/// An operation by ggml's name, as in `MUL_MAT` or `SWIGLU`.
fn name(tensor: &sys::ggml_tensor) -> String {
    // SAFETY: a valid tensor; ggml returns a static NUL-terminated string.
    unsafe { CStr::from_ptr(sys::ggml_op_desc(tensor)) }.to_string_lossy().into_owned()
}
