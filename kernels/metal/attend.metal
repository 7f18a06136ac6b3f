// Attention with OEB inside: a softmax of each piece of a row's keys, and what the pieces come to together.
//
// queries   [n_rows][n_head][keys.dim] F32 by strides         keys      [n_kv][n_head_kv][keys.dim] by strides
// output    [n_rows][n_head][values.dim] F32 by strides       values    [n_kv][n_head_kv][values.dim] by strides
// cells     what rows see, group by group                     bias      of each of these, what the mask adds
// pieces    ranges of cells, each of one group                rows      [n], ranges of pieces
// parts     [n_pieces][n_head]: values.dim weighted values, the largest score, the sum of weights
// sinks, slopes  [n_head]                                     outcomes  [n][n_head]
// optional  which of sinks, slopes and bias there are, as bits; `parts` begins with `first_piece`, rows with `first_row`
//
// `attend`: one threadgroup a piece and up to ATTEND_HEADS heads of one key-value head, so that a key is read once for all of
// them. Eight lanes take a key: each multiplies every eighth four of its dimensions, and sums go over the eight. A SIMD
// group then has the softmax of one head. Values are added up by as many threads as one has fours of dimensions, side by side
// in memory, and the rest of the threadgroup does the same for other cells; their sums come together in its memory.
// `combine`: one threadgroup a row and head. From the sums of pieces come the masses of the groups, from these OEB's factors,
// and the output is the pieces' values by both. All sums have a fixed order.
#include "../args.h"

#define ATTEND_THREADS 128
#define ATTEND_HEADS 4
#define ATTEND_LANES 8

#define HAS_SINKS 1u
#define HAS_SLOPES 2u
#define HAS_BIAS 4u

kernel void attend(constant SfFlash &flash [[buffer(0)]], constant uint32_t &optional [[buffer(1)]],
                   constant uint32_t &first_piece [[buffer(2)]], const device float *queries [[buffer(3)]],
                   const device uint8_t *keys [[buffer(4)]], const device uint8_t *values [[buffer(5)]],
                   const device float *slopes [[buffer(6)]], const device uint32_t *cells [[buffer(7)]],
                   const device float *bias [[buffer(8)]], const device SfPiece *pieces [[buffer(9)]],
                   const device SfFlashRow *rows [[buffer(10)]], device float *parts [[buffer(11)]],
                   uint2 place [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float scaled[ATTEND_HEADS][SF_KEY_DIMS];
  threadgroup float scores[ATTEND_HEADS][SF_PIECE];
  threadgroup uint32_t listed[SF_PIECE];
  threadgroup SfFour sums_of[ATTEND_THREADS];

  const SfPiece piece = pieces[first_piece + place.x];
  const uint32_t group = flash.n_head / flash.n_head_kv, blocks = (group + ATTEND_HEADS - 1) / ATTEND_HEADS;
  const uint32_t head_kv = place.y / blocks, first = place.y % blocks * ATTEND_HEADS;
  const uint32_t first_head = head_kv * group + first, left = group - first;
  const uint32_t n_heads = left < ATTEND_HEADS ? left : uint32_t(ATTEND_HEADS);
  const float scale = flash.softcap != 0 ? flash.scale / flash.softcap : flash.scale;

  const device float *of_row = queries + rows[piece.row].row * flash.query_row;
  for (uint32_t i = index; i < n_heads * flash.keys.dim; i += ATTEND_THREADS) {
    const uint32_t head = i / flash.keys.dim, dim = i % flash.keys.dim;
    scaled[head][dim] = scale * of_row[(first_head + head) * flash.query_head + dim];
  }
  for (uint32_t i = index; i < piece.n_cells; i += ATTEND_THREADS) listed[i] = cells[piece.first + i];
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const device uint8_t *of_keys = keys + head_kv * flash.keys.head_stride;
  for (uint32_t from = 0; from < piece.n_cells; from += ATTEND_THREADS / ATTEND_LANES) {
    const uint32_t at = from + index / ATTEND_LANES;
    float sums[ATTEND_HEADS] = {0, 0, 0, 0};
    if (at < piece.n_cells) {
      const device uint8_t *key = of_keys + listed[at] * flash.keys.cell_stride;
      for (uint32_t dim = 4 * (index % ATTEND_LANES); dim < flash.keys.dim; dim += 4 * ATTEND_LANES) {
        const SfFour k = sf_four(key, flash.keys.type, dim);
        for (uint32_t head = 0; head < n_heads; head++) {
          sums[head] += scaled[head][dim] * k.x + scaled[head][dim + 1] * k.y + scaled[head][dim + 2] * k.z +
                        scaled[head][dim + 3] * k.w;
        }
      }
    }
    for (uint32_t head = 0; head < n_heads; head++) {
      for (uint32_t other = ATTEND_LANES / 2; other > 0; other /= 2) {
        sums[head] += simd_shuffle_xor(sums[head], other);
      }
      if (at < piece.n_cells && index % ATTEND_LANES == 0) scores[head][at] = sums[head];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // The softmax of each head.
  const uint32_t dims = flash.values.dim, width = dims + 2;
  device float *part = parts + (uint64_t(place.x) * flash.n_head + first_head) * width;
  for (uint32_t head = simdgroup; head < n_heads; head += ATTEND_THREADS / 32) {
    const float slope = optional & HAS_SLOPES ? slopes[first_head + head] : 1.0f;
    float largest = -INFINITY, total = 0;
    for (uint32_t at = lane; at < piece.n_cells; at += 32) {
      float score = scores[head][at];
      if (flash.softcap != 0) score = flash.softcap * tanh(score);
      if (optional & HAS_BIAS) score += slope * bias[piece.first + at];
      scores[head][at] = score;
      largest = fmax(largest, score);
    }
    largest = simd_max(largest);
    for (uint32_t at = lane; at < piece.n_cells; at += 32) {
      // Where nothing is seen after all, nothing weighs.
      const float score = scores[head][at];
      const float weight = largest == -INFINITY && score == -INFINITY ? 0.0f : exp(score - largest);
      scores[head][at] = weight;
      total += weight;
    }
    total = simd_sum(total);
    if (lane == 0) {
      part[head * width + dims] = largest;
      part[head * width + dims + 1] = total;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const uint32_t fours = dims / 4, step = ATTEND_THREADS / fours, own = index / fours, dim = index % fours * 4;
  const device uint8_t *of_values = values + head_kv * flash.values.head_stride;
  SfFour sums[ATTEND_HEADS];
  for (uint32_t head = 0; head < ATTEND_HEADS; head++) sums[head].x = sums[head].y = sums[head].z = sums[head].w = 0;
  if (own < step) {
    for (uint32_t at = own; at < piece.n_cells; at += step) {
      const SfFour value = sf_four(of_values + listed[at] * flash.values.cell_stride, flash.values.type, dim);
      for (uint32_t head = 0; head < n_heads; head++) {
        const float weight = scores[head][at];
        sums[head].x += weight * value.x;
        sums[head].y += weight * value.y;
        sums[head].z += weight * value.z;
        sums[head].w += weight * value.w;
      }
    }
  }
  for (uint32_t head = 0; head < n_heads; head++) {
    sums_of[index] = sums[head];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (own == 0) {
      SfFour sum = sums_of[index];
      for (uint32_t other = 1; other < step; other++) {
        const SfFour more = sums_of[other * fours + index];
        sum.x += more.x;
        sum.y += more.y;
        sum.z += more.z;
        sum.w += more.w;
      }
      device float *to = part + head * width + dim;
      to[0] = sum.x;
      to[1] = sum.y;
      to[2] = sum.z;
      to[3] = sum.w;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// Of a piece's weights, relative to the largest of all.
#define RELATIVE(part) ((part)[dims + 1] == 0 ? 0.0f : exp((part)[dims] - largest))

kernel void combine(constant SfFlash &flash [[buffer(0)]], constant uint32_t &optional [[buffer(1)]],
                    constant uint32_t &first_piece [[buffer(2)]], constant uint32_t &first_row [[buffer(3)]],
                    const device float *sinks [[buffer(4)]], const device SfPiece *pieces [[buffer(5)]],
                    const device SfFlashRow *rows [[buffer(6)]], const device float *parts [[buffer(7)]],
                    device float *output [[buffer(8)]], device SfOebOutcome *outcomes [[buffer(9)]],
                    uint2 place [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float largest_of[ATTEND_THREADS / 32];
  threadgroup SfMass mass_of[ATTEND_THREADS / 32];
  const uint32_t head = place.y, dims = flash.values.dim, width = dims + 2;
  const SfFlashRow row = rows[first_row + place.x];
  const device float *of_head = parts + (uint64_t(row.first - first_piece) * flash.n_head + head) * width;
  const uint64_t next = uint64_t(flash.n_head) * width;
  const bool has_sinks = (optional & HAS_SINKS) != 0;
  const float sink = has_sinks ? sinks[head] : -INFINITY;

  float largest = sink;
  for (uint32_t i = index; i < row.n_pieces; i += ATTEND_THREADS) largest = fmax(largest, of_head[i * next + dims]);
  largest = simd_max(largest);
  if (lane == 0) largest_of[simdgroup] = largest;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint32_t i = 0; i < ATTEND_THREADS / 32; i++) largest = fmax(largest, largest_of[i]);

  SfMass mass = {0, 0, 0, 0, 0};
  for (uint32_t i = index; i < row.n_pieces; i += ATTEND_THREADS) {
    const device float *part = of_head + i * next;
    mass = sf_counted(mass, pieces[row.first + i].group, RELATIVE(part) * part[dims + 1]);
  }
  mass.same = simd_sum(mass.same);
  mass.bridge = simd_sum(mass.bridge);
  mass.other = simd_sum(mass.other);
  if (lane == 0) mass_of[simdgroup] = mass;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  SfMass shares = {0, 0, 0, row.n_same, row.n_bridge};
  for (uint32_t i = 0; i < ATTEND_THREADS / 32; i++) {
    shares.same += mass_of[i].same;
    shares.bridge += mass_of[i].bridge;
    shares.other += mass_of[i].other;
  }
  const float keys = shares.same + shares.bridge + shares.other;
  const float total = keys + (has_sinks ? exp(sink - largest) : 0.0f);
  // A row that sees nothing attends to nothing.
  const float share = total == 0 ? 0.0f : 1 / total;
  shares.same *= share;
  shares.bridge *= share;
  shares.other *= share;
  const SfFactors factors = sf_oeb(shares, row.tau_max, has_sinks);
  if (index == 0) outcomes[uint64_t(first_row + place.x) * flash.n_head + head] = factors.outcome;

  device float *to = output + row.row * flash.output_row + head * flash.output_head;
  for (uint32_t dim = index; dim < dims; dim += ATTEND_THREADS) {
    float sum = 0;
    for (uint32_t i = 0; i < row.n_pieces; i++) {
      const device float *part = of_head + i * next;
      sum += RELATIVE(part) * share * sf_factor(factors, pieces[row.first + i].group) * part[dim];
    }
    to[dim] = sum;
  }
}
