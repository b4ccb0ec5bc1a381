// Attention on any CPU, in float32: what the pool holds is widened once per KV tile and used by all rows of a piece.
//
//     scores[row] = q[row] . keys          one multiply-add per dimension, in order: 64 lanes, one per position
//     m' = max(m, max(scores))   p = exp(scores - m')   a = exp(m - m')
//     l  = l * a + sum(p)                  acc = acc * a + p . values, one multiply-add per position, in order
//
// A row's numbers are combined in an order that its own position fixes: tiles lie at multiples of 64, rows share loads
// and nothing else, and a position that a row does not see takes no part. So its bits do not depend on company, chunk
// or block size.
//
// Source: online softmax (Milakov and Gimelshein 2018); FlashAttention-2 (Dao 2023), section 3.
#include "attention_pieces.h"
#include "attention_row.h"
#include "attention_scratch.h"
#include "attention_transpose.h"

namespace pdserve {
namespace {

struct Memory {
  Scratch<float> queries, keys, values, scores, sums, state;
};

// A piece on its way: `rows` rows, row = token * group + head.
struct Work {
  int64_t rows, key_size, value_size, padded;  // padded: value_size in whole vectors
  int fetches;  // cache lines of 16 positions, keys and values, for 16 dimensions
  float *queries, *keys, *scores, *sums, *max, *total;
  const float* values[TILE];  // row of each position of the tile
};

template <int R>
void score_rows(const Work& work, int64_t row) {
  Floats sums[R][STRIPS] = {};
  const float* queries = work.queries + row * work.key_size;
  for (int64_t d = 0; d < work.key_size; ++d) {
    Floats keys[STRIPS];
    for (int c = 0; c < STRIPS; ++c) keys[c] = load(work.keys + d * TILE + c * LANES);
    for (int r = 0; r < R; ++r) {
      Floats query = splat(queries[r * work.key_size + d]);
      for (int c = 0; c < STRIPS; ++c) sums[r][c] = fused(query, keys[c], sums[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < STRIPS; ++c) store(work.scores + (row + r) * TILE + c * LANES, sums[r][c]);
}

template <int R, int C>
void add_values(const Work& work, int64_t row, int64_t column, int from, int to) {
  Floats sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = load(work.sums + (row + r) * work.padded + column + c * LANES);
  for (int i = from; i < to; ++i) {
    Floats values[C];
    for (int c = 0; c < C; ++c) values[c] = load(work.values[i] + column + c * LANES);
    for (int r = 0; r < R; ++r) {
      Floats weight = splat(work.scores[(row + r) * TILE + i]);
      for (int c = 0; c < C; ++c) sums[r][c] = fused(weight, values[c], sums[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(work.sums + (row + r) * work.padded + column + c * LANES, sums[r][c]);
}

template <int R>
void add_values(const Work& work, int64_t row, int from, int to) {
  constexpr int C = R == 1 ? 8 : 4;
  int64_t column = 0;
  for (; column + C * LANES <= work.padded; column += C * LANES) add_values<R, C>(work, row, column, from, to);
  for (; column < work.padded; column += LANES) add_values<R, 1>(work, row, column, from, to);
}

void fold(const Attention& call, const Work& work, int64_t row, int from, int to) {
  float shrink = weigh_row(call, work.scores + row * TILE, from, to, work.max[row], work.total[row]);
  if (shrink == 1) return;
  float* values = work.sums + row * work.padded;
  for (int64_t d = 0; d < work.padded; d += LANES) store(values + d, load(values + d) * shrink);
}

// `rows` rows from `row` on that all see [from, to) of the tile.
void fold_rows(const Attention& call, const Work& work, int64_t row, int64_t rows, int from, int to) {
  int64_t last = row + rows;
  for (int64_t at = row; at < last; ++at) fold(call, work, at, from, to);
  for (; row + 4 <= last; row += 4) add_values<4>(work, row, from, to);
  for (; row + 2 <= last; row += 2) add_values<2>(work, row, from, to);
  for (; row < last; ++row) add_values<1>(work, row, from, to);
}

#if defined(__AVX512F__)
template <class T>
void turn(const T* const* rows, int64_t d, float* to) {
  Floats square[LANES];
  for (int i = 0; i < LANES; ++i) square[i] = load(rows[i] + d);
  transpose(square);
  for (int i = 0; i < LANES; ++i) store(to + i * TILE, square[i]);
}
#endif

static inline float widen(float value) { return value; }
static inline float widen(bf16 value) { return to_float(value); }

// Keys, dimension-major; where the tile has none it is 0: what lies in slots that nobody wrote is not read.
template <class T>
void stage_keys(const Work& work, const Tile<T>& tile, Tile<T>& next) {
  if (tile.from > 0 || tile.to < TILE) memset(work.keys, 0, size_t(work.key_size) * TILE * sizeof(float));
  for (int strip = 0; strip < TILE; strip += LANES) {
    int first = std::max(tile.from, strip), last = std::min(tile.to, strip + LANES);
    int64_t d = 0;
#if defined(__AVX512F__)
    if (last - first == LANES)
      for (; d + LANES <= work.key_size; d += LANES) {
        next.ahead.step(work.fetches / 2);  // the other half costs more here than it brings
        turn(tile.keys + strip, d, work.keys + d * TILE + strip);
      }
#endif
    for (int i = first; i < last; ++i)
      for (int64_t rest = d; rest < work.key_size; ++rest) work.keys[rest * TILE + i] = widen(tile.keys[i][rest]);
  }
}

// Values in whole vectors: where they lie if that is what they are, else a widened copy.
template <class T>
void stage_values(Work& work, Memory& memory, const Tile<T>& tile) {
  if (sizeof(T) == sizeof(float) && work.padded == work.value_size) {
    memcpy(work.values, tile.values, sizeof work.values);
    return;
  }
  float* copy = memory.values.get(TILE * work.padded);
  for (int i = tile.from; i < tile.to; ++i) {
    float* row = copy + i * work.padded;
    int64_t d = 0;
    for (; d + LANES <= work.value_size; d += LANES) store(row + d, load(tile.values[i] + d));
    for (; d < work.padded; ++d) row[d] = d < work.value_size ? widen(tile.values[i][d]) : 0;
    work.values[i] = row;
  }
}

template <class T>
void fold_tile(const Attention& call, const Piece& piece, const Work& work, const Tile<T>& tile) {
  // Tokens [early, late) see something of the tile.
  int64_t base = tile.base, early = std::max<int64_t>(0, base - position_of(call, piece, 0)), late = piece.tokens;
  while (late > early && first_seen(call, position_of(call, piece, late - 1)) >= base + TILE) --late;
  int share = group(call);
  int64_t head_row = int64_t(tile.head) * piece.tokens * share, row = head_row + early * share;
  int64_t last = head_row + late * share;
  for (; row + 4 <= last; row += 4) score_rows<4>(work, row);
  for (; row + 2 <= last; row += 2) score_rows<2>(work, row);
  if (row < last) score_rows<1>(work, row);
  for (int64_t token = early, next; token < late; token = next) {
    Span span = seen(call, position_of(call, piece, token), base);
    for (next = token + 1; next < late; ++next) {
      Span other = seen(call, position_of(call, piece, next), base);
      if (other.from != span.from || other.to != span.to) break;
    }
    fold_rows(call, work, head_row + token * share, (next - token) * share, int(span.from - base), int(span.to - base));
  }
}

template <class T>
Work begin(const Attention& call, const Piece& piece, Memory& memory) {
  Work work;
  work.rows = int64_t(piece.kv_heads) * piece.tokens * group(call);
  work.key_size = call.key_size, work.value_size = call.value_size;
  work.padded = (work.value_size + LANES - 1) / LANES * LANES;
  work.fetches = int((work.key_size + work.value_size) * LANES * sizeof(T) / (64 * (work.key_size / LANES + 1))) + 1;
  work.queries = memory.queries.get(work.rows * work.key_size);
  work.keys = memory.keys.get(work.key_size * TILE);
  work.scores = memory.scores.get(work.rows * TILE);
  work.sums = memory.sums.get(work.rows * work.padded);
  work.max = memory.state.get(2 * work.rows), work.total = work.max + work.rows;
  memset(work.sums, 0, size_t(work.rows * work.padded) * sizeof(float));
  for (int64_t row = 0; row < work.rows; ++row) {
    Row at = find_row(call, piece, row);
    const T* query = query_row<T>(call, piece, at);
    for (int64_t d = 0; d < work.key_size; ++d) work.queries[row * work.key_size + d] = widen(query[d]);
    // A sink is one more score, already folded: its weight is exp(sink - sink) = 1, its value 0.
    work.max[row] = call.sinks ? call.sinks[at.head] : LOWEST;
    work.total[row] = call.sinks ? 1 : 0;
  }
  return work;
}

static inline void narrow(float value, float* to) { *to = value; }
static inline void narrow(float value, bf16* to) { *to = to_bf16(value); }

template <class T>
void write_out(const Attention& call, const Piece& piece, const Work& work) {
  for (int64_t row = 0; row < work.rows; ++row) {
    T* out = out_row<T>(call, piece, find_row(call, piece, row));
    float* sums = work.sums + row * work.padded;
    for (int64_t d = 0; d < work.padded; d += LANES) store(sums + d, load(sums + d) / work.total[row]);
    for (int64_t d = 0; d < work.value_size; ++d) narrow(sums[d], out + d);
  }
}

template <class T>
void attend_piece(const Attention& call, const Piece& piece) {
  thread_local Memory memory;
  Work work = begin<T>(call, piece, memory);
  walk<T>(call, piece, [&](Tile<T>& tile, Tile<T>& next) {
    stage_keys(work, tile, next);
    stage_values(work, memory, tile);
    fold_tile(call, piece, work, tile);
  });
  write_out<T>(call, piece, work);
}

}  // namespace

void attend_float32(const Attention& call, const Piece& piece) { attend_piece<float>(call, piece); }
void attend_portable_bf16(const Attention& call, const Piece& piece) { attend_piece<bf16>(call, piece); }

}  // namespace pdserve
