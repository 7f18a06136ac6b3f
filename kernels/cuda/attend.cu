// Attention with OEB inside: a softmax of each piece of a row's keys, and what the pieces come to together.
//
// queries   [n_rows][n_head][keys.dim] F32 by strides         keys      [n_kv][n_head_kv][keys.dim] by strides
// output    [n_rows][n_head][values.dim] F32 by strides       values    [n_kv][n_head_kv][values.dim] by strides
// cells     what rows see, group by group                     bias      of each of these, what the mask adds; or null
// pieces    ranges of cells, each of one group                rows      [n], ranges of pieces
// parts     [n_pieces][n_head]: values.dim weighted values, the largest score, the sum of weights
// sinks, slopes  [n_head], or null                            outcomes  [all rows][n_head]
// Of a launch, `parts` begins with `first_piece`, and rows with `first_row`.
//
// `attend`: one block a piece and up to HEADS heads of one key-value head, so that a key is read once for all of them. Eight
// lanes take a key: each multiplies every eighth four of its dimensions, and sums go over the eight. A warp then has the
// softmax of one head. Values are added up by as many threads as one has fours of dimensions, side by side in memory, and
// the rest of the block does the same for other cells; their sums come together in shared memory.
// `combine`: one block a row and head. From the sums of pieces come the masses of the groups, from these OEB's factors, and
// the output is the pieces' values by both. All sums have a fixed order.
#include "sums.cuh"

namespace {

constexpr uint32_t THREADS = 128, WARPS = THREADS / 32;
// A type that is told by the cache alone: one that is too rare for code of its own.
constexpr uint32_t ANY = 0xffffffffu;
// Lanes that share a key, and dimensions that they take at a time.
constexpr uint32_t LANES = 8, STRIDE = 4 * LANES;

// Products of every key with the queries of HEADS heads.
template <int HEADS, uint32_t TYPE>
__device__ void multiply(const SfCache &cache, const uint8_t *keys, const uint32_t *cells, uint32_t n_cells,
                         const float *queries, float (*scores)[SF_PIECE]) {
  const uint32_t lane = threadIdx.x % LANES;
  for (uint32_t first = 0; first < n_cells; first += THREADS / LANES) {
    const uint32_t at = first + threadIdx.x / LANES;
    float sums[HEADS] = {};
    if (at < n_cells) {
      const uint8_t *key = keys + cells[at] * cache.cell_stride;
SF_UNROLL_4
      for (uint32_t dim = 4 * lane; dim < cache.dim; dim += STRIDE) {
        const SfFour k = sf_four(key, TYPE == ANY ? cache.type : TYPE, dim);
SF_UNROLL
        for (int head = 0; head < HEADS; head++) {
          const float *q = queries + head * SF_KEY_DIMS + dim;
          sums[head] += q[0] * k.x + q[1] * k.y + q[2] * k.z + q[3] * k.w;
        }
      }
    }
SF_UNROLL
    for (int head = 0; head < HEADS; head++) {
      for (int other = LANES / 2; other > 0; other /= 2) {
        sums[head] += __shfl_xor_sync(0xffffffffu, sums[head], other);
      }
      if (at < n_cells && lane == 0) scores[head][at] = sums[head];
    }
  }
}

// Values of the cells from `first` on, every `step`-th, times the weights of each head.
template <int HEADS, uint32_t TYPE>
__device__ void weigh(const SfCache &cache, const uint8_t *values, const uint32_t *cells, uint32_t n_cells,
                      uint32_t first, uint32_t step, uint32_t dim, const float (*weights)[SF_PIECE], SfFour *sums) {
SF_UNROLL_4
  for (uint32_t at = first; at < n_cells; at += step) {
    const SfFour value = sf_four(values + cells[at] * cache.cell_stride, TYPE == ANY ? cache.type : TYPE, dim);
SF_UNROLL
    for (int head = 0; head < HEADS; head++) {
      const float weight = weights[head][at];
      sums[head].x += weight * value.x;
      sums[head].y += weight * value.y;
      sums[head].z += weight * value.z;
      sums[head].w += weight * value.w;
    }
  }
}

// Calls `function<HEADS, type>` for the type of a cache.
#define BY_TYPE(function, cache, ...)                                  \
  switch ((cache).type) {                                              \
    case SF_F16: function<HEADS, SF_F16>(cache, __VA_ARGS__); break;   \
    case SF_BF16: function<HEADS, SF_BF16>(cache, __VA_ARGS__); break; \
    case SF_Q8_0: function<HEADS, SF_Q8_0>(cache, __VA_ARGS__); break; \
    case SF_Q4_0: function<HEADS, SF_Q4_0>(cache, __VA_ARGS__); break; \
    default: function<HEADS, ANY>(cache, __VA_ARGS__);                 \
  }

__device__ float largest_of_warp(float value) {
  for (int lane = 16; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
}

// Turns a head's products into weights, exp(score - largest). Returns the largest score and, in `sum`, the weights' sum.
__device__ float soften(const SfFlash &flash, float slope, const float *bias, uint32_t n_cells, float *scores,
                        float *sum) {
  const uint32_t lane = threadIdx.x % 32;
  float largest = -INFINITY, total = 0;
  for (uint32_t at = lane; at < n_cells; at += 32) {
    float score = scores[at];
    if (flash.softcap != 0) score = flash.softcap * tanhf(score);
    if (bias) score += slope * bias[at];
    scores[at] = score;
    largest = fmaxf(largest, score);
  }
  largest = largest_of_warp(largest);
  for (uint32_t at = lane; at < n_cells; at += 32) {
    // Where nothing is seen after all, nothing weighs.
    const float weight = largest == -INFINITY && scores[at] == -INFINITY ? 0 : expf(scores[at] - largest);
    scores[at] = weight;
    total += weight;
  }
  for (int other = 16; other > 0; other /= 2) total += __shfl_xor_sync(0xffffffffu, total, other);
  *sum = total;
  return largest;
}

template <int HEADS>
__global__ void __launch_bounds__(THREADS, 1)
    attend(SfFlash flash, SfFlashData data, const uint32_t *cells, const float *bias, const SfPiece *pieces,
           uint32_t first_piece, const SfFlashRow *rows, float *parts) {
  __shared__ float queries[HEADS * SF_KEY_DIMS];
  __shared__ float scores[HEADS][SF_PIECE];
  __shared__ uint32_t listed[SF_PIECE];
  __shared__ SfFour sums_of[THREADS];

  const SfPiece piece = pieces[first_piece + blockIdx.x];
  const uint32_t group = flash.n_head / flash.n_head_kv, blocks = (group + HEADS - 1) / HEADS;
  const uint32_t head_kv = blockIdx.y / blocks, first = blockIdx.y % blocks * HEADS;
  const uint32_t first_head = head_kv * group + first, n_heads = group - first < HEADS ? group - first : HEADS;
  const float scale = flash.softcap != 0 ? flash.scale / flash.softcap : flash.scale;

  const float *of_row = data.queries + rows[piece.row].row * flash.query_row;
  for (uint32_t i = threadIdx.x; i < HEADS * flash.keys.dim; i += THREADS) {
    const uint32_t head = i / flash.keys.dim, dim = i % flash.keys.dim;
    queries[head * SF_KEY_DIMS + dim] =
        head < n_heads ? scale * of_row[(first_head + head) * flash.query_head + dim] : 0;
  }
  for (uint32_t i = threadIdx.x; i < piece.n_cells; i += THREADS) listed[i] = cells[piece.first + i];
  __syncthreads();

  const uint8_t *keys = data.keys + head_kv * flash.keys.head_stride;
  BY_TYPE(multiply, flash.keys, keys, listed, piece.n_cells, queries, scores);
  __syncthreads();

  const uint32_t width = flash.values.dim + 2;
  float *part = parts + (uint64_t(blockIdx.x) * flash.n_head + first_head) * width;
  for (uint32_t head = threadIdx.x / 32; head < HEADS; head += WARPS) {
    const float slope = data.slopes && head < n_heads ? data.slopes[first_head + head] : 1;
    float sum;
    const float *of_cells = bias ? bias + piece.first : nullptr;
    const float largest = soften(flash, slope, of_cells, piece.n_cells, scores[head], &sum);
    if (threadIdx.x % 32 == 0 && head < n_heads) {
      part[head * width + flash.values.dim] = largest;
      part[head * width + flash.values.dim + 1] = sum;
    }
  }
  __syncthreads();

  const uint32_t fours = flash.values.dim / 4, step = THREADS / fours, own = threadIdx.x / fours;
  const uint32_t dim = threadIdx.x % fours * 4;
  const uint8_t *values = data.values + head_kv * flash.values.head_stride;
  SfFour sums[HEADS] = {};
  if (own < step) BY_TYPE(weigh, flash.values, values, listed, piece.n_cells, own, step, dim, scores, sums);
SF_UNROLL
  for (int head = 0; head < HEADS; head++) {
    sums_of[threadIdx.x] = sums[head];
    __syncthreads();
    if (own == 0 && uint32_t(head) < n_heads) {
      SfFour sum = sums_of[threadIdx.x];
      for (uint32_t other = 1; other < step; other++) {
        const SfFour more = sums_of[other * fours + threadIdx.x];
        sum.x += more.x;
        sum.y += more.y;
        sum.z += more.z;
        sum.w += more.w;
      }
      float *to = part + head * width + dim;
      to[0] = sum.x;
      to[1] = sum.y;
      to[2] = sum.z;
      to[3] = sum.w;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(THREADS, 1)
    combine(SfFlash flash, SfFlashData data, const SfPiece *pieces, uint32_t first_piece, const SfFlashRow *rows,
            uint32_t first_row, const float *parts, SfOebOutcome *outcomes) {
  __shared__ float largest_of[WARPS];
  const uint32_t head = blockIdx.y, dims = flash.values.dim, width = dims + 2;
  const SfFlashRow row = rows[first_row + blockIdx.x];
  const float *of_head = parts + (uint64_t(row.first - first_piece) * flash.n_head + head) * width;
  const uint64_t next = uint64_t(flash.n_head) * width;
  const float sink = data.sinks ? data.sinks[head] : -INFINITY;

  float largest = sink;
  for (uint32_t i = threadIdx.x; i < row.n_pieces; i += THREADS) largest = fmaxf(largest, of_head[i * next + dims]);
  largest = largest_of_warp(largest);
  if (threadIdx.x % 32 == 0) largest_of[threadIdx.x / 32] = largest;
  __syncthreads();
  for (uint32_t warp = 0; warp < WARPS; warp++) largest = fmaxf(largest, largest_of[warp]);

  // Of a piece's weights, relative to the largest of all.
  auto relative = [&](const float *part) { return part[dims + 1] == 0 ? 0 : expf(part[dims] - largest); };
  SfMass mass = {0, 0, 0, 0, 0};
  for (uint32_t i = threadIdx.x; i < row.n_pieces; i += THREADS) {
    const float *part = of_head + i * next;
    mass = sf_counted(mass, pieces[row.first + i].group, relative(part) * part[dims + 1]);
  }
  mass = sf_over_block<THREADS>(mass);
  const float keys = mass.same + mass.bridge + mass.other;
  const float total = keys + (data.sinks ? expf(sink - largest) : 0);
  // A row that sees nothing attends to nothing.
  const float share = total == 0 ? 0 : 1 / total;
  const SfMass shares = {mass.same * share, mass.bridge * share, mass.other * share, row.n_same, row.n_bridge};
  const SfFactors factors = sf_oeb(shares, row.tau_max, data.sinks != nullptr);
  if (threadIdx.x == 0) outcomes[uint64_t(first_row + blockIdx.x) * flash.n_head + head] = factors.outcome;

  float *output = data.output + row.row * flash.output_row + head * flash.output_head;
  for (uint32_t dim = threadIdx.x; dim < dims; dim += THREADS) {
    float sum = 0;
    for (uint32_t i = 0; i < row.n_pieces; i++) {
      const float *part = of_head + i * next;
      sum += relative(part) * share * sf_factor(factors, pieces[row.first + i].group) * part[dim];
    }
    output[dim] = sum;
  }
}

}  // namespace

void sf_launch_attend(cudaStream_t stream, const SfFlash &flash, const SfFlashData &data, const uint32_t *cells,
                      const float *bias, const SfPiece *pieces, uint32_t first_piece, uint32_t n_pieces,
                      const SfFlashRow *rows, uint32_t first_row, uint32_t n, float *parts, SfOebOutcome *outcomes) {
  const uint32_t group = flash.n_head / flash.n_head_kv, blocks = (group + 7) / 8;
#define LAUNCH(HEADS)                                                                                        \
  SF_LAUNCH((attend<HEADS>), dim3(n_pieces, flash.n_head_kv * ((group + HEADS - 1) / HEADS)), THREADS, stream, \
            flash, data, cells, bias, pieces, first_piece, rows, parts)
  // A row that sees nothing has no pieces.
  if (n_pieces > 0) {
    // As few blocks as there can be, and of equally many heads.
    switch ((group + blocks - 1) / blocks) {
      case 1: LAUNCH(1); break;
      case 2: LAUNCH(2); break;
      case 3: LAUNCH(3); break;
      case 4: LAUNCH(4); break;
      case 5: LAUNCH(5); break;
      case 6: LAUNCH(6); break;
      case 7: LAUNCH(7); break;
      default: LAUNCH(8);
    }
  }
  SF_LAUNCH(combine, dim3(n, flash.n_head), THREADS, stream, flash, data, pieces, first_piece, rows, first_row, parts,
            outcomes);
}
