// The softmax of one tile of 16 query columns: lane i of every vector is column i.
#pragma once

#include <immintrin.h>

#include "attention_math.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 says it of its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace pdserve {

// The state of 16 columns, in powers of two: weights are 2^(score * factor - max).
struct Columns {
  float max[LANES], total[LANES];
  int32_t from[LANES], to[LANES];  // what each sees of the KV tile
};

// How scores become exponents.
struct Scaling {
  float factor;             // after `transform`, times log2(e)
  float scale, softcap;     // of `transform`
  bool transform;           // scores need more than a factor

  explicit Scaling(float scale, float softcap) : scale(scale), softcap(softcap), transform(softcap > 0 || scale <= 0) {
    factor = transform ? 1.44269504f : scale * 1.44269504f;
  }
};

// 2^x to 8e-5 of itself, which bfloat16 does not see; no less than 2^-126. Not-a-number stays one.
static inline __m512 power_of_two(__m512 x) {
  const __m512 magic = _mm512_set1_ps(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  __m512 shifted = _mm512_add_ps(x, magic);
  __m512 rest = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
  __m512 series = _mm512_fmadd_ps(_mm512_set1_ps(0.0551716688f), rest, _mm512_set1_ps(0.242611148f));
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(0.693260988f));
  series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(0.999928072f));
  __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(series), exponent));
}

// Numbers of two positions as pairs of bfloat16, the first in the lower half; ties away from 0.
static inline __m512i pair_up(__m512 first, __m512 second) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(first), half), 16);
  __m512i high = _mm512_add_epi32(_mm512_castps_si512(second), half);
  return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi32(int(0xffff0000)), 0xf8);  // low | (high & mask)
}

// Scores of positions [first, last) of the tile, 16 columns each, become weights in pairs of positions. `first` and
// `last` are even. Returns by how much what was summed before must shrink, or false where by nothing.
template <bool MASKED>
static inline bool weigh(const Scaling& scaling, Columns& columns, float* scores, int first, int last, uint32_t* weights,
                         __m512* shrink) {
  const __m512i from = _mm512_loadu_si512(columns.from), to = _mm512_loadu_si512(columns.to);
  auto visible = [&](int at) {
    __m512i position = _mm512_set1_epi32(at);
    return _mm512_mask_cmplt_epi32_mask(_mm512_cmple_epi32_mask(from, position), position, to);
  };
  if (scaling.transform)
    for (int at = first; at < last; ++at) {
      Floats score = load(scores + at * LANES) * scaling.scale;
      store(scores + at * LANES, scaling.softcap > 0 ? scaling.softcap * tangent_h(score / scaling.softcap) : score);
    }
  const __m512 lowest = _mm512_set1_ps(LOWEST);
  __m512 highest[2] = {lowest, lowest};
  for (int at = first; at < last; at += 2)
    for (int i = 0; i < 2; ++i) {
      __m512 score = _mm512_loadu_ps(scores + (at + i) * LANES);
      if (MASKED) score = _mm512_mask_mov_ps(lowest, visible(at + i), score);
      highest[i] = _mm512_max_ps(score, highest[i]);
    }
  const __m512 factor = _mm512_set1_ps(scaling.factor);
  const __m512 found = _mm512_mul_ps(_mm512_max_ps(highest[0], highest[1]), factor);
  __m512 max = _mm512_loadu_ps(columns.max), total = _mm512_loadu_ps(columns.total);
  // Weights up to 2^8 harm nothing, and most tiles need no new maximum.
  const __mmask16 grown = _mm512_cmp_ps_mask(found, _mm512_add_ps(max, _mm512_set1_ps(8.0f)), _CMP_GT_OQ);
  if (grown) {
    *shrink = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), grown, power_of_two(_mm512_sub_ps(max, found)));
    max = _mm512_mask_mov_ps(max, grown, found);
    total = _mm512_mul_ps(total, *shrink);
    _mm512_storeu_ps(columns.max, max);
  }
  __m512 sums[2] = {total, _mm512_setzero_ps()};
  for (int at = first; at < last; at += 2) {
    __m512 pair[2];
    for (int i = 0; i < 2; ++i) {
      __m512 score = _mm512_loadu_ps(scores + (at + i) * LANES);
      pair[i] = power_of_two(_mm512_fmsub_ps(score, factor, max));
      if (MASKED) pair[i] = _mm512_maskz_mov_ps(visible(at + i), pair[i]);
      sums[i] = _mm512_add_ps(sums[i], pair[i]);
    }
    _mm512_storeu_si512(weights + at / 2 * LANES, pair_up(pair[0], pair[1]));
  }
  _mm512_storeu_ps(columns.total, _mm512_add_ps(sums[0], sums[1]));
  return grown;
}

}  // namespace pdserve
