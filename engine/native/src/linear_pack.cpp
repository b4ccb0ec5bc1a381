// Packing a matrix: done once, at load.
#include <algorithm>

#include "linear_call.h"

namespace pdserve {
namespace {

struct Source {
  int32_t dtype, gated;
  int64_t depth, width;
  const char* weight;
  int64_t column_stride, depth_stride;  // in elements
  int64_t first, count;                 // columns
};

// Where a column's first number goes.
char* place_of(const Source& source, int64_t column, char* packed) {
  const int64_t half = source.width / 2, of_half = column < half ? column : column - half;
  const int64_t strip = source.gated ? of_half / LANES : column / STRIP;
  const int64_t lane = source.gated ? of_half % LANES + (column < half ? 0 : LANES) : column % STRIP;
  return packed + (strip * num_records(source.dtype, source.depth) * STRIP + lane) * 4;
}

template <class Number>
void pack_column(const Source& source, int64_t index, int64_t first_depth, int64_t last_depth, char* packed) {
  constexpr int64_t PER_RECORD = 4 / sizeof(Number);
  const Number* from = reinterpret_cast<const Number*>(source.weight) + index * source.column_stride;
  Number* to = reinterpret_cast<Number*>(place_of(source, source.first + index, packed));
  for (int64_t depth = first_depth; depth < last_depth; ++depth)
    to[depth / PER_RECORD * (STRIP * PER_RECORD) + depth % PER_RECORD] = from[depth * source.depth_stride];
}

// Depth by depth of 64 bytes, all columns of a group at once: each line of either side is touched while it is near.
template <class Number>
void pack_columns(const Source& source, int64_t first, int64_t last, char* packed) {
  constexpr int64_t AT_ONCE = 64 / sizeof(Number);
  for (int64_t depth = 0; depth < source.depth; depth += AT_ONCE)
    for (int64_t index = first; index < last; ++index)
      pack_column<Number>(source, index, depth, std::min(source.depth, depth + AT_ONCE), packed);
}

}  // namespace
}  // namespace pdserve

extern "C" {

int64_t pdserve_packed_bytes(int32_t dtype, int64_t depth, int64_t width, int32_t gated) {
  return pdserve::num_strips(width, gated) * pdserve::num_records(dtype, depth) * pdserve::RECORD_BYTES;
}

// Columns [first, first + count) of a matrix of `width`, in the order gate, up where it is gated; `weight` is where the
// first of them begins. `packed` holds packed_bytes, zero before the first call.
void pdserve_pack(int32_t dtype, int32_t gated, int64_t depth, int64_t width, const void* weight, int64_t column_stride,
                  int64_t depth_stride, int64_t first, int64_t count, void* packed, void* threads) {
  using namespace pdserve;
  const Source source{dtype, gated, depth, width, static_cast<const char*>(weight), column_stride, depth_stride, first, count};
  static_cast<Threads*>(threads)->run((count + STRIP - 1) / STRIP, [&](int64_t piece, int) {
    const int64_t begin = piece * STRIP, end = std::min(count, begin + STRIP);
    if (dtype == F32) pack_columns<float>(source, begin, end, static_cast<char*>(packed));
    else pack_columns<bf16>(source, begin, end, static_cast<char*>(packed));
  });
}
}
