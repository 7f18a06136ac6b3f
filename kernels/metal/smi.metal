// SMI: the mean of the window's values, times alpha, added to the head output.
//
// output    head_dim F32 of each row and head, changed in place  values    the V cache; strides in bytes, of any layout
// cells     windows of all starts, one after the other          rows      [n] the step starts
// outcomes  [n][n_head]
//
// One threadgroup of SMI_THREADS a start and head; head h reads key-value head h * n_head_kv / n_head. Each thread takes
// every SMI_THREADS-th dimension and adds up its values over the window's cells, all of which the row sees. Squared
// norms go over lanes, then over SIMD groups.
#include "../args.h"

#define SMI_THREADS 128

kernel void smi(constant SfHeadOutput &heads [[buffer(0)]], device float *output [[buffer(1)]],
                const device uint8_t *values [[buffer(2)]], const device uint32_t *cells [[buffer(3)]],
                const device SfSmiRow *rows [[buffer(4)]], device SfSmiOutcome *outcomes [[buffer(5)]], uint2 place [[threadgroup_position_in_grid]],
                uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint32_t head = place.y;
  const SfSmiRow row = rows[place.x];
  device float *out = output + head * heads.output_head + row.row * heads.output_row;
  const device uint8_t *of_head = values + head / (heads.n_head / heads.n_head_kv) * heads.head_stride;

  float added = 0, total = 0;
  for (uint32_t dim = index; dim < heads.head_dim; dim += SMI_THREADS) {
    float sum = 0;
    for (uint32_t i = 0; i < row.n_cells; i++) {
      const uint32_t cell = cells[row.first + i];
      sum += sf_value(of_head + cell * heads.cell_stride, heads.value_type, heads.dim_stride, dim);
    }
    const float delta = row.alpha / float(row.n_cells) * sum;
    added += delta * delta;
    total += out[dim] * out[dim];
    out[dim] += delta;
  }

  threadgroup float2 sums[SMI_THREADS / 32];
  added = simd_sum(added);
  total = simd_sum(total);
  if (lane == 0) sums[simdgroup] = float2(added, total);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (index != 0) return;
  float2 norms = float2(0, 0);
  for (uint32_t i = 0; i < SMI_THREADS / 32; i++) norms += sums[i];
  const SfSmiOutcome outcome = {norms.x, norms.y};
  outcomes[uint64_t(place.x) * heads.n_head + head] = outcome;
}
