// Rows of 16 numbers become columns, in registers. Worth it where a vector is one register; elsewhere copy numbers.
#pragma once

#include <utility>

#include "types.h"

namespace pdserve {

// Exchange the half of `a` whose lane numbers have bit W with the half of `b` that has not.
template <int W, int... I>
static inline __attribute__((always_inline)) void exchange(Floats& a, Floats& b, std::integer_sequence<int, I...>) {
  Floats low = __builtin_shufflevector(a, b, (I & W ? LANES + (I ^ W) : I)...);
  b = __builtin_shufflevector(a, b, (I & W ? LANES + I : I | W)...);
  a = low;
}

template <int W>
static inline __attribute__((always_inline)) void exchange_all(Floats* rows) {
  for (int i = 0; i < LANES; ++i)
    if (!(i & W)) exchange<W>(rows[i], rows[i + W], std::make_integer_sequence<int, LANES>());
}

static inline __attribute__((always_inline)) void transpose(Floats* rows) {
  exchange_all<8>(rows), exchange_all<4>(rows), exchange_all<2>(rows), exchange_all<1>(rows);
}

}  // namespace pdserve
