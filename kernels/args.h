// What the kernels are told, and the formulas they share, for CUDA C++, Metal and C++. The structs alone are C: they
// have the same layout everywhere, and bindgen gives them to Rust.
#ifndef STEPFLOW_ARGS_H
#define STEPFLOW_ARGS_H

#if defined(__METAL_VERSION__)
#include <metal_stdlib>
using namespace metal;
#define SF_DEVICE device
#define SF_CONSTANT constant
#define SF_FN inline
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#define SF_DEVICE
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define SF_CONSTANT __constant__ const
#define SF_FN static __device__ inline
#else
#define SF_CONSTANT static const
#define SF_FN static inline
#endif
#endif

/// Element types, by ggml's numbers: of a mask F32 or F16, of a cache any of these.
enum {
  SF_F32 = 0,
  SF_F16 = 1,
  SF_Q4_0 = 2,
  SF_Q4_1 = 3,
  SF_Q5_0 = 6,
  SF_Q5_1 = 7,
  SF_Q8_0 = 8,
  SF_IQ4_NL = 20,
  SF_BF16 = 30,
};

/// No cell.
#define SF_NO_CELL 0xffffffffu

/// Cells of a piece, at most.
#define SF_PIECE 256u

/// Elements of a key, and of a value, at most, that attention has room for.
#define SF_KEY_DIMS 576u
#define SF_VALUE_DIMS 512u

/// The attention of one layer after its softmax: probabilities `[n_head][n_rows][n_kv]` F32, side by side, and its mask,
/// `[n_rows][n_kv]` of `mask_type`, rows `mask_stride` bytes apart.
typedef struct {
  uint64_t mask_stride;
  uint32_t mask_type;
  uint32_t n_kv;
  uint32_t n_rows;
  uint32_t n_head;
} SfAttention;

/// One row for OEB: its place among the rows, the labels of its own segment and of the one that is bridged, its cap.
typedef struct {
  uint32_t row;
  uint32_t same;
  uint32_t bridge;
  float tau_max;
} SfOebRow;

/// What OEB found and did in one row of one head: shares of attention on the bridged segment, sinks left out.
typedef struct {
  float before;
  float after;
  uint32_t changed;
} SfOebOutcome;

/// The head outputs of one layer, F32: `head_dim` side by side, rows and heads by their strides in floats; and its V cache:
/// byte strides of cell, dimension (of a block of 32 dimensions where the type has blocks) and head.
typedef struct {
  uint64_t output_row;
  uint64_t output_head;
  uint64_t cell_stride;
  uint64_t dim_stride;
  uint64_t head_stride;
  uint32_t value_type;
  uint32_t head_dim;
  uint32_t n_kv;
  uint32_t n_rows;
  uint32_t n_head;
  uint32_t n_head_kv;
} SfHeadOutput;

/// One step start for SMI: its place among the rows, its window as a range of the list of cells (one at least), its
/// strength.
typedef struct {
  uint32_t row;
  uint32_t first;
  uint32_t n_cells;
  float alpha;
} SfSmiRow;

/// What SMI did to one head: squared norms of what was added and of the output before.
typedef struct {
  float added;
  float total;
} SfSmiOutcome;

/// K or V of one layer: `dim` elements of a cell and head side by side, a multiple of 4, and of 32 where the type has
/// blocks; byte strides of cell and head.
typedef struct {
  uint64_t cell_stride;
  uint64_t head_stride;
  uint32_t type;
  uint32_t dim;
} SfCache;

/// Flash attention of one layer. Queries and outputs are F32, rows and heads by their strides in floats. Scores are products
/// times `scale`, held within `softcap` by tanh where it is not 0.
typedef struct {
  uint64_t query_row;
  uint64_t query_head;
  uint64_t output_row;
  uint64_t output_head;
  SfCache keys;
  SfCache values;
  uint32_t n_kv;
  uint32_t n_rows;
  uint32_t n_head;
  uint32_t n_head_kv;
  float scale;
  float softcap;
} SfFlash;

/// Cells of one group of a row's keys, SF_PIECE at most: a range of the list of cells.
typedef struct {
  uint32_t row;
  uint32_t group;
  uint32_t first;
  uint32_t n_cells;
} SfPiece;

/// One row for flash attention: its place among the rows, its pieces as a range of the list of pieces, how many cells of its
/// own and of the bridged segment it sees, OEB's cap; 0 for plain attention.
typedef struct {
  uint32_t row;
  uint32_t first;
  uint32_t n_pieces;
  uint32_t n_same;
  uint32_t n_bridge;
  float tau_max;
} SfFlashRow;

/// One row for a probe: its place among the rows and its keys, as a range of the list of keys.
typedef struct {
  uint32_t row;
  uint32_t first;
  uint32_t n_keys;
} SfProbeRow;

/// Where a key may lie: the first of these cells that the row sees. Either may be SF_NO_CELL.
typedef struct {
  uint32_t own;
  uint32_t shared;
} SfProbeKey;

#if defined(__cplusplus)

SF_FN float sf_bits(uint32_t bits) {
#if defined(__METAL_VERSION__)
  return as_type<float>(bits);
#elif defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// Two little-endian bytes: they need not be aligned.
SF_FN uint32_t sf_u16(const SF_DEVICE uint8_t *at) { return uint32_t(at[0]) | uint32_t(at[1]) << 8; }

SF_FN uint32_t sf_u32(const SF_DEVICE uint8_t *at) { return sf_u16(at) | sf_u16(at + 2) << 16; }

// A half from its bits. Dividing by a power of two lets normal arithmetic handle subnormal numbers.
SF_FN float sf_half(uint32_t bits) {
#if defined(__METAL_VERSION__)
  return float(as_type<half>(ushort(bits)));
#elif defined(__CUDACC__)
  return __half2float(__ushort_as_half((unsigned short)bits));
#else
  uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return sf_bits(sign | 0x7f800000u | fraction << 13);
  float magnitude = exponent == 0 ? ldexpf(float(fraction), -24) : sf_bits((exponent + 112) << 23 | fraction << 13);
  return sign ? -magnitude : magnitude;
#endif
}

// Whether the mask at `row`, the start of a row's mask, lets `cell` be seen. Hidden cells are at minus infinity.
SF_FN bool sf_visible(const SF_DEVICE uint8_t *row, uint32_t type, uint32_t cell) {
  if (type == SF_F32) return *(const SF_DEVICE float *)(row + 4 * uint64_t(cell)) > -INFINITY;
  return sf_half(*(const SF_DEVICE uint16_t *)(row + 2 * uint64_t(cell))) > -INFINITY;
}

// The levels of IQ4_NL, by ggml's format.
SF_CONSTANT int8_t SF_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Element `i` of a block of 32, by ggml's formats: a scale, for *_1 an offset, for Q5 the fifth bits, then the values;
// of 4-bit values byte j holds elements j and j + 16.
SF_FN float sf_block_value(const SF_DEVICE uint8_t *block, uint32_t type, uint32_t i) {
  float scale = sf_half(sf_u16(block));
  if (type == SF_Q8_0) return scale * float(((const SF_DEVICE int8_t *)block)[2 + i]);
  bool offset = type == SF_Q4_1 || type == SF_Q5_1, fifth = type == SF_Q5_0 || type == SF_Q5_1;
  uint32_t header = offset ? 4 : 2;
  uint32_t byte = block[header + (fifth ? 4 : 0) + i % 16];
  uint32_t value = i < 16 ? byte & 15 : byte >> 4;
  if (type == SF_IQ4_NL) return scale * float(SF_LEVELS[value]);
  if (fifth) value |= (sf_u32(block + header) >> i & 1) << 4;
  if (offset) return scale * float(value) + sf_half(sf_u16(block + 2));
  return scale * (float(value) - (fifth ? 16.0f : 8.0f));
}

// Bytes of a block of 32 elements.
SF_FN uint32_t sf_block_size(uint32_t type) {
  switch (type) {
    case SF_Q4_1: return 20;
    case SF_Q5_0: return 22;
    case SF_Q5_1: return 24;
    case SF_Q8_0: return 34;
    default: return 18;
  }
}

// Dimension `dim` of the value that begins at `at`.
SF_FN float sf_value(const SF_DEVICE uint8_t *at, uint32_t type, uint64_t dim_stride, uint32_t dim) {
  switch (type) {
    case SF_F32: return *(const SF_DEVICE float *)(at + dim * dim_stride);
    case SF_F16: return sf_half(*(const SF_DEVICE uint16_t *)(at + dim * dim_stride));
    case SF_BF16: return sf_bits(uint32_t(*(const SF_DEVICE uint16_t *)(at + dim * dim_stride)) << 16);
    default: return sf_block_value(at + dim / 32 * dim_stride, type, dim % 32);
  }
}

typedef struct {
  float x;
  float y;
  float z;
  float w;
} SfFour;

// Elements `dim` to `dim + 3` of the key or value that begins at `at`, a multiple of 8 where they are floats, which are read
// with few loads; `dim` is a multiple of 4.
SF_FN SfFour sf_four(const SF_DEVICE uint8_t *at, uint32_t type, uint32_t dim) {
  SfFour four;
  if (type == SF_F32) {
    const SF_DEVICE uint64_t *bits = (const SF_DEVICE uint64_t *)(at + 4 * dim);
    uint64_t low = bits[0], high = bits[1];
    four.x = sf_bits(uint32_t(low));
    four.y = sf_bits(uint32_t(low >> 32));
    four.z = sf_bits(uint32_t(high));
    four.w = sf_bits(uint32_t(high >> 32));
    return four;
  }
  if (type == SF_F16 || type == SF_BF16) {
    uint64_t bits = *(const SF_DEVICE uint64_t *)(at + 2 * dim);
    uint32_t low = uint32_t(bits), high = uint32_t(bits >> 32);
    bool half_floats = type == SF_F16;
    four.x = half_floats ? sf_half(low & 0xffffu) : sf_bits(low << 16);
    four.y = half_floats ? sf_half(low >> 16) : sf_bits(low & 0xffff0000u);
    four.z = half_floats ? sf_half(high & 0xffffu) : sf_bits(high << 16);
    four.w = half_floats ? sf_half(high >> 16) : sf_bits(high & 0xffff0000u);
    return four;
  }
  if (type != SF_Q8_0 && type != SF_Q4_0) {
    const SF_DEVICE uint8_t *other = at + dim / 32 * sf_block_size(type);
    four.x = sf_block_value(other, type, dim % 32);
    four.y = sf_block_value(other, type, dim % 32 + 1);
    four.z = sf_block_value(other, type, dim % 32 + 2);
    four.w = sf_block_value(other, type, dim % 32 + 3);
    return four;
  }
  bool wide = type == SF_Q8_0;
  const SF_DEVICE uint16_t *block = (const SF_DEVICE uint16_t *)(at + dim / 32 * (wide ? 34 : 18));
  float scale = sf_half(block[0]);
  uint32_t i = dim % 32, from = 1 + (wide ? i : i % 16) / 2;
  uint32_t bytes = uint32_t(block[from]) | uint32_t(block[from + 1]) << 16;
  if (wide) {
    four.x = scale * float(int8_t(bytes & 255));
    four.y = scale * float(int8_t(bytes >> 8 & 255));
    four.z = scale * float(int8_t(bytes >> 16 & 255));
    four.w = scale * float(int8_t(bytes >> 24));
    return four;
  }
  bytes = bytes >> (i < 16 ? 0 : 4) & 0x0f0f0f0fu;
  four.x = scale * (float(bytes & 255) - 8.0f);
  four.y = scale * (float(bytes >> 8 & 255) - 8.0f);
  four.z = scale * (float(bytes >> 16 & 255) - 8.0f);
  four.w = scale * (float(bytes >> 24) - 8.0f);
  return four;
}

// Groups of a row's keys; a hidden key belongs to none.
enum { SF_SAME = 0, SF_BRIDGE = 1, SF_OTHER = 2, SF_HIDDEN = 3 };

SF_FN uint32_t sf_group(const SF_DEVICE uint8_t *mask_row, uint32_t mask_type, uint32_t label, uint32_t same,
                        uint32_t bridge, uint32_t cell) {
  if (!sf_visible(mask_row, mask_type, cell)) return SF_HIDDEN;
  return label == same ? SF_SAME : label == bridge ? SF_BRIDGE : SF_OTHER;
}

// Mass and number of keys by group.
typedef struct {
  float same;
  float bridge;
  float other;
  uint32_t n_same;
  uint32_t n_bridge;
} SfMass;

// `mass` with a key of probability `p` in `group`.
SF_FN SfMass sf_counted(SfMass mass, uint32_t group, float p) {
  if (group == SF_SAME) {
    mass.same += p;
    mass.n_same += 1;
  } else if (group == SF_BRIDGE) {
    mass.bridge += p;
    mass.n_bridge += 1;
  } else if (group == SF_OTHER) {
    mass.other += p;
  }
  return mass;
}

// What each group is multiplied by, and what that does to the bridged segment's share.
typedef struct {
  float same;
  float bridge;
  float other;
  SfOebOutcome outcome;
} SfFactors;

SF_FN float sf_factor(SfFactors factors, uint32_t group) {
  return group == SF_SAME ? factors.same : group == SF_BRIDGE ? factors.bridge : factors.other;
}

// OEB in F32; core/src/stepflow/oeb.rs has the same in F64 and says why.
SF_FN SfFactors sf_oeb(SfMass mass, float tau_max, bool sinks) {
  const float e = 1e-6f;
  SfFactors factors = {1, 1, 1, {0, 0, 0}};
  float keys = mass.same + mass.bridge + mass.other;
  if (!(keys > 0)) return factors;
  float same = mass.same / keys, bridge = mass.bridge / keys, other = mass.other / keys;
  factors.outcome.before = factors.outcome.after = bridge;
  if (mass.n_bridge == 0) return factors;
  float tau = fmin(sqrt(float(mass.n_bridge) / float(mass.n_bridge + mass.n_same)), tau_max);
  // `same + bridge` is 1 - other without its cancellation.
  if (!(bridge < tau && same > e && same + bridge > e)) return factors;
  tau = fmax(fmin(tau, same + bridge - e), e);
  float to_bridge = (tau + e) / (bridge + e);
  float to_same = (same + bridge - tau + e) / (same + e);
  float scaled = other + to_bridge * bridge + to_same * same;
  float sink = sinks ? fmax(1 - keys, 0.0f) : 0;
  float scale = sinks ? 1 / (keys * scaled + sink) : 1 / scaled;
  factors.same = to_same * scale;
  factors.bridge = to_bridge * scale;
  factors.other = scale;
  factors.outcome.after = to_bridge * bridge / scaled;
  factors.outcome.changed = 1;
  return factors;
}

#endif
#endif
