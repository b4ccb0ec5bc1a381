// Work on single rows: norms, rotary positions. A row's bits depend on that row alone.
#pragma once

#include <cmath>

#include "types.h"

namespace pdserve {

template <class From, class To>
inline void normalize(const From* x, int64_t size, const float* weight, float eps, To* y) {
  Floats sums[4] = {};
  int64_t at = 0;
  for (; at + 4 * LANES <= size; at += 4 * LANES)
    for (int i = 0; i < 4; ++i) {
      Floats value = load(x + at + i * LANES);
      sums[i] += value * value;
    }
  for (; at + LANES <= size; at += LANES) {
    Floats value = load(x + at);
    sums[0] += value * value;
  }
  float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  auto number = [](From value) {
    if constexpr (sizeof(From) == 2) return to_float(value);
    else return value;
  };
  for (; at < size; ++at) total += number(x[at]) * number(x[at]);
  const float factor = 1.0f / std::sqrt(total / float(size) + eps);
  for (at = 0; at + LANES <= size; at += LANES) store(y + at, load(x + at) * factor * load(weight + at));
  for (; at < size; ++at) {
    const float value = number(x[at]) * factor * weight[at];
    if constexpr (sizeof(To) == 2) y[at] = to_bf16(value);
    else y[at] = value;
  }
}

// Turn the pairs (i, i + half) of one head by the angles whose cosines and sines are given, [half] each.
template <class Number>
inline void rotate(Number* x, int64_t half, const float* cosines, const float* sines) {
  int64_t at = 0;
  for (; at + LANES <= half; at += LANES) {
    const Floats first = load(x + at), second = load(x + half + at);
    const Floats cosine = load(cosines + at), sine = load(sines + at);
    store(x + at, first * cosine - second * sine);
    store(x + half + at, second * cosine + first * sine);
  }
  for (; at < half; ++at) {
    float first, second;
    if constexpr (sizeof(Number) == 2) first = to_float(x[at]), second = to_float(x[half + at]);
    else first = x[at], second = x[half + at];
    const float a = first * cosines[at] - second * sines[at], b = second * cosines[at] + first * sines[at];
    if constexpr (sizeof(Number) == 2) x[at] = to_bf16(a), x[half + at] = to_bf16(b);
    else x[at] = a, x[half + at] = b;
  }
}

}  // namespace pdserve
