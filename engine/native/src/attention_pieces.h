// What the attention kernels share: how a call is cut into pieces, what a query sees, where its keys lie.
#pragma once

#include <algorithm>

#include "attention.h"

namespace pdserve {

constexpr int TILE = 64;  // positions of a KV tile, at multiples of TILE whatever the block size

// Some tokens of one sequence, with the query heads of one KV head.
struct Piece {
  int64_t sequence;
  int64_t first;  // of its tokens, counted from the sequence's first new one
  int32_t tokens;
  int32_t kv_head;
};

// Positions [from, to) of a KV tile.
struct Span {
  int64_t from, to;
};

static inline int group(const Attention& call) { return call.heads / call.kv_heads; }

static inline int64_t first_seen(const Attention& call, int64_t position) {
  return call.window > 0 ? std::max<int64_t>(0, position - call.window + 1) : 0;
}

// What a query sees of the tile at `base`; from >= to where it is nothing.
static inline Span seen(const Attention& call, int64_t position, int64_t base) {
  return {std::max(first_seen(call, position), base), std::min(position + 1, base + TILE)};
}

static inline int64_t position_of(const Attention& call, const Piece& piece, int64_t token) {
  return call.starts[piece.sequence] + piece.first + token;
}

template <class T>
static inline const T* query_row(const Attention& call, const Piece& piece, int64_t token, int of_group) {
  int64_t row = call.first_rows[piece.sequence] + piece.first + token;
  int64_t head = int64_t(piece.kv_head) * group(call) + of_group;
  return static_cast<const T*>(call.q) + row * call.q_row_stride + head * call.q_head_stride;
}

template <class T>
static inline T* out_row(const Attention& call, const Piece& piece, int64_t token, int of_group) {
  int64_t row = call.first_rows[piece.sequence] + piece.first + token;
  int64_t head = int64_t(piece.kv_head) * group(call) + of_group;
  return static_cast<T*>(call.out) + row * call.out_row_stride + head * call.out_head_stride;
}

// keys[i] and values[i]: the rows of position span.from + i.
template <class T>
static inline void find_rows(const Attention& call, const Piece& piece, Span span, const T** keys, const T** values) {
  const int64_t* table = call.block_tables + piece.sequence * call.table_stride;
  const T* pool = static_cast<const T*>(call.pool);
  int64_t index = span.from / call.block_size, slot = span.from % call.block_size;
  int64_t head_slots = int64_t(piece.kv_head) * call.block_size;
  for (int64_t at = span.from; at < span.to; ++index, slot = 0) {
    const T* block = pool + table[index] * call.block_stride;
    const T* key = block + call.key_offset + (head_slots + slot) * call.key_size;
    const T* value = block + call.value_offset + (head_slots + slot) * call.value_size;
    for (; slot < call.block_size && at < span.to; ++slot, ++at, key += call.key_size, value += call.value_size)
      *keys++ = key, *values++ = value;
  }
}

// One kernel per kind of CPU and dtype: computes a piece, with memory of its own per thread.
using PieceKernel = void (*)(const Attention&, const Piece&);

// float32, and bfloat16 on any CPU: a query's bits depend on its own sequence alone.
void attend_float32(const Attention& call, const Piece& piece);
void attend_portable_bf16(const Attention& call, const Piece& piece);
void attend_amx(const Attention& call, const Piece& piece);  // bfloat16, where amx.h says so

}  // namespace pdserve
