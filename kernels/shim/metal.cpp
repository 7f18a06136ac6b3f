// The Metal kernels behind device.h, on the CPU: what core/src/kernels/metal.rs does on an Apple machine.
#include "../device.h"
#include "metal.h"

#include "../metal/attend.metal"
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

// Calls `work(place, thread)` for every thread of width x height threadgroups.
template <typename Work>
void run_grid(uint32_t width, uint32_t height, uint32_t threads, Work work) {
  for (uint32_t y = 0; y < height; y++) {
    for (uint32_t x = 0; x < width; x++) {
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

const char *run_attend(SfDevice *, const SfFlash *flash, const SfFlashData *data, const uint32_t *cells,
                       const float *bias, const SfPiece *pieces, uint32_t first_piece, uint32_t n_pieces,
                       const SfFlashRow *rows, uint32_t first_row, uint32_t n, float *parts, SfOebOutcome *outcomes) {
  const uint32_t optional =
      (data->sinks ? HAS_SINKS : 0) | (data->slopes ? HAS_SLOPES : 0) | (bias ? HAS_BIAS : 0);
  const uint32_t group = flash->n_head / flash->n_head_kv;
  const uint32_t blocks = flash->n_head_kv * ((group + ATTEND_HEADS - 1) / ATTEND_HEADS);
  run_grid(n_pieces, blocks, ATTEND_THREADS, [&](uint2 place, uint32_t thread) {
    attend(*flash, optional, first_piece, data->queries, data->keys, data->values, data->slopes, cells, bias, pieces,
           rows, parts, place, thread, thread % 32, thread / 32);
  });
  run_grid(n, flash->n_head, ATTEND_THREADS, [&](uint2 place, uint32_t thread) {
    combine(*flash, optional, first_piece, first_row, data->sinks, pieces, rows, parts, data->output, outcomes, place, thread,
            thread % 32, thread / 32);
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

const SfKernels table = {SF_VERSION, open,    close,   alloc,      release,   copy,
                         copy,       run_oeb, run_smi, run_attend, run_probe, wait};

}  // namespace

extern "C" const SfKernels *stepflow_kernels() { return &table; }
