#include "linear.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "linear_call.h"

namespace pdserve {
namespace {

constexpr int64_t SERIAL_ROWS = 64;       // as few are packed sooner than other threads are woken
constexpr int64_t PIECES_PER_THREAD = 4;  // so that a thread which is held up does not hold up the others

// Of the second-level cache, what rows may fill.
int64_t cache_bytes() {
  const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return (found > 0 ? int64_t(found) : 1 << 20) / 4 * 3;
}

// Kept between calls by each calling thread.
struct RowBuffer {
  char* data = nullptr;
  int64_t bytes = 0;
  ~RowBuffer() { free(data); }
  char* get(int64_t wanted) {
    if (wanted > bytes) {
      free(data);
      bytes = 0;
      data = static_cast<char*>(aligned_alloc(4096, rounded_up(wanted, 4096)));
      if (!data) throw std::bad_alloc();
      bytes = rounded_up(wanted, 4096);
    }
    return data;
  }
};

void multiply_chunk(const Call& call, const Kernel& kernel, Threads& threads) {
  if (call.rows <= SERIAL_ROWS) {
    for (int64_t block = 0; block < call.blocks; ++block) kernel.pack_block(call, block);
  } else {
    threads.run(call.blocks, [&](int64_t block, int) { kernel.pack_block(call, block); });
  }
  const int64_t wanted = threads.count() == 1 ? 1 : threads.count() * PIECES_PER_THREAD;
  const int64_t piece_strips = (call.strips + wanted - 1) / wanted;
  threads.run((call.strips + piece_strips - 1) / piece_strips, [&](int64_t piece, int) {
    kernel.compute(call, piece * piece_strips, std::min(call.strips, (piece + 1) * piece_strips));
  });
}

// Chunks of equal size, and in them blocks of equal size: a last one of a single row would cost as much as a full one.
int64_t rows_in_chunk(const Kernel& kernel, int64_t row_bytes, int64_t rows) {
  static const int64_t cache = cache_bytes();
  const int64_t unit = kernel.max_block_rows;
  const int64_t most = std::clamp<int64_t>(cache / row_bytes, unit, MAX_CALL_ROWS) / unit * unit;
  const int64_t chunks = (rows + most - 1) / most;
  return std::min(most, rounded_up((rows + chunks - 1) / chunks, unit));
}

void multiply_by(const Kernel& kernel, const PackedLinear& matrix, const void* x, int64_t x_stride, int64_t rows,
                 void* y, int64_t y_stride, DType y_dtype, Store store, Threads& threads) {
  if (rows <= 0) return;
  static thread_local RowBuffer buffer;
  const int64_t records = num_records(matrix.dtype, matrix.depth), row_bytes = records * kernel.row_record_bytes;
  const int64_t chunk_rows = rows_in_chunk(kernel, row_bytes, rows);
  const int64_t x_row_bytes = x_stride * (matrix.dtype == F32 ? 4 : 2), y_row_bytes = y_stride * (y_dtype == F32 ? 4 : 2);
  for (int64_t first = 0; first < rows; first += chunk_rows) {
    const int64_t count = std::min(chunk_rows, rows - first);
    const int64_t fewest = (count + kernel.max_block_rows - 1) / kernel.max_block_rows;
    int64_t block_rows = (count + fewest - 1) / fewest;
    if (block_rows > 16) block_rows += block_rows % 2;
    const int64_t blocks = (count + block_rows - 1) / block_rows;
    const int64_t block_bytes = rounded_up(block_rows * row_bytes, 64);
    multiply_chunk({matrix, static_cast<const char*>(x) + first * x_row_bytes, x_row_bytes, count,
                    static_cast<char*>(y) + first * y_row_bytes, y_row_bytes, y_dtype, store, records,
                    num_strips(matrix.width, matrix.gated), records * RECORD_BYTES, block_rows, blocks, block_bytes,
                    buffer.get(blocks * block_bytes)},
                   kernel, threads);
  }
}

enum KernelName : int32_t { BEST = 0, AMX = 1, DOT = 2, PLAIN = 3 };

const Kernel* kernel_for(int32_t dtype, int32_t name) {
  if (dtype == F32) return float_kernel();
  switch (name) {
    case AMX: return amx_kernel();
    case DOT: return dot_kernel();
    case PLAIN: return plain_kernel();
  }
  for (const Kernel* kernel : {amx_kernel(), dot_kernel()})
    if (kernel) return kernel;
  return plain_kernel();
}

}  // namespace

void multiply(const PackedLinear& matrix, const void* x, int64_t x_stride, int64_t rows, void* y, int64_t y_stride,
              DType y_dtype, Store store, Threads& threads) {
  static const Kernel* const best = kernel_for(BF16, BEST);
  multiply_by(matrix.dtype == F32 ? *float_kernel() : *best, matrix, x, x_stride, rows, y, y_stride, y_dtype, store,
              threads);
}

}  // namespace pdserve

extern "C" {

// `kernel` is 0, or for tests one KernelName; returns 0, or 1 where that kernel does not run here.
int32_t pdserve_multiply(const pdserve::PackedLinear* matrix, const void* x, int64_t x_stride, int64_t rows, void* y,
                         int64_t y_stride, int32_t y_dtype, int32_t store, void* threads, int32_t kernel) {
  const pdserve::Kernel* chosen = pdserve::kernel_for(matrix->dtype, kernel);
  if (!chosen) return 1;
  pdserve::multiply_by(*chosen, *matrix, x, x_stride, rows, y, y_stride, pdserve::DType(y_dtype), pdserve::Store(store),
                       *static_cast<pdserve::Threads*>(threads));
  return 0;
}
}
