// Causal attention of a packed step over the paged KV pool.
#pragma once

#include "threads.h"
#include "types.h"

namespace pdserve {

// B sequences; sequence b owns rows [first_rows[b], first_rows[b] + ends[b] - starts[b]) of q and out, at positions
// [starts[b], ends[b]). Keys of a block lie at pool + block * block_stride + key_offset as [K, S, Dk], values likewise
// as [K, S, Dv]; offsets and strides in elements of `dtype`.
struct Attention {
  int32_t dtype;  // of the pool, q and out
  int32_t heads, kv_heads, key_size, value_size, block_size;
  const void* pool;
  int64_t block_stride, key_offset, value_offset;
  int64_t num_sequences;
  const int64_t* block_tables;  // [B, table_stride]
  int64_t table_stride;
  const int64_t* starts;  // [B]
  const int64_t* ends;    // [B]
  const int64_t* first_rows;  // [B]
  const void* q;  // row r, head h at q + r * q_row_stride + h * q_head_stride
  int64_t q_row_stride, q_head_stride;
  void* out;  // [rows, H, Dv] by these strides
  int64_t out_row_stride, out_head_stride;
  float scale;
  int64_t window;      // 0: none; else a query at p sees [p - window + 1, p]
  float softcap;       // 0: none; else scores become softcap * tanh(scores / softcap)
  const float* sinks;  // [H] or null: a logit per head that takes part in the softmax and has no value
};

enum Choice : int32_t { BEST = 0, PORTABLE = 1 };  // PORTABLE: as on a CPU without instructions for bfloat16

// Reads no slot at or beyond a sequence's end, whatever lies there; writes no row but the sequences'.
// float32, and bfloat16 by PORTABLE: a query's bits depend on its own sequence alone; not on the chunk, the company, the
// block size or the number of threads.
void attend(const Attention& call, Threads& threads, Choice choice = BEST);

}  // namespace pdserve
