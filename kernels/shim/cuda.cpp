// What the CUDA sources need beside them on the CPU.
#include "cuda.h"

void (*stepflow_shim_guard)(bool open) = nullptr;
