// A step's keys and values into the paged pool.
#pragma once

#include "types.h"

namespace pdserve {

// Token i of n goes to slot slots[i] of block blocks[i]; where a block lies, as in attention.h. Strides in elements of
// `dtype`, which the pool, keys and values share. Other slots of a block are not touched, nor ever read by attend().
struct KvWrite {
  int32_t dtype;
  int32_t kv_heads, key_size, value_size, block_size;
  void* pool;
  int64_t block_stride, key_offset, value_offset;
  int64_t num_tokens;
  const int64_t* blocks;  // [n]
  const int64_t* slots;   // [n]
  const void* keys;       // [n, K, Dk]
  int64_t key_row_stride, key_head_stride;
  const void* values;  // [n, K, Dv]
  int64_t value_row_stride, value_head_stride;
};

void write_kv(const KvWrite& call);

}  // namespace pdserve
