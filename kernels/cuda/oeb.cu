// OEB: three group sums and one scaled write per row.
//
// probs     [n_head][n_rows][n_kv] F32, changed in place        mask      [n_rows][n_kv] F32 or F16, rows mask_stride apart
// labels    [n_kv] segment label of each cell                   rows      [n] the rows to look at
// outcomes  [n][n_head]
//
// One block a row and head. Each thread takes every THREADS-th key, adds up mass and number of each group, and keeps its
// first KEPT keys and their groups in registers; sums go over lanes of a warp, then over warps. When the row is below
// its floor, each thread scales what it kept and, beyond THREADS * KEPT keys, reads and scales the rest. Hidden keys are
// neither read into a sum nor written.
#include "sums.cuh"

namespace {

template <int THREADS, int KEPT>
__global__ void __launch_bounds__(THREADS, 1)
    bridge(SfAttention attention, bool sinks, float *probs, const uint8_t *mask, const uint8_t *labels,
           const SfOebRow *rows, SfOebOutcome *outcomes) {
  static_assert(KEPT <= 32, "groups take two of 64 bits a key");
  const uint32_t head = blockIdx.y, n_kv = attention.n_kv;
  const SfOebRow row = rows[blockIdx.x];
  float *p = probs + (uint64_t(head) * attention.n_rows + row.row) * n_kv;
  const uint8_t *seen = mask + row.row * attention.mask_stride;
  auto group_of = [&](uint32_t key) {
    return sf_group(seen, attention.mask_type, labels[key], row.same, row.bridge, key);
  };

  float kept[KEPT];
  uint64_t groups = 0;
  SfMass mass = {0, 0, 0, 0, 0};
SF_UNROLL
  for (int i = 0; i < KEPT; i++) {
    const uint32_t key = i * THREADS + threadIdx.x;
    const uint32_t group = key < n_kv ? group_of(key) : uint32_t(SF_HIDDEN);
    kept[i] = group == SF_HIDDEN ? 0 : p[key];
    groups |= uint64_t(group) << (2 * i);
    mass = sf_counted(mass, group, kept[i]);
  }
  for (uint32_t key = KEPT * THREADS + threadIdx.x; key < n_kv; key += THREADS) {
    mass = sf_counted(mass, group_of(key), p[key]);
  }

  const SfFactors factors = sf_oeb(sf_over_block<THREADS>(mass), row.tau_max, sinks);
  if (threadIdx.x == 0) outcomes[uint64_t(blockIdx.x) * attention.n_head + head] = factors.outcome;
  if (!factors.outcome.changed) return;
SF_UNROLL
  for (int i = 0; i < KEPT; i++) {
    const uint32_t group = groups >> (2 * i) & 3;
    if (group != SF_HIDDEN) p[i * THREADS + threadIdx.x] = kept[i] * sf_factor(factors, group);
  }
  for (uint32_t key = KEPT * THREADS + threadIdx.x; key < n_kv; key += THREADS) {
    const uint32_t group = group_of(key);
    if (group != SF_HIDDEN) p[key] *= sf_factor(factors, group);
  }
}

}  // namespace

void sf_launch_oeb(cudaStream_t stream, const SfAttention &attention, bool sinks, float *probs, const uint8_t *mask,
                   const uint8_t *labels, const SfOebRow *rows, uint32_t n, SfOebOutcome *outcomes) {
  const dim3 grid(n, attention.n_head);
  // A short row fits in the registers of few threads; more of them would only wait at the barrier.
  if (attention.n_kv <= 256 * 8) {
    SF_LAUNCH((bridge<256, 8>), grid, 256, stream, attention, sinks, probs, mask, labels, rows, outcomes);
  } else {
    SF_LAUNCH((bridge<1024, 32>), grid, 1024, stream, attention, sinks, probs, mask, labels, rows, outcomes);
  }
}
