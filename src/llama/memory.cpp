// What a context takes, by llama.cpp's own books, which it shows in C++ alone.
#include "ggml-backend.h"
#include "llama-ext.h"

// Calls `each` for every kind of memory, with the name of its device; null for host memory. Returns whether it could.
extern "C" bool sf_memory(const llama_context *context, void *out,
                          void (*each)(void *out, const char *device, size_t weights, size_t cache, size_t compute)) {
  try {
    for (const auto &[kind, used] : llama_get_memory_breakdown(context)) {
      ggml_backend_dev_t device = ggml_backend_buft_is_host(kind) ? nullptr : ggml_backend_buft_get_device(kind);
      // What the CPU lays out for itself is no host buffer to ggml.
      const bool is_host = !device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
      each(out, is_host ? nullptr : ggml_backend_dev_name(device), used.model, used.context, used.compute);
    }
    return true;
  } catch (...) {
    return false;
  }
}
