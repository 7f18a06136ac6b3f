// OEB: three group sums and one scaled write per row.
//
// probs     [n_head][n_rows][n_kv] F32, changed in place        mask      [n_rows][n_kv] F32 or F16, rows mask_stride apart
// labels    [n_kv] segment label of each cell                   rows      [n] the rows to look at
// outcomes  [n][n_head]
//
// One threadgroup of OEB_THREADS a row and head. Each thread takes every OEB_THREADS-th key, adds up mass and number of
// each group, and keeps its first OEB_KEPT keys and their groups in registers; sums go over lanes of a SIMD group, then
// over SIMD groups. When the row is below its floor, each thread scales what it kept and, beyond that, reads and scales
// the rest. Hidden keys are neither read into a sum nor written.
#include "../args.h"

#define OEB_THREADS 256
#define OEB_KEPT 16

inline SfMass over_lanes(SfMass mass) {
  mass.same = simd_sum(mass.same);
  mass.bridge = simd_sum(mass.bridge);
  mass.other = simd_sum(mass.other);
  mass.n_same = simd_sum(mass.n_same);
  mass.n_bridge = simd_sum(mass.n_bridge);
  return mass;
}

kernel void oeb(constant SfAttention &attention [[buffer(0)]], constant uint32_t &sinks [[buffer(1)]],
                device float *probs [[buffer(2)]], const device uint8_t *mask [[buffer(3)]],
                const device uint8_t *labels [[buffer(4)]], const device SfOebRow *rows [[buffer(5)]],
                device SfOebOutcome *outcomes [[buffer(6)]], uint2 place [[threadgroup_position_in_grid]],
                uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint32_t head = place.y, n_kv = attention.n_kv, mask_type = attention.mask_type;
  const SfOebRow row = rows[place.x];
  device float *p = probs + (uint64_t(head) * attention.n_rows + row.row) * n_kv;
  const device uint8_t *seen = mask + row.row * attention.mask_stride;

  float kept[OEB_KEPT];
  uint32_t groups = 0;
  SfMass mass = {0, 0, 0, 0, 0};
  for (uint32_t i = 0; i < OEB_KEPT; i++) {
    const uint32_t key = i * OEB_THREADS + index;
    const uint32_t group = key < n_kv ? sf_group(seen, mask_type, labels[key], row.same, row.bridge, key) : uint32_t(SF_HIDDEN);
    kept[i] = group == SF_HIDDEN ? 0.0f : p[key];
    groups |= group << (2 * i);
    mass = sf_counted(mass, group, kept[i]);
  }
  for (uint32_t key = OEB_KEPT * OEB_THREADS + index; key < n_kv; key += OEB_THREADS) {
    const uint32_t group = sf_group(seen, mask_type, labels[key], row.same, row.bridge, key);
    if (group != SF_HIDDEN) mass = sf_counted(mass, group, p[key]);
  }

  threadgroup SfMass sums[OEB_THREADS / 32];
  mass = over_lanes(mass);
  if (lane == 0) sums[simdgroup] = mass;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  SfMass sum = {0, 0, 0, 0, 0};
  if (lane < OEB_THREADS / 32) sum = sums[lane];
  const SfFactors factors = sf_oeb(over_lanes(sum), row.tau_max, sinks != 0);

  if (index == 0) outcomes[uint64_t(place.x) * attention.n_head + head] = factors.outcome;
  if (factors.outcome.changed == 0) return;
  for (uint32_t i = 0; i < OEB_KEPT; i++) {
    const uint32_t group = groups >> (2 * i) & 3;
    if (group != SF_HIDDEN) p[i * OEB_THREADS + index] = kept[i] * sf_factor(factors, group);
  }
  for (uint32_t key = OEB_KEPT * OEB_THREADS + index; key < n_kv; key += OEB_THREADS) {
    const uint32_t group = sf_group(seen, mask_type, labels[key], row.same, row.bridge, key);
    if (group != SF_HIDDEN) p[key] *= sf_factor(factors, group);
  }
}
