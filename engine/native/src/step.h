// A decoder's whole forward pass in one call: pre-norm (and post-norm) transformer layers with rotary positions and a
// gated MLP. Everything a layer needs is pointers that the Python side filled once, at load.
#pragma once

#include "linear.h"
#include "threads.h"
#include "types.h"

namespace pdserve {

// y = x / sqrt(mean(x^2) + eps) * weight; no norm where weight is null.
struct Norm {
  const float* weight;
  float eps;
  int32_t unused;
};

struct Rope {
  const float* frequencies;  // [rotary / 2]
  int32_t rotary;            // the first numbers of a head that turn
  float scale;               // of cosine and sine
};

struct Layer {
  Norm before_attention, after_attention, before_mlp, after_mlp;
  Norm query, key;  // of each head; `whole_heads` of the decoder says over what
  PackedLinear qkv, out, gate_up, down;
  int64_t window;  // 0: none
  int64_t key_offset, value_offset;  // elements of a block before them
  float scale, softcap;
  int32_t rope;  // index; -1: none
  int32_t gate;  // Store
};

struct Decoder {
  int32_t dtype;  // of weights, KV and what products take
  int32_t num_layers, heads, kv_heads, head_size, hidden, inner, vocabulary, block_size;
  int32_t norm_all_heads;  // 1: query and key norms run over all heads at once
  const Layer* layers;
  const Rope* ropes;
  int32_t num_ropes;
  Norm last;
  PackedLinear head;
  const void* embedding;  // [vocabulary, hidden] of dtype
  int64_t embedding_stride;
  float embedding_scale, residual_scale, logit_scale, logit_softcap;
};

// T rows; B sequences. What a row is and where its KV goes: engine/batch.py.
struct Step {
  int64_t rows, num_sequences, num_samples, table_stride;
  const int64_t *token_ids, *positions, *write_blocks, *write_slots;                // [T]
  const int64_t *starts, *ends, *first_rows;                                        // [B]
  const int64_t* block_tables;                                                      // [B, table_stride]
  const int64_t *sample_rows, *sample_sequences;                                    // [num_samples]
  void* pool;
  int64_t block_stride;  // elements
  float* logits;         // [num_samples, vocabulary]
};

// Writes the step's KV into the pool and the logits of the rows that sample. With profile ([8] seconds, added to): where
// the time went.
void run_step(const Decoder& decoder, const Step& step, Threads& threads, double* profile);

}  // namespace pdserve
