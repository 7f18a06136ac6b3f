//! The functions that stand in for ggml's. Each passes on what it was called with, and where from: the runtime that called
//! is the object that this address is in.

use std::arch::naked_asm;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ggml_sys::Tensor;

use super::runtime::{Callback, Graph, Runtime, Sched};
use super::{report, scheduler};

/// Calls `$inner` with one more argument after `$n`: the address to return to.
macro_rules! with_caller {
    ($inner:ident, 2) => { with_caller!(@ $inner, "rdx", "x2") };
    ($inner:ident, 3) => { with_caller!(@ $inner, "rcx", "x3") };
    ($inner:ident, 4) => { with_caller!(@ $inner, "r8", "x4") };
    (@ $inner:ident, $x86:literal, $arm:literal) => {{
        #[cfg(target_arch = "x86_64")]
        naked_asm!(concat!("mov ", $x86, ", [rsp]"), "jmp {inner}", inner = sym $inner);
        #[cfg(target_arch = "aarch64")]
        naked_asm!(concat!("mov ", $arm, ", x30"), "b {inner}", inner = sym $inner);
    }};
}

/// `ggml_backend_sched_graph_compute_async`
///
/// # Safety
/// As ggml documents it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_sched_graph_compute_async(sched: Sched, graph: Graph) -> c_int {
    with_caller!(compute, 2)
}

/// `ggml_backend_sched_set_eval_callback`
///
/// # Safety
/// As ggml documents it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_sched_set_eval_callback(sched: Sched, callback: Callback, user: *mut c_void) {
    with_caller!(set_callback, 3)
}

/// `ggml_backend_tensor_set`: how a restored state comes into a cache.
///
/// # Safety
/// As ggml documents it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_tensor_set(tensor: *mut Tensor, data: *const c_void, offset: usize, size: usize) {
    with_caller!(set, 4)
}

/// `ggml_backend_tensor_copy`: how a sequence is copied from one stream to another.
///
/// # Safety
/// As ggml documents it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_tensor_copy(from: *mut Tensor, to: *mut Tensor) {
    with_caller!(copy, 2)
}

unsafe extern "C" fn compute(sched: Sched, graph: Graph, caller: *const c_void) -> c_int {
    let Some(runtime) = Runtime::of(caller) else { report::lost() };
    // SAFETY: as the caller has it.
    let run = || unsafe { (runtime.sched.compute)(sched, graph) };
    let Some(ggml) = &runtime.ggml else { return run() };
    report::found(runtime);
    // SAFETY: the runtime runs this graph now.
    let entered = catch_unwind(AssertUnwindSafe(|| unsafe { scheduler::enter(runtime, ggml, sched, graph) }));
    let Ok(Some(entered)) = entered else { return run() };
    let status = run();
    // Whatever comes of it, the runtime has its graph.
    _ = catch_unwind(AssertUnwindSafe(|| entered.leave(status == 0)));
    status
}

unsafe extern "C" fn set_callback(sched: Sched, callback: Callback, user: *mut c_void, caller: *const c_void) {
    let Some(runtime) = Runtime::of(caller) else { report::lost() };
    scheduler::remember_callback(sched, callback, user);
    // SAFETY: as the caller has it.
    unsafe { (runtime.sched.set_callback)(sched, callback, user) };
}

unsafe extern "C" fn set(tensor: *mut Tensor, data: *const c_void, offset: usize, size: usize, caller: *const c_void) {
    let Some(runtime) = Runtime::of(caller) else { report::lost() };
    // SAFETY: as the caller has it.
    _ = catch_unwind(|| unsafe { scheduler::written(runtime, tensor, offset..offset + size) });
    // SAFETY: as above.
    unsafe { (runtime.sched.set)(tensor, data, offset, size) };
}

unsafe extern "C" fn copy(from: *mut Tensor, to: *mut Tensor, caller: *const c_void) {
    let Some(runtime) = Runtime::of(caller) else { report::lost() };
    // SAFETY: as the caller has it.
    _ = catch_unwind(|| unsafe { scheduler::written(runtime, to, 0..usize::MAX) });
    // SAFETY: as above.
    unsafe { (runtime.sched.copy)(from, to) };
}
