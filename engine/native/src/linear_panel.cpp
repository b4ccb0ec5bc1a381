// Kernels of fused multiply-adds: a block of rows keeps its sums with one strip in registers over the whole depth, so that
// each sum is added up in the order of the depth.
#include <algorithm>
#include <array>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "linear_call.h"

namespace pdserve {
namespace {

// Vectors of the width that the machine has: GCC keeps wider ones in memory. Most registers hold sums.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MAX_ROWS = 12;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MAX_ROWS = 3;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 3;
#else
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 1;
#endif
constexpr int VECTORS = RECORD_BYTES / VECTOR_BYTES;
constexpr int64_t AHEAD_BYTES = 2048;  // of reading, into the second-level cache

using Sums = float __attribute__((vector_size(VECTOR_BYTES)));
using Pairs = int32_t __attribute__((vector_size(VECTOR_BYTES)));

template <class Vector>
Vector load_vector(const char* record, int index) {
  Vector vector;
  memcpy(&vector, record + index * VECTOR_BYTES, VECTOR_BYTES);
  return vector;
}

// What a record holds, and a row's part in it.
struct FloatRecord {
  using Row = float;
  Sums values[VECTORS];
  explicit FloatRecord(const char* at) {
    for (int i = 0; i < VECTORS; ++i) values[i] = load_vector<Sums>(at, i);
  }
  void add_to(Sums* sums, Row row) const {
    for (int i = 0; i < VECTORS; ++i) sums[i] += values[i] * row;
  }
  static Row row_part(const char* x, int64_t record, int64_t) { return reinterpret_cast<const float*>(x)[record]; }
};

uint32_t pair_of(const char* x, int64_t record, int64_t depth) {
  const bf16* pair = reinterpret_cast<const bf16*>(x) + 2 * record;
  const int64_t left = depth - 2 * record;
  return (left > 0 ? pair[0] : 0u) | (left > 1 ? uint32_t(pair[1]) << 16 : 0u);
}

struct PlainRecord {
  struct Row {
    float even, odd;
  };
  Sums evens[VECTORS], odds[VECTORS];
  explicit PlainRecord(const char* at) {
    for (int i = 0; i < VECTORS; ++i) {
      const Pairs pairs = load_vector<Pairs>(at, i);
      evens[i] = (Sums)(pairs << 16);
      odds[i] = (Sums)(pairs & int32_t(0xffff0000));
    }
  }
  void add_to(Sums* sums, Row row) const {
    for (int i = 0; i < VECTORS; ++i) {
      sums[i] += evens[i] * row.even;
      sums[i] += odds[i] * row.odd;
    }
  }
  static Row row_part(const char* x, int64_t record, int64_t depth) {
    const uint32_t pair = pair_of(x, record, depth);
    return {to_float(bf16(pair)), to_float(bf16(pair >> 16))};
  }
};

#if defined(__AVX512BF16__)
struct DotRecord {
  using Row = uint32_t;
  __m512bh low, high;
  explicit DotRecord(const char* at) : low((__m512bh)load_vector<Pairs>(at, 0)), high((__m512bh)load_vector<Pairs>(at, 1)) {}
  void add_to(Sums* sums, Row row) const {
    const __m512bh pair = (__m512bh)_mm512_set1_epi32(int32_t(row));
    sums[0] = (Sums)_mm512_dpbf16_ps((__m512)sums[0], low, pair);
    sums[1] = (Sums)_mm512_dpbf16_ps((__m512)sums[1], high, pair);
  }
  static Row row_part(const char* x, int64_t record, int64_t depth) { return pair_of(x, record, depth); }
};
#endif

// A block is [records][block_rows].
template <class Record>
void pack_block(const Call& call, int64_t block) {
  using Row = typename Record::Row;
  Row* to = reinterpret_cast<Row*>(call.packed_rows + block * call.block_bytes);
  for (int64_t row = 0; row < call.block_rows; ++row) {
    const int64_t of_x = block * call.block_rows + row;
    const char* x = call.x + of_x * call.x_row_bytes;
    for (int64_t record = 0; record < call.records; ++record)
      to[record * call.block_rows + row] = of_x < call.rows ? Record::row_part(x, record, call.matrix.depth) : Row{};
  }
}

template <class Record, int ROWS>
void multiply_block(const Call& call, int64_t block, int64_t strip) {
  using Row = typename Record::Row;
  const char* at = static_cast<const char*>(call.matrix.data) + strip * call.strip_bytes;
  const Row* rows = reinterpret_cast<const Row*>(call.packed_rows + block * call.block_bytes);
  Sums sums[ROWS][VECTORS] = {};
  for (int64_t record = 0; record < call.records; ++record, at += RECORD_BYTES, rows += ROWS) {
    __builtin_prefetch(at + AHEAD_BYTES, 0, 2);
    __builtin_prefetch(at + AHEAD_BYTES + 64, 0, 2);
    const Record values(at);
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) values.add_to(sums[row], rows[row]);
  }
  alignas(64) float kept[ROWS * STRIP];  // sums itself has no address, or it would not stay in registers
  for (int row = 0; row < ROWS; ++row)
    for (int i = 0; i < VECTORS; ++i) memcpy(kept + row * STRIP + i * (STRIP / VECTORS), &sums[row][i], VECTOR_BYTES);
  const int64_t first_row = block * ROWS;
  finish(call, strip, first_row, std::min<int64_t>(ROWS, call.rows - first_row), kept);
}

template <class Record, int... ROWS>
constexpr auto multiply_blocks(std::integer_sequence<int, ROWS...>) {
  return std::array{multiply_block<Record, ROWS + 1>...};
}

template <class Record>
void compute(const Call& call, int64_t first_strip, int64_t last_strip) {
  static constexpr auto BY_ROWS = multiply_blocks<Record>(std::make_integer_sequence<int, MAX_ROWS>());
  const auto multiply_one = BY_ROWS[call.block_rows - 1];
  for (int64_t strip = first_strip; strip < last_strip; ++strip)
    for (int64_t block = 0; block < call.blocks; ++block) multiply_one(call, block, strip);
}

template <class Record>
constexpr Kernel KERNEL{MAX_ROWS, sizeof(typename Record::Row), pack_block<Record>, compute<Record>};

}  // namespace

const Kernel* float_kernel() { return &KERNEL<FloatRecord>; }

const Kernel* plain_kernel() { return &KERNEL<PlainRecord>; }

const Kernel* dot_kernel() {
#if defined(__AVX512BF16__)
  return &KERNEL<DotRecord>;
#else
  return nullptr;
#endif
}

}  // namespace pdserve
