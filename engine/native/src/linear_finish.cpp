#include <algorithm>

#include "linear_call.h"

namespace pdserve {
namespace {

// Within 2 units in the last place; the ends are clamped where the result is as good as 0 or infinity for a sigmoid.
Floats exponential(Floats x) {
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  x = x > splat(88.0f) ? splat(88.0f) : x;
  constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats whole = (x * splat(1.44269504f) + splat(ROUNDER)) - splat(ROUNDER);
  const Floats rest = (x - whole * splat(0.693359375f)) - whole * splat(-2.12194440e-4f);
  Floats value = splat(1.9875691500e-4f);
  value = value * rest + splat(1.3981999507e-3f);
  value = value * rest + splat(8.3334519073e-3f);
  value = value * rest + splat(4.1665795894e-2f);
  value = value * rest + splat(1.6666665459e-1f);
  value = value * rest + splat(5.0000001201e-1f);
  value = value * (rest * rest) + rest;
  value = value + splat(1.0f);
  return value * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);
}

template <Store STORE_AS>
Floats activated(Floats x) {
  if constexpr (STORE_AS == SILU_GATE) return x / (splat(1.0f) + exponential(-x));
  // (1 + tanh(u)) / 2 is the sigmoid of 2u; 2 sqrt(2 / pi) = 1.5957691
  const Floats cubic = x * x * splat(0.044715f);
  return x / (splat(1.0f) + exponential(splat(-1.5957691216f) * (cubic * x + x)));
}

template <bool ADDED, class Number>
void put(Number* to, Floats value, int64_t count) {
  if (count >= LANES) {
    store(to, ADDED ? load(to) + value : value);
    return;
  }
  Number lanes[LANES] = {};
  if (ADDED) memcpy(lanes, to, count * sizeof(Number));
  store(lanes, ADDED ? load(lanes) + value : value);
  memcpy(to, lanes, count * sizeof(Number));
}

Floats bias_of(const Call& call, int64_t column, int64_t count) {
  float lanes[LANES] = {};
  if (call.matrix.bias && count > 0) memcpy(lanes, call.matrix.bias + column, std::min<int64_t>(count, LANES) * 4);
  return load(lanes);
}

template <Store STORE_AS, class Number>
void finish_as(const Call& call, int64_t strip, int64_t first_row, int64_t rows, const float* sums) {
  constexpr bool GATED = STORE_AS == SILU_GATE || STORE_AS == GELU_TANH_GATE;
  const int64_t width = GATED ? call.matrix.width / 2 : call.matrix.width;
  const int64_t first = strip * (GATED ? LANES : STRIP), second = GATED ? width + first : first + LANES;
  const int64_t left = width - first, second_left = GATED ? left : left - LANES;
  const Floats bias = bias_of(call, first, left), second_bias = bias_of(call, second, second_left);
  char* y_row = call.y + first_row * call.y_row_bytes + first * sizeof(Number);
  for (int64_t row = 0; row < rows; ++row, y_row += call.y_row_bytes, sums += STRIP) {
    Number* y = reinterpret_cast<Number*>(y_row);
    const Floats a = load(sums) + bias, b = load(sums + LANES) + second_bias;
    if constexpr (GATED) {
      put<false>(y, activated<STORE_AS>(a) * b, left);
    } else {
      put<STORE_AS == ADD>(y, a, left);
      if (second_left > 0) put<STORE_AS == ADD>(y + LANES, b, second_left);
    }
  }
}

template <class Number>
void finish_in(const Call& call, int64_t strip, int64_t first_row, int64_t rows, const float* sums) {
  switch (call.store) {
    case STORE: return finish_as<STORE, Number>(call, strip, first_row, rows, sums);
    case ADD: return finish_as<ADD, Number>(call, strip, first_row, rows, sums);
    case SILU_GATE: return finish_as<SILU_GATE, Number>(call, strip, first_row, rows, sums);
    case GELU_TANH_GATE: return finish_as<GELU_TANH_GATE, Number>(call, strip, first_row, rows, sums);
  }
}

}  // namespace

void finish(const Call& call, int64_t strip, int64_t first_row, int64_t rows, const float* sums) {
  if (call.y_dtype == F32) finish_in<float>(call, strip, first_row, rows, sums);
  else finish_in<bf16>(call, strip, first_row, rows, sums);
}

}  // namespace pdserve
