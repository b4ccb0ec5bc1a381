// Number types and vectors that every kernel shares. One source for every CPU: GCC's vector extensions become whatever
// -march=native offers; AMX and AVX512-BF16 have paths of their own where __AMX_BF16__ or __AVX512BF16__ is defined.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace pdserve {

enum DType : int32_t { F32 = 0, BF16 = 1 };

using bf16 = uint16_t;  // the upper half of a float's bits

using Floats = float __attribute__((vector_size(64)));  // 16 lanes
using Ints = int32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));  // 16 bf16
constexpr int LANES = 16;

static inline float to_float(bf16 half) {
  uint32_t bits = uint32_t(half) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest, ties to even; not-a-number stays one.
static inline bf16 to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40);
  return bf16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline Floats load(const float* from) {
  Floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

static inline Floats load(const bf16* from) {
  Halves halves;
  memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Ints) << 16);
}

static inline void store(float* to, Floats value) { memcpy(to, &value, sizeof value); }

static inline void store(bf16* to, Floats value) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);  // one instruction; it makes subnormals zero
  memcpy(to, &halves, sizeof halves);
#else
  Ints bits = (Ints)value;
  Ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Ints nan = (bits & 0x7fffffff) > 0x7f800000;
  rounded = (nan & ((bits >> 16) | 0x40)) | (~nan & rounded);
  Halves halves = __builtin_convertvector(rounded, Halves);
  memcpy(to, &halves, sizeof halves);
#endif
}

// Not 0 + value: that is an addition, because of -0.
static inline Floats splat(float value) { return value - Floats{}; }

// In a fixed order, so that it gives the same bits wherever it is called.
static inline float sum(Floats value) {
  float lanes[LANES];
  memcpy(lanes, &value, sizeof lanes);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

}  // namespace pdserve
