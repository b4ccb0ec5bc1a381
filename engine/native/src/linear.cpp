#include "linear.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "linear_call.h"

namespace pdserve {
namespace {

constexpr int64_t CHUNK_BYTES = 1 << 20;         // of rows: half of a second-level cache
constexpr int64_t SERIAL_ROWS = 64;              // as few are packed sooner than other threads are woken
constexpr int64_t PIECES_PER_THREAD = 4;         // so that a thread which is held up does not hold up the others

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

void pack_rows(const Call& call, const Kernel& kernel, Threads& threads) {
  if (call.rows <= SERIAL_ROWS) {
    for (int64_t block = 0; block < call.blocks; ++block) kernel.pack_block(call, block);
  } else {
    threads.run(call.blocks, [&](int64_t block, int) { kernel.pack_block(call, block); });
  }
}

void compute(const Call& call, const Kernel& kernel, Threads& threads) {
  const int64_t row_bytes = call.block_bytes / call.block_rows;
  const int64_t chunk_rows = std::clamp<int64_t>(CHUNK_BYTES / row_bytes, 2 * call.block_rows, MAX_CHUNK_ROWS);
  const int64_t pairs = (call.blocks + 1) / 2, most_pairs = chunk_rows / (2 * call.block_rows);
  const int64_t fewest = (pairs + most_pairs - 1) / most_pairs;
  const int64_t chunk_blocks = (pairs + fewest - 1) / fewest * 2;
  const int64_t chunks = (call.blocks + chunk_blocks - 1) / chunk_blocks;
  const int64_t wanted = threads.count() == 1 ? 1 : threads.count() * PIECES_PER_THREAD;
  const int64_t group_strips = (call.strips + wanted - 1) / wanted;
  const int64_t groups = (call.strips + group_strips - 1) / group_strips;
  threads.run(chunks * groups, [&](int64_t piece, int) {
    const int64_t first_block = piece / groups * chunk_blocks, first_strip = piece % groups * group_strips;
    kernel.compute(call, first_block, std::min(call.blocks, first_block + chunk_blocks), first_strip,
                   std::min(call.strips, first_strip + group_strips));
  });
}

void multiply_by(const Kernel& kernel, const PackedLinear& matrix, const void* x, int64_t x_stride, int64_t rows,
                 void* y, int64_t y_stride, DType y_dtype, Store store, Threads& threads) {
  if (rows <= 0) return;
  static thread_local RowBuffer buffer;
  const int64_t records = num_records(matrix.dtype, matrix.depth), strips = num_strips(matrix.width, matrix.gated);
  // Blocks of equal size: a last one of a single row would cost as much as a full one.
  const int64_t fewest = (rows + kernel.max_block_rows - 1) / kernel.max_block_rows;
  const int64_t block_rows = (rows + fewest - 1) / fewest, blocks = (rows + block_rows - 1) / block_rows;
  const int64_t block_bytes = rounded_up(records * block_rows * kernel.row_record_bytes, 64);
  const Call call{matrix, static_cast<const char*>(x), x_stride * (matrix.dtype == F32 ? 4 : 2), rows,
                  static_cast<char*>(y), y_stride, y_dtype, store, records, strips, records * RECORD_BYTES,
                  block_rows, blocks, block_bytes, buffer.get(blocks * block_bytes)};
  pack_rows(call, kernel, threads);
  compute(call, kernel, threads);
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
