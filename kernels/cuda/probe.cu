// Probe: blocks of attention times a factor for each row and head.
//
// probs     [n_head][n_rows][n_kv] F32, changed in place        mask      [n_rows][n_kv] F32 or F16, rows mask_stride apart
// keys      keys of all rows, one row after the other           rows      [n] the rows to scale
// factors   [n][n_head]
//
// One block a row and head. Each thread takes every THREADS-th key and scales the first of its cells that the row sees.
#include "kernels.cuh"

namespace {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS, 1)
    scale(SfAttention attention, float *probs, const uint8_t *mask, const SfProbeKey *keys, const SfProbeRow *rows,
          const float *factors) {
  const uint32_t head = blockIdx.y;
  const SfProbeRow row = rows[blockIdx.x];
  float *p = probs + (uint64_t(head) * attention.n_rows + row.row) * attention.n_kv;
  const uint8_t *seen = mask + row.row * attention.mask_stride;
  const float factor = factors[uint64_t(blockIdx.x) * attention.n_head + head];
  auto sees = [&](uint32_t cell) { return cell < attention.n_kv && sf_visible(seen, attention.mask_type, cell); };
  for (uint32_t i = threadIdx.x; i < row.n_keys; i += THREADS) {
    const SfProbeKey key = keys[row.first + i];
    const uint32_t cell = sees(key.own) ? key.own : key.shared;
    if (sees(cell)) p[cell] *= factor;
  }
}

}  // namespace

void sf_launch_probe(cudaStream_t stream, const SfAttention &attention, float *probs, const uint8_t *mask,
                     const SfProbeKey *keys, const SfProbeRow *rows, uint32_t n, const float *factors) {
  SF_LAUNCH(scale, dim3(n, attention.n_head), THREADS, stream, attention, probs, mask, keys, rows, factors);
}
