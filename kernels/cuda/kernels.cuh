// What the CUDA sources share: how a kernel is launched, and the launches that device.cu offers to the host.
#pragma once

#include "../device.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define SF_UNROLL _Pragma("unroll")
#define SF_UNROLL_4 _Pragma("unroll 4")
#define SF_LAUNCH(kernel, grid, threads, stream, ...) kernel<<<grid, threads, 0, stream>>>(__VA_ARGS__)
#else
#include "../shim/cuda.h"
#endif

void sf_launch_oeb(cudaStream_t stream, const SfAttention &attention, bool sinks, float *probs, const uint8_t *mask,
                   const uint8_t *labels, const SfOebRow *rows, uint32_t n, SfOebOutcome *outcomes);

void sf_launch_smi(cudaStream_t stream, const SfHeadOutput &heads, float *output, const uint8_t *values,
                   const uint32_t *cells, const SfSmiRow *rows, uint32_t n, SfSmiOutcome *outcomes);

void sf_launch_attend(cudaStream_t stream, const SfFlash &flash, const SfFlashData &data, const uint32_t *cells,
                      const float *bias, const SfPiece *pieces, uint32_t first_piece, uint32_t n_pieces,
                      const SfFlashRow *rows, uint32_t first_row, uint32_t n, float *parts, SfOebOutcome *outcomes);

void sf_launch_probe(cudaStream_t stream, const SfAttention &attention, float *probs, const uint8_t *mask,
                     const SfProbeKey *keys, const SfProbeRow *rows, uint32_t n, const float *factors);
