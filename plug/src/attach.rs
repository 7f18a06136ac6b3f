//! Getting into a process that has llama.cpp already: where its objects keep the addresses of the functions that ours stand in
//! for, ours are written. Called from C or Python (`stepflow_attach`), or by ggml itself, which loads what `GGML_BACKEND_PATH`
//! names as a backend: it gets one without devices.

use std::arch::naked_asm;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::catch_unwind;

use super::exports;
use super::runtime::{find_in, handle_of};

/// The functions that ours stand in for.
fn ours() -> [(&'static CStr, usize); 4] {
    [
        (
            c"ggml_backend_sched_graph_compute_async",
            exports::ggml_backend_sched_graph_compute_async as *const () as usize,
        ),
        (c"ggml_backend_sched_set_eval_callback", exports::ggml_backend_sched_set_eval_callback as *const () as usize),
        (c"ggml_backend_tensor_set", exports::ggml_backend_tensor_set as *const () as usize),
        (c"ggml_backend_tensor_copy", exports::ggml_backend_tensor_copy as *const () as usize),
    ]
}

/// Puts StepFlow into every llama.cpp that this process has loaded so far. Returns how many calls lead to it now; 0 where
/// there are none.
#[unsafe(no_mangle)]
pub extern "C" fn stepflow_attach() -> c_int {
    catch_unwind(attach).unwrap_or(0)
}

fn attach() -> c_int {
    stay();
    let mut n: c_int = 0;
    // SAFETY: a function of this prototype, and what it is given lives meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut n).cast()) };
    n
}

/// Keeps this library where it is when who loaded it lets go: code leads to it.
fn stay() {
    let (own, _) = handle_of(stepflow_attach as *const c_void);
    if let Some(path) = own {
        // SAFETY: a path that ends in NUL; the object is loaded already.
        unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY | libc::RTLD_NODELETE) };
    }
}

/// One object: writes our functions where it has the addresses of those that they stand in for.
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, n: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid object, whose dynamic section says where its tables are.
    let slots = unsafe { slots(&*info) };
    for (name, slot) in slots.unwrap_or_default() {
        let Some((_, own)) = ours().into_iter().find(|(known, _)| *known == name) else { continue };
        // SAFETY: a slot of the object, for an address; `n` is the count that `attach` has.
        unsafe {
            if *slot != own && write(slot, own) {
                *n.cast::<c_int>() += 1;
            }
        }
    }
    0
}

/// Writes to a page that may be read-only since the object was loaded. Whoever calls reads the old address or the new one.
///
/// # Safety
/// It is a slot for an address.
unsafe fn write(slot: *mut usize, address: usize) -> bool {
    // SAFETY: by this function's contract; the page is the slot's own.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let start = (slot as usize & !(page - 1)) as *mut c_void;
        if libc::mprotect(start, page, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            return false;
        }
        slot.write_volatile(address);
    }
    true
}

/// Names and slots of the functions that an object calls elsewhere.
///
/// # Safety
/// The object is loaded.
unsafe fn slots(info: &libc::dl_phdr_info) -> Option<Vec<(&CStr, *mut usize)>> {
    /// Relocations that put a function's address into a slot: `GLOB_DAT` and `JUMP_SLOT`.
    const KINDS: [u64; 2] = if cfg!(target_arch = "x86_64") { [6, 7] } else { [1025, 1026] };
    const DT_PLTRELSZ: i64 = 2;
    const DT_STRTAB: i64 = 5;
    const DT_SYMTAB: i64 = 6;
    const DT_RELA: i64 = 7;
    const DT_RELASZ: i64 = 8;
    const DT_JMPREL: i64 = 23;
    // SAFETY: by this function's contract; tables are where the dynamic section says, which ends in a null entry.
    unsafe {
        let base = info.dlpi_addr as usize;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        let dynamic = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC)?;
        let mut entry = (base + dynamic.p_vaddr as usize) as *const [i64; 2];
        let mut found = [0usize; 24];
        while (*entry)[0] != 0 {
            if let Some(place) = usize::try_from((*entry)[0]).ok().and_then(|tag| found.get_mut(tag)) {
                *place = (*entry)[1] as usize;
            }
            entry = entry.add(1);
        }
        let at = |tag: i64| found[tag as usize];
        // The loader has made addresses of them, but for the kernel's own object.
        let address = |tag: i64| if at(tag) < base { base + at(tag) } else { at(tag) };
        if at(DT_SYMTAB) == 0 || at(DT_STRTAB) == 0 {
            return None;
        }
        let (symbols, names) = (address(DT_SYMTAB) as *const libc::Elf64_Sym, address(DT_STRTAB) as *const c_char);
        let mut slots = Vec::new();
        for (table, size) in [(DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)] {
            if at(table) == 0 {
                continue;
            }
            let relocations = std::slice::from_raw_parts(
                address(table) as *const libc::Elf64_Rela,
                at(size) / size_of::<libc::Elf64_Rela>(),
            );
            for relocation in relocations.iter().filter(|one| KINDS.contains(&(one.r_info & 0xffff_ffff))) {
                let symbol = &*symbols.add((relocation.r_info >> 32) as usize);
                let name = CStr::from_ptr(names.add(symbol.st_name as usize));
                slots.push((name, (base + relocation.r_offset as usize) as *mut usize));
            }
        }
        Some(slots)
    }
}

/// `ggml_backend_reg`
#[repr(C)]
struct Registry {
    api_version: c_int,
    get_name: unsafe extern "C" fn(*mut Registry) -> *const c_char,
    n_devices: unsafe extern "C" fn(*mut Registry) -> usize,
    device: unsafe extern "C" fn(*mut Registry, usize) -> *mut c_void,
    function: unsafe extern "C" fn(*mut Registry, *const c_char) -> *mut c_void,
    context: *mut c_void,
}

/// What ggml asks a backend's library for: gets into the process, and gives it a backend without devices.
///
/// # Safety
/// As ggml documents it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_init() -> *mut c_void {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("mov rdi, [rsp]", "jmp {inner}", inner = sym as_backend);
    #[cfg(target_arch = "aarch64")]
    naked_asm!("mov x0, x30", "b {inner}", inner = sym as_backend);
}

unsafe extern "C" fn as_backend(caller: *const c_void) -> *mut c_void {
    unsafe extern "C" fn name(_: *mut Registry) -> *const c_char {
        c"StepFlow".as_ptr()
    }
    unsafe extern "C" fn none(_: *mut Registry) -> usize {
        0
    }
    unsafe extern "C" fn no_device(_: *mut Registry, _: usize) -> *mut c_void {
        std::ptr::null_mut()
    }
    unsafe extern "C" fn no_function(_: *mut Registry, _: *const c_char) -> *mut c_void {
        std::ptr::null_mut()
    }
    stepflow_attach();
    let (_, handle) = handle_of(caller);
    let get = find_in(handle, c"ggml_backend_reg_get");
    if get.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: ggml's function of this name; the first backend's registry begins with the version that ggml wants.
    let api_version = unsafe {
        let get = std::mem::transmute::<*const c_void, unsafe extern "C" fn(usize) -> *const c_int>(get);
        let first = get(0);
        if first.is_null() { 2 } else { *first }
    };
    let registry = Registry {
        api_version,
        get_name: name,
        n_devices: none,
        device: no_device,
        function: no_function,
        context: std::ptr::null_mut(),
    };
    Box::into_raw(Box::new(registry)).cast()
}
