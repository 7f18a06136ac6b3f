// Probe: blocks of attention times a factor for each row and head.
//
// probs     [n_head][n_rows][n_kv] F32, changed in place        mask      [n_rows][n_kv] F32 or F16, rows mask_stride apart
// keys      keys of all rows, one row after the other           rows      [n] the rows to scale
// factors   [n][n_head]
//
// One threadgroup of PROBE_THREADS a row and head. Each thread takes every PROBE_THREADS-th key and scales the first of
// its cells that the row sees.
#include "../args.h"

#define PROBE_THREADS 256

inline bool sees(const device uint8_t *seen, uint32_t mask_type, uint32_t n_kv, uint32_t cell) {
  return cell < n_kv && sf_visible(seen, mask_type, cell);
}

kernel void probe(constant SfAttention &attention [[buffer(0)]], device float *probs [[buffer(1)]],
                  const device uint8_t *mask [[buffer(2)]], const device SfProbeKey *keys [[buffer(3)]],
                  const device SfProbeRow *rows [[buffer(4)]], const device float *factors [[buffer(5)]],
                  uint2 place [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]]) {
  const uint32_t head = place.y, n_kv = attention.n_kv, mask_type = attention.mask_type;
  const SfProbeRow row = rows[place.x];
  device float *p = probs + (uint64_t(head) * attention.n_rows + row.row) * n_kv;
  const device uint8_t *seen = mask + row.row * attention.mask_stride;
  const float factor = factors[uint64_t(place.x) * attention.n_head + head];
  for (uint32_t i = index; i < row.n_keys; i += PROBE_THREADS) {
    const SfProbeKey key = keys[row.first + i];
    const uint32_t cell = sees(seen, mask_type, n_kv, key.own) ? key.own : key.shared;
    if (sees(seen, mask_type, n_kv, cell)) p[cell] *= factor;
  }
}
