// As much of CUDA as the kernels use, in C++ on the CPU: blocks run one after the other, their threads as fibers.
// "Device" memory is host memory that only a running kernel or a copy may touch.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "fibers.h"

#define __global__ static
#define __device__ static inline
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define SF_UNROLL
#define SF_UNROLL_4

struct dim3 {
  uint32_t x, y;
  dim3(uint32_t x, uint32_t y = 1) : x(x), y(y) {}
};

inline thread_local dim3 blockIdx(0, 0);

// Threads are told apart by the fiber that runs, so a fiber that goes on finds its own index.
struct ThreadIndex {
  struct {
    operator uint32_t() const { return fibers::block.current; }
  } x;
};
inline ThreadIndex threadIdx;

inline void __syncthreads() { fibers::barrier(); }

template <typename T>
T __shfl_xor_sync(uint32_t lanes, T value, int lane) {
  static_assert(sizeof(T) == 4, "an exchange is of 32 bits");
  if (lanes != 0xffffffffu) fibers::fail("an exchange of less than a warp");
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits = fibers::exchange(bits, (fibers::block.current ^ uint32_t(lane)) % fibers::WARP);
  memcpy(&value, &bits, 4);
  return value;
}

// Set by a test that guards device memory: called with true before the device touches it and with false after.
extern "C" void (*stepflow_shim_guard)(bool open);

struct Guard {
  Guard() {
    if (stepflow_shim_guard) stepflow_shim_guard(true);
  }
  ~Guard() {
    if (stepflow_shim_guard) stepflow_shim_guard(false);
  }
};

#define SF_LAUNCH(kernel, grid, threads, stream, ...)                     \
  do {                                                                    \
    (void)(stream);                                                       \
    const dim3 blocks = (grid);                                           \
    Guard guard;                                                          \
    for (uint32_t y = 0; y < blocks.y; y++) {                             \
      for (uint32_t x = 0; x < blocks.x; x++) {                           \
        blockIdx = dim3(x, y);                                            \
        fibers::run_block(threads, [&](uint32_t) { kernel(__VA_ARGS__); }); \
      }                                                                   \
    }                                                                     \
  } while (0)

typedef int cudaError_t;
typedef void *cudaStream_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum { cudaStreamNonBlocking = 1, cudaHostAllocMapped = 2, cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

inline const char *cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline thread_local int current_device = 0;
inline cudaError_t cudaGetDevice(int *device) { return *device = current_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return current_device = device, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int *n) { return *n = 2, cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, int) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline cudaError_t cudaMalloc(void **memory, size_t size) {
  *memory = malloc(size);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaHostAlloc(void **memory, size_t size, int) { return cudaMalloc(memory, size); }
inline cudaError_t cudaFree(void *memory) { return free(memory), cudaSuccess; }
inline cudaError_t cudaFreeHost(void *memory) { return cudaFree(memory); }
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, int, cudaStream_t) {
  Guard guard;
  memcpy(to, from, size);
  return cudaSuccess;
}
