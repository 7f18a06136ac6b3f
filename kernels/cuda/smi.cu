// SMI: the mean of the window's values, times alpha, added to the head output.
//
// output    head_dim F32 of each row and head, changed in place  values    the V cache; strides in bytes, of any layout
// cells     windows of all starts, one after the other          rows      [n] the step starts
// outcomes  [n][n_head]
//
// One block a start and head; head h reads key-value head h * n_head_kv / n_head. Each thread takes every THREADS-th
// dimension and adds up its values over the window's cells, all of which the row sees. Squared norms go over lanes, then over warps.
#include "kernels.cuh"

namespace {

constexpr int THREADS = 128;

__device__ float over_block(float value) {
  __shared__ float warps[THREADS / 32];
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < THREADS / 32; warp++) sum += warps[warp];
  return sum;
}

__global__ void __launch_bounds__(THREADS, 1)
    inject(SfHeadOutput heads, float *output, const uint8_t *values, const uint32_t *cells,
           const SfSmiRow *rows, SfSmiOutcome *outcomes) {
  const uint32_t head = blockIdx.y;
  const SfSmiRow row = rows[blockIdx.x];
  float *out = output + head * heads.output_head + row.row * heads.output_row;
  const uint8_t *of_head = values + head / (heads.n_head / heads.n_head_kv) * heads.head_stride;

  float added = 0, total = 0;
  for (uint32_t dim = threadIdx.x; dim < heads.head_dim; dim += THREADS) {
    float sum = 0;
    for (uint32_t i = 0; i < row.n_cells; i++) {
      const uint32_t cell = cells[row.first + i];
      sum += sf_value(of_head + cell * heads.cell_stride, heads.value_type, heads.dim_stride, dim);
    }
    const float delta = row.alpha / row.n_cells * sum;
    added += delta * delta;
    total += out[dim] * out[dim];
    out[dim] += delta;
  }
  added = over_block(added);
  total = over_block(total);
  if (threadIdx.x == 0) outcomes[uint64_t(blockIdx.x) * heads.n_head + head] = {added, total};
}

}  // namespace

void sf_launch_smi(cudaStream_t stream, const SfHeadOutput &heads, float *output, const uint8_t *values,
                   const uint32_t *cells, const SfSmiRow *rows, uint32_t n, SfSmiOutcome *outcomes) {
  SF_LAUNCH(inject, dim3(n, heads.n_head), THREADS, stream, heads, output, values, cells, rows, outcomes);
}
