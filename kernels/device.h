// The kernels of one kind of device as a table of functions: what a library of kernels offers to the host.
#ifndef STEPFLOW_DEVICE_H
#define STEPFLOW_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "args.h"

// Rises whenever anything in this file or a struct in args.h changes.
#define SF_VERSION 2

typedef struct SfDevice SfDevice;

// Where the flash attention of a layer has its data: queries, caches, output; and what heads have of their own: scores of
// attention sinks, and what they multiply the mask by (ALiBi). These two may be null.
typedef struct {
  const float *queries;
  const uint8_t *keys;
  const uint8_t *values;
  const float *sinks;
  const float *slopes;
  float *output;
} SfFlashData;

// Every function that can fail returns null, or what went wrong: a text that stays. Memory is of the device, but where
// it is `shared` the host may use it too while no kernel runs. Kernels and uploads run one after the other; `wait`
// returns when all are done. Several threads may use a device at once.
typedef struct {
  uint32_t version;
  const char *(*open)(uint32_t ordinal, SfDevice **device);
  void (*close)(SfDevice *device);
  const char *(*alloc)(SfDevice *device, size_t size, bool shared, void **memory);
  void (*free)(SfDevice *device, void *memory, bool shared);
  const char *(*upload)(SfDevice *device, void *to, const void *from, size_t size);
  const char *(*download)(SfDevice *device, void *to, const void *from, size_t size);
  // Bridges `n` rows in every head. `labels` holds a segment label for each of the n_kv cells, `outcomes` is [n][n_head].
  const char *(*oeb)(SfDevice *device, const SfAttention *attention, bool sinks, float *probs, const uint8_t *mask,
                     const uint8_t *labels, const SfOebRow *rows, uint32_t n, SfOebOutcome *outcomes);
  // Injects into `n` rows in every head. `outcomes` is [n][n_head].
  const char *(*smi)(SfDevice *device, const SfHeadOutput *heads, float *output, const uint8_t *values,
                     const uint32_t *cells, const SfSmiRow *rows, uint32_t n, SfSmiOutcome *outcomes);
  // Attention with OEB inside of `n` rows from `first_row` on, in every head; they have the `n_pieces` pieces from
  // `first_piece` on. `bias`,
  // one for each listed cell, may be null. `parts` has room for n_pieces x n_head times the width of a value and two floats,
  // `outcomes` is [all rows][n_head].
  const char *(*attend)(SfDevice *device, const SfFlash *flash, const SfFlashData *data, const uint32_t *cells,
                        const float *bias, const SfPiece *pieces, uint32_t first_piece, uint32_t n_pieces,
                        const SfFlashRow *rows, uint32_t first_row, uint32_t n, float *parts, SfOebOutcome *outcomes);
  // Multiplies the keys of `n` rows in every head by `factors`, [n][n_head].
  const char *(*probe)(SfDevice *device, const SfAttention *attention, float *probs, const uint8_t *mask,
                       const SfProbeKey *keys, const SfProbeRow *rows, uint32_t n, const float *factors);
  const char *(*wait)(SfDevice *device);
} SfKernels;

#ifdef __cplusplus
extern "C"
#endif
    const SfKernels *
    stepflow_kernels(void);

#endif
