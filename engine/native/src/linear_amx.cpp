// bf16 by AMX: a block of rows is a row of tiles; two blocks by one strip are four tiles of sums.
#include "linear_call.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace pdserve {
namespace {

constexpr int64_t ROW_TILE_BYTES = 64;                               // of one row in a tile: 16 pairs
constexpr int64_t STEP_BYTES = TILE_RECORDS * RECORD_BYTES;          // of a strip: two tiles
constexpr int64_t STEPS_IN_CACHE = 16;                               // 32 KiB of a strip stay in the first-level cache
constexpr int64_t AHEAD_BYTES = 2048;                                // of reading, into the second-level cache
constexpr int64_t STEP_LINES = STEP_BYTES / 64;

// Tiles 0 to 3: sums, 4 and 5: rows, 6 and 7: the matrix.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t block_rows) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = 64;
      rows[tile] = tile < 6 ? uint8_t(block_rows) : 16;
    }
  }
};

void pack_block(const Call& call, int64_t block) {
  const int64_t first_row = block * call.block_rows, rows = std::min(call.block_rows, call.rows - first_row);
  const int64_t depth_bytes = call.matrix.depth * 2, whole = depth_bytes / ROW_TILE_BYTES;
  char* to = call.packed_rows + block * call.block_bytes;
  if (rows < call.block_rows || whole * ROW_TILE_BYTES < depth_bytes) memset(to, 0, call.block_bytes);
  const int64_t tile_bytes = call.block_rows * ROW_TILE_BYTES;
  for (int64_t row = 0; row < rows; ++row) {
    const char* x = call.x + (first_row + row) * call.x_row_bytes;
    char* at = to + row * ROW_TILE_BYTES;
    for (int64_t tile = 0; tile < whole; ++tile, at += tile_bytes, x += ROW_TILE_BYTES) memcpy(at, x, ROW_TILE_BYTES);
    memcpy(at, x, depth_bytes - whole * ROW_TILE_BYTES);
  }
}

struct Span {  // of depth, in steps of 32
  int64_t first, last;
};

// Adds the products of a span of depth to the sums [BLOCKS * block_rows, 32] of one strip.
template <int BLOCKS>
void multiply_span(const Call& call, int64_t block, const char* strip, Span span, int64_t ahead, int64_t first_line,
                   int64_t lines, float* sums) {
  const int64_t tile_bytes = call.block_rows * ROW_TILE_BYTES, block_sums = call.block_rows * STRIP;
  const char* rows = call.packed_rows + block * call.block_bytes + span.first * tile_bytes;
  const char* at = strip + span.first * STEP_BYTES;
  if (span.first) {
    _tile_loadd(0, sums, RECORD_BYTES);
    _tile_loadd(1, sums + LANES, RECORD_BYTES);
    if constexpr (BLOCKS == 2) {
      _tile_loadd(2, sums + block_sums, RECORD_BYTES);
      _tile_loadd(3, sums + block_sums + LANES, RECORD_BYTES);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (BLOCKS == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t step = span.first; step < span.last; ++step, at += STEP_BYTES, rows += tile_bytes) {
    const char* later = at + ahead + first_line * 64;
    for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(later + line * 64, 0, 2);
    _tile_loadd(4, rows, ROW_TILE_BYTES);
    _tile_loadd(6, at, RECORD_BYTES);
    _tile_loadd(7, at + 64, RECORD_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (BLOCKS == 2) {
      _tile_loadd(5, rows + call.block_bytes, ROW_TILE_BYTES);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, RECORD_BYTES);
  _tile_stored(1, sums + LANES, RECORD_BYTES);
  if constexpr (BLOCKS == 2) {
    _tile_stored(2, sums + block_sums, RECORD_BYTES);
    _tile_stored(3, sums + block_sums + LANES, RECORD_BYTES);
  }
}

// While one span of the strip is multiplied with every pair of blocks, the next one is fetched, a share with each pair.
void multiply_strip(const Call& call, int64_t first_block, int64_t last_block, int64_t strip, float* sums) {
  const char* data = static_cast<const char*>(call.matrix.data) + strip * call.strip_bytes;
  const int64_t steps = call.records / TILE_RECORDS, pairs = (last_block - first_block + 1) / 2;
  const int64_t in_cache = pairs == 1 ? steps : STEPS_IN_CACHE, lines = (STEP_LINES + pairs - 1) / pairs;
  for (int64_t first = 0; first < steps; first += in_cache) {
    const Span span{first, std::min(steps, first + in_cache)};
    const int64_t ahead = pairs == 1 ? AHEAD_BYTES : (span.last - span.first) * STEP_BYTES;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t block = first_block + 2 * pair, first_line = pair * lines;
      const int64_t my_lines = std::min(lines, STEP_LINES - first_line);
      float* mine = sums + (block - first_block) * call.block_rows * STRIP;
      if (block + 1 < last_block) multiply_span<2>(call, block, data, span, ahead, first_line, my_lines, mine);
      else multiply_span<1>(call, block, data, span, ahead, first_line, my_lines, mine);
    }
  }
  const int64_t first_row = first_block * call.block_rows;
  finish(call, strip, first_row, std::min(call.rows, last_block * call.block_rows) - first_row, sums);
}

void compute(const Call& call, int64_t first_block, int64_t last_block, int64_t first_strip, int64_t last_strip) {
  alignas(64) float sums[MAX_CHUNK_ROWS * STRIP];
  const TileConfig config(call.block_rows);
  __asm__ volatile("" ::: "memory");  // GCC's intrinsics do not say that they read all of what they point at
  _tile_loadconfig(&config);
  for (int64_t strip = first_strip; strip < last_strip; ++strip)
    multiply_strip(call, first_block, last_block, strip, sums);
  _tile_release();
}

bool tiles_granted() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, for all threads of the process
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

constexpr Kernel KERNEL{16, ROW_TILE_BYTES / TILE_RECORDS, pack_block, compute};

}  // namespace

const Kernel* amx_kernel() {
  static const bool granted = tiles_granted();
  return granted ? &KERNEL : nullptr;
}

}  // namespace pdserve

#else

namespace pdserve {
const Kernel* amx_kernel() { return nullptr; }
}  // namespace pdserve

#endif
