// Products of rows with a packed matrix.
#pragma once

#include "threads.h"
#include "types.h"

namespace pdserve {

// What happens to a product's sums, which are float32 and have the bias added.
enum Store : int32_t {
  STORE = 0,      // y = sums
  ADD = 1,        // y += sums; y is float32
  SILU_GATE = 2,  // y[:, i] = silu(gate sums i) * up sums i: a gated matrix only, y has width / 2 columns
  GELU_TANH_GATE = 3,
};

struct PackedLinear {
  int32_t dtype;      // of the matrix and of the rows it is multiplied with
  int32_t gated;      // 1: its columns are gate and up projections in alternating strips
  int64_t depth;      // numbers per row
  int64_t width;      // columns; of both halves where it is gated
  const void* data;   // packed, 64-byte aligned
  const float* bias;  // [width] in the order of the columns as given, or null
};

// y[rows, width] from x[rows, depth]; strides in elements. A row's bits depend on that row and the matrix alone: not on
// the number of rows, its place, or the number of threads.
void multiply(const PackedLinear& matrix, const void* x, int64_t x_stride, int64_t rows, void* y, int64_t y_stride,
              DType y_dtype, Store store, Threads& threads);

}  // namespace pdserve
