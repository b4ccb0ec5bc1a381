// bfloat16 attention by AMX, with 16 queries as the columns of a tile:
//
//     S^T [positions, queries] = K Q^T      K as it lies in the pool, Q^T in pairs of dimensions, once per piece
//     P^T = softmax of each column          no sum across lanes; written in pairs of positions, as a product takes them
//     O^T [dimensions, queries] += V^T P^T  V^T once per KV tile, for all queries of the piece
//
// Every array is a row of tiles of 16 times 64 bytes. Weights are rounded to bfloat16; sums are float32. The order of
// sums depends on the place of a query in its piece only by what is rounded: no promise of equal bits here.
#include "amx.h"
#include "attention_pieces.h"

#if defined(PDSERVE_AMX)

#include "attention_amx_softmax.h"
#include "attention_scratch.h"
#include "attention_transpose.h"

namespace pdserve {
namespace {

constexpr int WIDE = 128;          // positions of a KV tile here
constexpr int PAIRED = 32;         // positions, or dimensions, that one tile multiplication sums
constexpr int TILE_FLOATS = 256;   // a tile
constexpr int TILE_HALVES = 512;

struct Memory {
  Scratch<bf16> queries, keys, values;
  Scratch<float> scores, sums;
  Scratch<uint32_t> weights;
  Scratch<Columns> columns;
};

struct Work {
  int64_t rows, tiles;         // columns of all tiles, tiles of 16 columns
  int key_tiles, value_tiles;  // of 32 and 16 dimensions; value_tiles is even
  Scaling scaling;
  bf16 *queries, *key_copy, *values;
  float *scores, *sums;
  uint32_t* weights;  // pairs of bfloat16
  Columns* columns;
  const bf16* keys[WIDE / LANES];  // tiles of 16 positions
  int64_t key_stride;              // bytes
};

inline __mmask32 lanes_left(int64_t size, int64_t at) {
  return size - at >= 32 ? 0xffffffffu : size <= at ? 0 : (1u << (size - at)) - 1;
}

inline Floats load_halves(const bf16* row, __mmask32 mask) { return (Floats)_mm512_maskz_loadu_epi16(mask, row); }

// Q^T of a piece: tile [column tile][32 dimensions], row = pair of dimensions.
void pack_queries(const Attention& call, const Piece& piece, const Work& work) {
  for (int64_t tile = 0; tile < work.tiles; ++tile)
    for (int part = 0; part < work.key_tiles; ++part) {
      Floats square[LANES] = {};
      __mmask32 mask = lanes_left(call.key_size, part * PAIRED);
      for (int64_t row = tile * LANES; row < std::min(work.rows, (tile + 1) * LANES); ++row) {
        const bf16* query = query_row<bf16>(call, piece, find_row(call, piece, row));
        square[row % LANES] = load_halves(query + part * PAIRED, mask);
      }
      transpose(square);
      float* to = reinterpret_cast<float*>(work.queries + (tile * work.key_tiles + part) * TILE_HALVES);
      for (int i = 0; i < LANES; ++i) store(to + i * LANES, square[i]);
    }
}

// Keys of [from, to): where they lie if 16 neighbours are a tile, else a copy.
void stage_keys(const Attention& call, Work& work, const bf16* const* rows, int from, int to) {
  if (call.block_size % LANES == 0 && call.key_size % PAIRED == 0) {
    work.key_stride = call.key_size * 2;
    for (int at = 0; at < WIDE; at += LANES) {
      // Tiles from a multiple of 16 on lie in one block; beyond the end any block will do, since nobody sees it.
      const bf16* first = at + LANES <= from || at >= to ? nullptr : at >= from ? rows[at] : rows[from] - (from - at) * call.key_size;
      work.keys[at / LANES] = first ? first : rows[from] - from % LANES * call.key_size;
    }
    return;
  }
  int64_t width = work.key_tiles * PAIRED;
  work.key_stride = width * 2;
  for (int at = from; at < to; ++at)
    for (int part = 0; part < work.key_tiles; ++part)
      store(reinterpret_cast<float*>(work.key_copy + at * width + part * PAIRED),
            load_halves(rows[at] + part * PAIRED, lanes_left(call.key_size, part * PAIRED)));
  for (int at = 0; at < WIDE; at += LANES) work.keys[at / LANES] = work.key_copy + at * width;
}

// V^T: tile [16 dimensions][32 positions]; positions outside [from, to) are 0, whatever lies there.
void stage_values(const Attention& call, const Work& work, const bf16* const* rows, int from, int to) {
  for (int part = from / PAIRED; part * PAIRED < to; ++part)
    for (int64_t d = 0; d < call.value_size; d += PAIRED) {
      __mmask32 mask = lanes_left(call.value_size, d);
      Floats low[LANES], high[LANES];
      for (int pair = 0; pair < LANES; ++pair) {
        __m512i two[2];
        for (int i = 0; i < 2; ++i) {
          int at = part * PAIRED + 2 * pair + i;
          two[i] = at >= from && at < to ? _mm512_maskz_loadu_epi16(mask, rows[at] + d) : _mm512_setzero_si512();
        }
        low[pair] = (Floats)_mm512_unpacklo_epi16(two[0], two[1]);
        high[pair] = (Floats)_mm512_unpackhi_epi16(two[0], two[1]);
      }
      transpose(low), transpose(high);
      // Unpacking took dimensions 0-3, 8-11, 16-19, 24-27 and the others.
      for (int i = 0; i < LANES; ++i)
        for (int upper = 0; upper < 2; ++upper) {
          int dimension = i / 4 * 8 + upper * 4 + i % 4;
          int64_t tile = (d + dimension) / LANES * (WIDE / PAIRED) + part;
          float* to_row = reinterpret_cast<float*>(work.values + tile * TILE_HALVES) + dimension % LANES * LANES;
          store(to_row, upper ? high[i] : low[i]);
        }
    }
}

// Scores of positions [32 * part, 32 * part + 32) for COLUMNS tiles of queries.
template <int COLUMNS>
void score(const Work& work, int64_t tile, int part) {
  stores_done();
  _tile_zero(0);
  _tile_zero(1);
  if (COLUMNS == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const bf16* queries = work.queries + tile * work.key_tiles * TILE_HALVES;
  for (int i = 0; i < work.key_tiles; ++i) {
    _tile_loadd(4, work.keys[2 * part] + i * PAIRED, work.key_stride);
    _tile_loadd(6, queries + i * TILE_HALVES, 64);
    _tile_loadd(5, work.keys[2 * part + 1] + i * PAIRED, work.key_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (COLUMNS == 2) {
      _tile_loadd(7, queries + (work.key_tiles + i) * TILE_HALVES, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* scores = work.scores + part * 2 * TILE_FLOATS;
  _tile_stored(0, scores, 64);
  _tile_stored(1, scores + TILE_FLOATS, 64);
  if (COLUMNS == 2) {
    _tile_stored(2, scores + WIDE * LANES, 64);
    _tile_stored(3, scores + WIDE * LANES + TILE_FLOATS, 64);
  }
}

// Adds V^T P^T of positions [32 * first, 32 * last) to 32 dimensions of COLUMNS tiles of queries.
template <int COLUMNS>
void add_values(const Work& work, int64_t tile, int value_tile, int first, int last) {
  float* sums = work.sums + (tile * work.value_tiles + value_tile) * TILE_FLOATS;
  float* others = sums + work.value_tiles * TILE_FLOATS;
  const bf16* values = work.values + value_tile * (WIDE / PAIRED) * TILE_HALVES;
  stores_done();
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + TILE_FLOATS, 64);
  if (COLUMNS == 2) {
    _tile_loadd(2, others, 64);
    _tile_loadd(3, others + TILE_FLOATS, 64);
  }
  for (int part = first; part < last; ++part) {
    _tile_loadd(4, values + part * TILE_HALVES, 64);
    _tile_loadd(6, work.weights + part * TILE_FLOATS, 64);
    _tile_loadd(5, values + (WIDE / PAIRED + part) * TILE_HALVES, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (COLUMNS == 2) {
      _tile_loadd(7, work.weights + WIDE / 2 * LANES + part * TILE_FLOATS, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + TILE_FLOATS, 64);
  if (COLUMNS == 2) {
    _tile_stored(2, others, 64);
    _tile_stored(3, others + TILE_FLOATS, 64);
  }
}

// One KV tile for COLUMNS tiles of queries, which see positions [from, to) of it between them.
template <int COLUMNS>
void fold(const Work& work, int64_t tile, int from, int to, bool masked) {
  int first = from / PAIRED, last = (to + PAIRED - 1) / PAIRED;
  for (int part = first; part < last; ++part) score<COLUMNS>(work, tile, part);
  for (int i = 0; i < COLUMNS; ++i) {
    Columns& columns = work.columns[tile + i];
    float* scores = work.scores + i * WIDE * LANES;
    uint32_t* weights = work.weights + i * WIDE / 2 * LANES;
    __m512 shrink;
    bool shrunk = (masked ? weigh<true> : weigh<false>)(work.scaling, columns, scores, first * PAIRED, last * PAIRED,
                                                        weights, &shrink);
    if (!shrunk) continue;
    float* sums = work.sums + (tile + i) * work.value_tiles * TILE_FLOATS;
    for (int64_t d = 0; d < work.value_tiles * TILE_FLOATS; d += LANES)
      _mm512_storeu_ps(sums + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), shrink));
  }
  for (int value_tile = 0; value_tile < work.value_tiles; value_tile += 2)
    add_values<COLUMNS>(work, tile, value_tile, first, last);
}

// Fills in what each column sees of the tile at `base`; columns without a query see what the last one sees.
struct Sight {
  int from, to;
  bool masked;
};

Sight look(const Attention& call, const Piece& piece, const Work& work, int64_t tile, int64_t tiles, int64_t base) {
  int share = group(call);
  int64_t earliest = position_of(call, piece, tile * LANES / share);
  int64_t latest = position_of(call, piece, std::min(work.rows, (tile + tiles) * LANES) / share);
  if (earliest + 1 >= base + WIDE && first_seen(call, latest) <= base) return {0, WIDE, false};
  Sight sight{WIDE, 0, false};
  int most_from = 0, least_to = WIDE;
  for (int64_t row = tile * LANES; row < (tile + tiles) * LANES; ++row) {
    int64_t position = position_of(call, piece, std::min(row, work.rows - 1) / share);
    int from = int(std::min<int64_t>(WIDE, std::max<int64_t>(0, first_seen(call, position) - base)));
    int to = int(std::max<int64_t>(from, std::min<int64_t>(WIDE, position + 1 - base)));
    work.columns[row / LANES].from[row % LANES] = from, work.columns[row / LANES].to[row % LANES] = to;
    if (from < to) sight.from = std::min(sight.from, from), sight.to = std::max(sight.to, to);
    most_from = std::max(most_from, from), least_to = std::min(least_to, to);
  }
  sight.masked = most_from > sight.from / PAIRED * PAIRED || least_to < (sight.to + PAIRED - 1) / PAIRED * PAIRED;
  return sight;
}

void fold_tile(const Attention& call, const Piece& piece, Work& work, int64_t base) {
  int64_t first = position_of(call, piece, 0), last = position_of(call, piece, piece.tokens - 1);
  int from = int(std::max<int64_t>(0, first_seen(call, first) - base)), to = int(std::min<int64_t>(WIDE, last + 1 - base));
  const bf16 *keys[WIDE], *values[WIDE];
  Runs<bf16, WIDE> runs;
  runs.find(call, piece, {base + from, base + to});
  runs.rows(call, piece.kv_head, keys + from, values + from);
  stage_keys(call, work, keys, from, to);
  stage_values(call, work, values, from, to);
  for (int64_t tile = 0; tile < work.tiles; tile += 2) {
    int64_t tiles = std::min<int64_t>(2, work.tiles - tile);
    Sight sight = look(call, piece, work, tile, tiles, base);
    if (sight.from >= sight.to) continue;
    (tiles == 2 ? fold<2> : fold<1>)(work, tile, sight.from, sight.to, sight.masked);
  }
}

void write_out(const Attention& call, const Piece& piece, const Work& work) {
  for (int64_t tile = 0; tile < work.tiles; ++tile)
    for (int value_tile = 0; value_tile * LANES < call.value_size; ++value_tile) {
      const float* sums = work.sums + (tile * work.value_tiles + value_tile) * TILE_FLOATS;
      Floats square[LANES], total = load(work.columns[tile].total);
      for (int i = 0; i < LANES; ++i) square[i] = load(sums + i * LANES) / total;
      transpose(square);
      int64_t size = std::min<int64_t>(LANES, call.value_size - value_tile * LANES);
      for (int64_t row = tile * LANES; row < std::min(work.rows, (tile + 1) * LANES); ++row) {
        bf16 halves[LANES];
        store(halves, square[row % LANES]);
        memcpy(out_row<bf16>(call, piece, find_row(call, piece, row)) + value_tile * LANES, halves, size * 2);
      }
    }
}

}  // namespace

void attend_amx(const Attention& call, const Piece& piece) {
  thread_local Memory memory;
  int share = group(call);
  Work work{int64_t(piece.tokens) * share, 0, 0, 0, Scaling(call.scale, call.softcap)};
  work.tiles = (work.rows + LANES - 1) / LANES;
  work.key_tiles = (call.key_size + PAIRED - 1) / PAIRED;
  work.value_tiles = (call.value_size + PAIRED - 1) / PAIRED * 2;
  work.queries = memory.queries.get(work.tiles * work.key_tiles * TILE_HALVES);
  work.key_copy = memory.keys.get(WIDE * work.key_tiles * PAIRED);
  work.values = memory.values.get(work.value_tiles * LANES * WIDE);
  work.scores = memory.scores.get(2 * WIDE * LANES);
  work.weights = memory.weights.get(WIDE * LANES);
  work.sums = memory.sums.get(work.tiles * work.value_tiles * TILE_FLOATS);
  work.columns = memory.columns.get(work.tiles);
  memset(work.sums, 0, size_t(work.tiles * work.value_tiles) * TILE_FLOATS * sizeof(float));
  for (int64_t row = 0; row < work.tiles * LANES; ++row) {
    // A sink is one more score, already folded: its weight is 1, its value 0.
    int64_t head = int64_t(piece.kv_head) * share + row % share;
    work.columns[row / LANES].max[row % LANES] = call.sinks ? call.sinks[head] * 1.44269504f : LOWEST;
    work.columns[row / LANES].total[row % LANES] = call.sinks ? 1 : 0;
  }
  pack_queries(call, piece, work);
  int64_t last = position_of(call, piece, piece.tokens - 1);
  {
    Tiles tiles;
    for (int64_t base = first_seen(call, position_of(call, piece, 0)) / WIDE * WIDE; base <= last; base += WIDE)
      fold_tile(call, piece, work, base);
  }
  write_out(call, piece, work);
}

}  // namespace pdserve

#endif
