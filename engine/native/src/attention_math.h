// Vector arithmetic of the softmax: fixed order, the same bits in every lane.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "types.h"

namespace pdserve {

constexpr float LOWEST = -1e30f;  // the running maximum before any key: finite, or inf - inf would be computed

// a * b + c in one rounding where the CPU has that; written out so that no compiler chooses per call site.
static inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

static inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }

static inline float highest(Floats value) {
  float lanes[LANES];
  memcpy(lanes, &value, sizeof lanes);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

// exp of numbers up to 88, to 2 ulp; below -87 it is 0, so that no denormal is made. Not-a-number stays one.
static inline Floats exponential(Floats x) {
  const Floats low = splat(-87.0f), magic = splat(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
  Floats clamped = x < low ? low : x;
  Floats shifted = fused(clamped, splat(1.44269504f), magic);
  Floats count = shifted - magic;
  Floats rest = fused(count, splat(-0.693359375f), clamped);
  rest = fused(count, splat(2.12194440e-4f), rest);
  Floats series = splat(1.9875691500e-4f);  // Cephes expf
  series = fused(series, rest, splat(1.3981999507e-3f));
  series = fused(series, rest, splat(8.3334519073e-3f));
  series = fused(series, rest, splat(4.1665795894e-2f));
  series = fused(series, rest, splat(1.6666665459e-1f));
  series = fused(series, rest, splat(5.0000001201e-1f));
  series = fused(series, rest * rest, rest + 1.0f);
  Floats power = (Floats)(((Ints)shifted + 127) << 23);
  return x < low ? Floats{} : series * power;
}

static inline Floats tangent_h(Floats x) {
  Floats square = x * x;
  Floats series = fused(square, splat(-17.0f / 315), splat(2.0f / 15));  // near 0, where the quotient cancels
  series = fused(series, square, splat(-1.0f / 3));
  series = fused(series * square, x, x);
  Floats bounded = x > 10.0f ? splat(10.0f) : x < -10.0f ? splat(-10.0f) : x;
  Floats quotient = 1.0f - 2.0f / (exponential(bounded + bounded) + 1.0f);
  return (x < 0.25f) & (x > -0.25f) ? series : quotient;
}

}  // namespace pdserve
