// The Metal kernels behind device.h, on the CPU: what src/kernels/metal.rs does on an Apple machine.
#include "../device.h"
#include "metal.h"

#include "../metal/oeb.metal"
#include "../metal/probe.metal"
#include "../metal/smi.metal"

// The names of Metal's address spaces are ordinary words below.
#undef kernel
#undef device
#undef constant
#undef threadgroup
#undef thread

struct SfDevice {};

namespace {

// Calls `work(place, thread)` for every thread of n x n_head threadgroups.
template <typename Work>
void run_grid(uint32_t n, uint32_t n_head, uint32_t threads, Work work) {
  for (uint32_t y = 0; y < n_head; y++) {
    for (uint32_t x = 0; x < n; x++) {
      fibers::run_block(threads, [&](uint32_t thread) { work(uint2{x, y}, thread); });
    }
  }
}

const char *open(uint32_t ordinal, SfDevice **opened) {
  if (ordinal > 0) return "no such device";
  *opened = new SfDevice;
  return nullptr;
}

void close(SfDevice *opened) { delete opened; }

const char *alloc(SfDevice *, size_t size, bool, void **memory) {
  *memory = malloc(size);
  return *memory ? nullptr : "out of memory";
}

void release(SfDevice *, void *memory, bool) { free(memory); }

const char *copy(SfDevice *, void *to, const void *from, size_t size) { return memcpy(to, from, size), nullptr; }

const char *run_oeb(SfDevice *, const SfAttention *attention, bool sinks, float *probs, const uint8_t *mask,
                    const uint8_t *labels, const SfOebRow *rows, uint32_t n, SfOebOutcome *outcomes) {
  run_grid(n, attention->n_head, OEB_THREADS, [&](uint2 place, uint32_t thread) {
    oeb(*attention, sinks, probs, mask, labels, rows, outcomes, place, thread, thread % 32, thread / 32);
  });
  return nullptr;
}

const char *run_smi(SfDevice *, const SfHeadOutput *heads, float *output, const uint8_t *values,
                    const uint32_t *cells, const SfSmiRow *rows, uint32_t n, SfSmiOutcome *outcomes) {
  run_grid(n, heads->n_head, SMI_THREADS, [&](uint2 place, uint32_t thread) {
    smi(*heads, output, values, cells, rows, outcomes, place, thread, thread % 32, thread / 32);
  });
  return nullptr;
}

const char *run_probe(SfDevice *, const SfAttention *attention, float *probs, const uint8_t *mask,
                      const SfProbeKey *keys, const SfProbeRow *rows, uint32_t n, const float *factors) {
  run_grid(n, attention->n_head, PROBE_THREADS, [&](uint2 place, uint32_t thread) {
    probe(*attention, probs, mask, keys, rows, factors, place, thread);
  });
  return nullptr;
}

const char *wait(SfDevice *) { return nullptr; }

const SfKernels table = {SF_VERSION, open,    close,   alloc,     release, copy,
                         copy,       run_oeb, run_smi, run_probe, wait};

}  // namespace

extern "C" const SfKernels *stepflow_kernels() { return &table; }
