// One product on its way through a kernel: how the matrix lies in memory, which rows go together, what becomes of sums.
#pragma once

#include "linear.h"

namespace pdserve {

// A strip is 32 columns over the whole depth, contiguous, strip after strip: a product reads it once, from front to end.
// It is a sequence of records of 128 bytes, which serve every kernel: float32: one depth, [32]; bf16: a pair of depths,
// [32][2], sixteen of which are two AMX tiles. A strip of a gated matrix is 16 gate columns, then the same 16 of up. What
// is missing to full strips and to a multiple of 16 pairs is zero.
constexpr int64_t STRIP = 32, RECORD_BYTES = 128, TILE_RECORDS = 16;

inline int64_t rounded_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

inline int64_t num_records(int32_t dtype, int64_t depth) {
  return dtype == F32 ? depth : rounded_up(depth, 2 * TILE_RECORDS) / 2;
}

inline int64_t num_strips(int64_t width, bool gated) {
  return gated ? (width / 2 + LANES - 1) / LANES : (width + STRIP - 1) / STRIP;
}

// The rows of one call are few enough that, copied into blocks as the kernel reads them, they stay in the second-level
// cache while the strips pass by.
constexpr int64_t MAX_CALL_ROWS = 512;

struct Call {
  const PackedLinear& matrix;
  const char* x;
  int64_t x_row_bytes, rows;
  char* y;
  int64_t y_row_bytes;
  DType y_dtype;
  Store store;
  int64_t records, strips, strip_bytes;
  int64_t block_rows, blocks, block_bytes;
  char* packed_rows;  // [blocks, block_bytes]; where the last block has fewer rows, the rest is zero
};

struct Kernel {
  int64_t max_block_rows;
  int64_t row_record_bytes;  // of one row in a packed block, per record
  void (*pack_block)(const Call& call, int64_t block);
  void (*compute)(const Call& call, int64_t first_strip, int64_t last_strip);  // all rows by these strips
};

// Sums [rows, 32] of one strip, rows from first_row on: bias, activation, store.
void finish(const Call& call, int64_t strip, int64_t first_row, int64_t rows, const float* sums);

// Null where this build or this machine cannot run it. Each sums in an order of its own, the same for every row.
const Kernel* float_kernel();  // float32: fused multiply-add
const Kernel* plain_kernel();  // bf16, made float32 on the way: any CPU
const Kernel* dot_kernel();    // bf16: AVX512-BF16
const Kernel* amx_kernel();    // bf16: AMX

}  // namespace pdserve
