// The softmax of one row of scores, over one KV tile.
#pragma once

#include "attention_math.h"
#include "attention_pieces.h"

namespace pdserve {

constexpr int STRIPS = TILE / LANES;

// Scores of a row become weights; positions outside [from, to) of the tile get 0. Returns what the sums before must be
// multiplied with.
static inline float weigh_row(const Attention& call, float* scores, int from, int to, float& max, float& total) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Floats strips[STRIPS], most = splat(LOWEST);
  Ints visible[STRIPS];
  for (int c = 0; c < STRIPS; ++c) {
    Floats score = load(scores + c * LANES) * call.scale;
    if (call.softcap > 0) score = call.softcap * tangent_h(score / call.softcap);
    visible[c] = (lane >= from - c * LANES) & (lane < to - c * LANES);
    strips[c] = score;
    most = greater(visible[c] ? score : splat(LOWEST), most);
  }
  float now = highest(most);
  now = now > max ? now : max;
  Floats sums{};
  for (int c = 0; c < STRIPS; ++c) {
    Floats weight = visible[c] ? exponential(strips[c] - now) : Floats{};
    store(scores + c * LANES, weight);
    sums += weight;
  }
  float shrink = exponential(splat(max - now))[0];
  total = total * shrink + sum(sums);
  max = now;
  return shrink;
}

}  // namespace pdserve
