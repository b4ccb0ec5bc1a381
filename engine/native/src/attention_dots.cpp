// bfloat16 attention of few rows by AVX512-BF16 dot products: as it comes from memory, nothing is transposed.
#include "attention_pieces.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <immintrin.h>

#include "attention_row.h"
#include "attention_scratch.h"
#include "attention_transpose.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 says it of its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace pdserve {
namespace {

constexpr int PAIRED = 32;  // numbers of a vector
constexpr int MOST = 4;     // rows at a time

struct Memory {
  Scratch<bf16> queries, nothing;
  Scratch<float> scores, sums, state;
};

struct Work {
  int64_t rows, of_head;       // of the piece, of each KV head
  int64_t key_size, value_size;  // padded to whole vectors
  bf16 *queries, *nothing;     // nothing: a row of zeros
  float *scores, *sums, *max, *total;
};

inline __mmask32 lanes_left(int64_t size, int64_t at) {
  return size - at >= PAIRED ? 0xffffffffu : (1u << (size - at)) - 1;
}

inline __m512bh load_pairs(const bf16* row, __mmask32 mask) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, row); }

// Lane i of what comes back is the sum of vector i.
inline Floats sum_each(Floats* rows) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>();
  for (int i = 0; i < 8; ++i) exchange<8>(rows[i], rows[i + 8], lanes), rows[i] += rows[i + 8];
  for (int i = 0; i < 4; ++i) exchange<4>(rows[i], rows[i + 4], lanes), rows[i] += rows[i + 4];
  for (int i = 0; i < 2; ++i) exchange<2>(rows[i], rows[i + 2], lanes), rows[i] += rows[i + 2];
  exchange<1>(rows[0], rows[1], lanes);
  return rows[0] + rows[1];
}

// Scores of R rows with the tile's keys, of PARTS * 32 dimensions; of any number where PARTS is 0.
template <int R, int PARTS>
void score_rows(const Attention& call, const Work& work, const Tile<bf16>& tile, Tile<bf16>& next, int64_t row,
                int fetches) {
  const int64_t size = PARTS ? PARTS * PAIRED : work.key_size;
  const bf16* queries = work.queries + row * size;
  for (int strip = tile.from / LANES * LANES; strip < tile.to; strip += LANES) {
    Floats products[R][LANES];
    for (int i = 0; i < LANES; ++i) {
      if (fetches) next.ahead.step(PARTS ? PARTS : fetches);
      const bf16* key = tile.keys[strip + i];
      __m512 sums[R];
      for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
      for (int64_t d = 0; d < size; d += PAIRED) {
        __m512bh keys = load_pairs(key + d, PARTS ? 0xffffffffu : lanes_left(call.key_size, d));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          sums[r] = _mm512_dpbf16_ps(sums[r], keys, (__m512bh)_mm512_loadu_si512(queries + r * size + d));
      }
      for (int r = 0; r < R; ++r) products[r][i] = (Floats)sums[r];
    }
    for (int r = 0; r < R; ++r) store(work.scores + (row + r) * TILE + strip, sum_each(products[r]));
  }
}

// Adds the tile's values, weighted, to the sums of R rows. Sums lie as unpacking leaves them.
template <int R>
void add_values(const Attention& call, const Work& work, const Tile<bf16>& tile, Tile<bf16>& next, int64_t row,
                const uint32_t* weights, int fetches) {
  int first = tile.from / 2, last = (tile.to + 1) / 2;
  for (int64_t d = 0; d < work.value_size; d += PAIRED) {
    float* sums = work.sums + row * work.value_size + d;
    const __mmask32 mask = lanes_left(call.value_size, d);
    __m512 low[R], high[R];
    for (int r = 0; r < R; ++r) {
      low[r] = _mm512_loadu_ps(sums + r * work.value_size);
      high[r] = _mm512_loadu_ps(sums + r * work.value_size + LANES);
    }
    for (int pair = first; pair < last; ++pair) {
      if (fetches) next.ahead.step(2);
      __m512i one = _mm512_maskz_loadu_epi16(mask, tile.values[2 * pair] + d);
      __m512i two = _mm512_maskz_loadu_epi16(mask, tile.values[2 * pair + 1] + d);
      __m512bh pairs_low = (__m512bh)_mm512_unpacklo_epi16(one, two);
      __m512bh pairs_high = (__m512bh)_mm512_unpackhi_epi16(one, two);
      for (int r = 0; r < R; ++r) {
        __m512bh weight = (__m512bh)_mm512_set1_epi32(int(weights[r * TILE / 2 + pair]));
        low[r] = _mm512_dpbf16_ps(low[r], pairs_low, weight);
        high[r] = _mm512_dpbf16_ps(high[r], pairs_high, weight);
      }
    }
    for (int r = 0; r < R; ++r) {
      _mm512_storeu_ps(sums + r * work.value_size, low[r]);
      _mm512_storeu_ps(sums + r * work.value_size + LANES, high[r]);
    }
  }
}

template <int R>
void fold_rows(const Attention& call, const Piece& piece, const Work& work, const Tile<bf16>& tile, Tile<bf16>& next,
               int64_t row, bool fetching) {
  const int fetches = fetching ? int(work.key_size / PAIRED) : 0;
  if (call.key_size == 128) score_rows<R, 4>(call, work, tile, next, row, fetches);
  else if (call.key_size == 64) score_rows<R, 2>(call, work, tile, next, row, fetches);
  else score_rows<R, 0>(call, work, tile, next, row, fetches);
  alignas(64) uint32_t weights[R * TILE / 2];
  for (int r = 0; r < R; ++r) {
    Span span = seen(call, position_of(call, piece, (row + r) % work.of_head / group(call)), tile.base);
    float* scores = work.scores + (row + r) * TILE;
    int from = int(std::min<int64_t>(span.from - tile.base, TILE)), to = int(std::max<int64_t>(0, span.to - tile.base));
    float shrink = weigh_row(call, scores, from, to, work.max[row + r], work.total[row + r]);
    for (int i = 0; i < TILE; i += LANES) store(reinterpret_cast<bf16*>(weights + r * TILE / 2) + i, load(scores + i));
    if (shrink == 1) continue;
    float* sums = work.sums + (row + r) * work.value_size;
    for (int64_t d = 0; d < work.value_size; d += LANES) store(sums + d, load(sums + d) * shrink);
  }
  add_values<R>(call, work, tile, next, row, weights, fetches);
}

void fold_tile(const Attention& call, const Piece& piece, const Work& work, Tile<bf16>& tile, Tile<bf16>& next) {
  // Whole strips are read; slots that nobody wrote are not.
  for (int i = 0; i < TILE; ++i)
    if (i < tile.from || i >= tile.to) tile.keys[i] = tile.values[i] = work.nothing;
  int64_t row = tile.head * work.of_head, last = row + work.of_head;
  bool fetching = true;
  for (; row + MOST <= last; row += MOST, fetching = false)
    fold_rows<MOST>(call, piece, work, tile, next, row, fetching);
  switch (last - row) {
    case 3: return fold_rows<3>(call, piece, work, tile, next, row, fetching);
    case 2: return fold_rows<2>(call, piece, work, tile, next, row, fetching);
    case 1: return fold_rows<1>(call, piece, work, tile, next, row, fetching);
  }
}

Work begin(const Attention& call, const Piece& piece, Memory& memory) {
  Work work;
  work.of_head = int64_t(piece.tokens) * group(call), work.rows = piece.kv_heads * work.of_head;
  work.key_size = (call.key_size + PAIRED - 1) / PAIRED * PAIRED;
  work.value_size = (call.value_size + PAIRED - 1) / PAIRED * PAIRED;
  work.queries = memory.queries.get(work.rows * work.key_size);
  int64_t widest = std::max(work.key_size, work.value_size);
  work.nothing = memory.nothing.get(widest);
  work.scores = memory.scores.get(work.rows * TILE);
  work.sums = memory.sums.get(work.rows * work.value_size);
  work.max = memory.state.get(2 * work.rows), work.total = work.max + work.rows;
  memset(work.nothing, 0, size_t(widest) * sizeof(bf16));
  memset(work.queries, 0, size_t(work.rows * work.key_size) * sizeof(bf16));
  memset(work.scores, 0, size_t(work.rows) * TILE * sizeof(float));
  memset(work.sums, 0, size_t(work.rows * work.value_size) * sizeof(float));
  for (int64_t row = 0; row < work.rows; ++row) {
    Row at = find_row(call, piece, row);
    memcpy(work.queries + row * work.key_size, query_row<bf16>(call, piece, at), size_t(call.key_size) * sizeof(bf16));
    // A sink is one more score, already folded: its weight is exp(sink - sink) = 1, its value 0.
    work.max[row] = call.sinks ? call.sinks[at.head] : LOWEST;
    work.total[row] = call.sinks ? 1 : 0;
  }
  return work;
}

void write_out(const Attention& call, const Piece& piece, const Work& work) {
  for (int64_t row = 0; row < work.rows; ++row) {
    bf16* out = out_row<bf16>(call, piece, find_row(call, piece, row));
    for (int64_t d = 0; d < call.value_size; ++d) {
      // Unpacking took dimensions 0-3, 8-11, 16-19, 24-27 of each 32, then the others.
      int64_t in_vector = d % PAIRED, lane = in_vector / 8 * 4 + in_vector % 4 + (in_vector & 4) * 4;
      out[d] = to_bf16(work.sums[row * work.value_size + d - in_vector + lane] / work.total[row]);
    }
  }
}

}  // namespace

void attend_dots(const Attention& call, const Piece& piece) {
  thread_local Memory memory;
  Work work = begin(call, piece, memory);
  walk<bf16>(call, piece, [&](Tile<bf16>& tile, Tile<bf16>& next) { fold_tile(call, piece, work, tile, next); });
  write_out(call, piece, work);
}

}  // namespace pdserve

#endif
