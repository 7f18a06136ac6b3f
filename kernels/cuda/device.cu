// The CUDA side of device.h: memory, a stream of our own, and the launches.
//
// ggml's stream is idle when the host calls: the scheduler waits for it before it shows a node, and goes on when the
// host returns, which is after `wait`. So a stream of our own is ordered with ggml's on both sides.
#include "kernels.cuh"

struct SfDevice {
  int ordinal;
  cudaStream_t stream;
};

namespace {

// The device of a call, and the thread's own again afterwards: ggml keeps count of it.
class Current {
 public:
  explicit Current(int ordinal) {
    cudaGetDevice(&before_);
    if (ordinal != before_) cudaSetDevice(ordinal);
    ordinal_ = ordinal;
  }
  ~Current() {
    if (ordinal_ != before_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0, ordinal_ = 0;
};

// Forgets what failed before, so that it is not taken for the launch that follows.
void forget_failures() { cudaGetLastError(); }

const char *outcome(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

const char *open(uint32_t ordinal, SfDevice **device) {
  int n_devices = 0;
  if (const char *problem = outcome(cudaGetDeviceCount(&n_devices))) return problem;
  if (n_devices == 0) return "no device";
  // ggml can show one card as several devices.
  const int card = static_cast<int>(ordinal % uint32_t(n_devices));
  Current current(card);
  cudaStream_t stream;
  if (const char *problem = outcome(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking))) return problem;
  *device = new SfDevice{card, stream};
  return nullptr;
}

void close(SfDevice *device) {
  Current current(device->ordinal);
  cudaStreamDestroy(device->stream);
  delete device;
}

const char *alloc(SfDevice *device, size_t size, bool shared, void **memory) {
  Current current(device->ordinal);
  return outcome(shared ? cudaHostAlloc(memory, size, cudaHostAllocMapped) : cudaMalloc(memory, size));
}

void release(SfDevice *device, void *memory, bool shared) {
  Current current(device->ordinal);
  if (shared) {
    cudaFreeHost(memory);
  } else {
    cudaFree(memory);
  }
}

const char *upload(SfDevice *device, void *to, const void *from, size_t size) {
  Current current(device->ordinal);
  return outcome(cudaMemcpyAsync(to, from, size, cudaMemcpyHostToDevice, device->stream));
}

const char *download(SfDevice *device, void *to, const void *from, size_t size) {
  Current current(device->ordinal);
  const cudaError_t error = cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToHost, device->stream);
  return outcome(error == cudaSuccess ? cudaStreamSynchronize(device->stream) : error);
}

const char *oeb(SfDevice *device, const SfAttention *attention, bool sinks, float *probs, const uint8_t *mask,
                const uint8_t *labels, const SfOebRow *rows, uint32_t n, SfOebOutcome *outcomes) {
  Current current(device->ordinal);
  forget_failures();
  sf_launch_oeb(device->stream, *attention, sinks, probs, mask, labels, rows, n, outcomes);
  return outcome(cudaGetLastError());
}

const char *smi(SfDevice *device, const SfHeadOutput *heads, float *output, const uint8_t *values,
                const uint32_t *cells, const SfSmiRow *rows, uint32_t n, SfSmiOutcome *outcomes) {
  Current current(device->ordinal);
  forget_failures();
  sf_launch_smi(device->stream, *heads, output, values, cells, rows, n, outcomes);
  return outcome(cudaGetLastError());
}

const char *attend(SfDevice *device, const SfFlash *flash, const SfFlashData *data, const uint32_t *cells,
                   const float *bias, const SfPiece *pieces, uint32_t first_piece, uint32_t n_pieces,
                   const SfFlashRow *rows, uint32_t first_row, uint32_t n, float *parts, SfOebOutcome *outcomes) {
  Current current(device->ordinal);
  forget_failures();
  sf_launch_attend(device->stream, *flash, *data, cells, bias, pieces, first_piece, n_pieces, rows, first_row, n, parts,
                   outcomes);
  return outcome(cudaGetLastError());
}

const char *probe(SfDevice *device, const SfAttention *attention, float *probs, const uint8_t *mask,
                  const SfProbeKey *keys, const SfProbeRow *rows, uint32_t n, const float *factors) {
  Current current(device->ordinal);
  forget_failures();
  sf_launch_probe(device->stream, *attention, probs, mask, keys, rows, n, factors);
  return outcome(cudaGetLastError());
}

const char *wait(SfDevice *device) {
  Current current(device->ordinal);
  return outcome(cudaStreamSynchronize(device->stream));
}

const SfKernels kernels = {SF_VERSION, open, close, alloc, release, upload, download, oeb, smi, attend, probe, wait};

}  // namespace

extern "C" const SfKernels *stepflow_kernels() { return &kernels; }
