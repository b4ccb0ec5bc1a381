// bf16 by AMX: a block of rows is one or two tiles, a strip two; their sums are two or four.
#include "amx.h"
#include "linear_call.h"

#if PDSERVE_AMX

#include <algorithm>

namespace pdserve {
namespace {

constexpr int64_t ROW_TILE_BYTES = 64;                       // of one row in a tile: 16 pairs
constexpr int64_t STEP_BYTES = TILE_RECORDS * RECORD_BYTES;  // of a strip: two tiles
constexpr int64_t STEP_LINES = STEP_BYTES / 64;
constexpr int64_t SPAN_STEPS = 8;      // of a strip and of a block: 32 KiB, which stay in the first-level cache
constexpr int64_t AHEAD_BYTES = 512;  // of reading, into the second-level cache; beyond 1024 it is slower by a tenth

// Tiles 0 to 3: sums, 4 and 5: rows, 6 and 7: the matrix.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t tile_rows) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = 64;
      rows[tile] = tile < 6 ? uint8_t(tile_rows) : 16;
    }
  }
};

// A block of more than 16 rows, always an even number, is two tiles.
int64_t rows_in_tile(const Call& call) { return call.block_rows > 16 ? call.block_rows / 2 : call.block_rows; }

// Spans of depth, in each the blocks, in each the steps of 32 depths, in each the rows: as they are read.
char* rows_of(const Call& call, int64_t block, int64_t step) {
  const int64_t span = step / SPAN_STEPS, steps = call.records / TILE_RECORDS;
  const int64_t span_steps = std::min(SPAN_STEPS, steps - span * SPAN_STEPS);
  const int64_t before = span * SPAN_STEPS * call.blocks + block * span_steps + step % SPAN_STEPS;
  return call.packed_rows + before * call.block_rows * ROW_TILE_BYTES;
}

void pack_block(const Call& call, int64_t block) {
  const int64_t first_row = block * call.block_rows, rows = std::min(call.block_rows, call.rows - first_row);
  const int64_t depth_bytes = call.matrix.depth * 2, steps = call.records / TILE_RECORDS;
  const char* x = call.x + first_row * call.x_row_bytes;
  for (int64_t step = 0; step < steps; ++step, x += ROW_TILE_BYTES) {
    char* to = rows_of(call, block, step);
    const int64_t bytes = std::min(ROW_TILE_BYTES, depth_bytes - step * ROW_TILE_BYTES);
    for (int64_t row = 0; row < rows; ++row, to += ROW_TILE_BYTES) {
      if (bytes == ROW_TILE_BYTES) {
        memcpy(to, x + row * call.x_row_bytes, ROW_TILE_BYTES);
      } else {
        memset(to, 0, ROW_TILE_BYTES);
        memcpy(to, x + row * call.x_row_bytes, bytes);
      }
    }
  }
}

struct Fetch {  // lines of the strip to fetch at each step
  int64_t ahead, lines;
};

// Adds the products of a span of depth to the sums [TILES * tile_rows, 32] of one strip.
template <int TILES>
void multiply_span(const char* rows, const char* strip, int64_t steps, int64_t tile_rows, bool first, Fetch fetch,
                   float* sums) {
  const int64_t tile_bytes = tile_rows * ROW_TILE_BYTES, tile_sums = tile_rows * STRIP;
  if (!first) {
    _tile_loadd(0, sums, RECORD_BYTES);
    _tile_loadd(1, sums + LANES, RECORD_BYTES);
    if constexpr (TILES == 2) {
      _tile_loadd(2, sums + tile_sums, RECORD_BYTES);
      _tile_loadd(3, sums + tile_sums + LANES, RECORD_BYTES);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TILES == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t step = 0; step < steps; ++step, strip += STEP_BYTES, rows += TILES * tile_bytes) {
    for (int64_t line = 0; line < fetch.lines; ++line) __builtin_prefetch(strip + fetch.ahead + line * 64, 0, 2);
    _tile_loadd(4, rows, ROW_TILE_BYTES);
    _tile_loadd(6, strip, RECORD_BYTES);
    _tile_loadd(7, strip + 64, RECORD_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TILES == 2) {
      _tile_loadd(5, rows + tile_bytes, ROW_TILE_BYTES);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, RECORD_BYTES);
  _tile_stored(1, sums + LANES, RECORD_BYTES);
  if constexpr (TILES == 2) {
    _tile_stored(2, sums + tile_sums, RECORD_BYTES);
    _tile_stored(3, sums + tile_sums + LANES, RECORD_BYTES);
  }
}

// While one span of the strip is multiplied with every block, the next one is fetched, a share with each.
void multiply_strip(const Call& call, int64_t strip, float* sums) {
  const char* data = static_cast<const char*>(call.matrix.data) + strip * call.strip_bytes;
  const int64_t steps = call.records / TILE_RECORDS, tile_rows = rows_in_tile(call);
  const int64_t in_cache = call.blocks == 1 ? steps : SPAN_STEPS, lines = (STEP_LINES + call.blocks - 1) / call.blocks;
  const auto multiply_one = call.block_rows > 16 ? multiply_span<2> : multiply_span<1>;
  for (int64_t first = 0; first < steps; first += in_cache) {
    const int64_t count = std::min(in_cache, steps - first);
    Fetch fetch{call.blocks == 1 ? AHEAD_BYTES : count * STEP_BYTES, lines};
    for (int64_t block = 0; block < call.blocks; ++block, fetch.ahead += lines * 64) {
      const int64_t first_row = block * call.block_rows;
      float* mine = sums + first_row * STRIP;
      multiply_one(rows_of(call, block, first), data + first * STEP_BYTES, count, tile_rows, first == 0, fetch, mine);
      if (first + count == steps)
        finish(call, strip, first_row, std::min(call.rows - first_row, call.block_rows), mine);
    }
  }
}

void compute(const Call& call, int64_t first_strip, int64_t last_strip) {
  alignas(64) float sums[MAX_CALL_ROWS * STRIP];
  const TileConfig config(rows_in_tile(call));
  stores_done();
  _tile_loadconfig(&config);
  for (int64_t strip = first_strip; strip < last_strip; ++strip) multiply_strip(call, strip, sums);
  _tile_release();
}

constexpr Kernel KERNEL{32, ROW_TILE_BYTES / TILE_RECORDS, pack_block, compute};

}  // namespace

const Kernel* amx_kernel() {
  return amx_ready() ? &KERNEL : nullptr;
}

}  // namespace pdserve

#else

namespace pdserve {
const Kernel* amx_kernel() { return nullptr; }
}  // namespace pdserve

#endif
