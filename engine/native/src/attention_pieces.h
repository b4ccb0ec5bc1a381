// What the attention kernels share: how a call is cut into pieces, what a query sees, where its keys lie.
#pragma once

#include <algorithm>

#include "attention.h"

namespace pdserve {

constexpr int TILE = 64;  // positions of a KV tile, at multiples of TILE whatever the block size

// Some tokens of one sequence, with the query heads of some KV heads.
struct Piece {
  int64_t sequence;
  int64_t first;  // of its tokens, counted from the sequence's first new one
  int32_t tokens;
  int32_t kv_head, kv_heads;  // the first one, and how many
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

// Rows of a piece are counted head by head, then token by token, then by query head.
struct Row {
  int64_t token;  // of the piece
  int64_t head;   // of the model's query heads
};

static inline Row find_row(const Attention& call, const Piece& piece, int64_t row) {
  int64_t share = group(call), of_head = piece.tokens * share, rest = row % of_head;
  return {rest / share, (piece.kv_head + row / of_head) * share + rest % share};
}

template <class T>
static inline const T* query_row(const Attention& call, const Piece& piece, Row at) {
  int64_t row = call.first_rows[piece.sequence] + piece.first + at.token;
  return static_cast<const T*>(call.q) + row * call.q_row_stride + at.head * call.q_head_stride;
}

template <class T>
static inline T* out_row(const Attention& call, const Piece& piece, Row at) {
  int64_t row = call.first_rows[piece.sequence] + piece.first + at.token;
  return static_cast<T*>(call.out) + row * call.out_row_stride + at.head * call.out_head_stride;
}

// Neighbouring slots of one block.
template <class T>
struct Run {
  const T* block;
  int slot, count;
};

// Where the positions of one KV tile lie, for all heads: at most WIDTH runs.
template <class T, int WIDTH>
struct Runs {
  Run<T> run[WIDTH];
  int count = 0;

  void find(const Attention& call, const Piece& piece, Span span) {
    const int64_t* table = call.block_tables + piece.sequence * call.table_stride;
    count = 0;
    int64_t index = span.from / call.block_size, slot = span.from % call.block_size;
    for (int64_t at = span.from; at < span.to; ++index, slot = 0, ++count) {
      int64_t slots = std::min(call.block_size - slot, span.to - at);
      run[count] = {static_cast<const T*>(call.pool) + table[index] * call.block_stride, int(slot), int(slots)};
      at += slots;
    }
  }

  // keys[i] and values[i]: the rows of the i-th position.
  void rows(const Attention& call, int64_t kv_head, const T** keys, const T** values) const {
    for (int i = 0; i < count; ++i) {
      int64_t row = kv_head * call.block_size + run[i].slot;
      const T* key = run[i].block + call.key_offset + row * call.key_size;
      const T* value = run[i].block + call.value_offset + row * call.value_size;
      for (int slot = 0; slot < run[i].count; ++slot, key += call.key_size, value += call.value_size)
        *keys++ = key, *values++ = value;
    }
  }
};

// Fetches a KV tile into the second-level cache, line by line among other work: what is asked for in one go is waited
// for. In memory's own order, the heads of a block's keys, then of its values: with small pages, address look-ups are
// what costs most.
template <class T, int WIDTH>
class Ahead {
 public:
  void start(const Attention& call, const Piece& piece, const Runs<T, WIDTH>& runs) {
    call_ = &call, piece_ = &piece, runs_ = &runs, unit_ = 0, units_ = int64_t(runs.count) * 2 * piece.kv_heads;
    at_ = end_ = nullptr;
  }

  inline __attribute__((always_inline)) void step(int lines) {
    if (at_ >= end_ && !next()) return;
    for (int line = 0; line < lines; ++line) __builtin_prefetch(at_ + line * 64, 0, 2);  // a few beyond the end do no harm
    at_ += lines * 64;
  }

 private:
  bool next() {
    if (unit_ == units_) return false;
    const Run<T>& run = runs_->run[unit_ / (2 * piece_->kv_heads)];
    int64_t rest = unit_++ % (2 * piece_->kv_heads);
    bool keys = rest < piece_->kv_heads;
    int64_t head = piece_->kv_head + rest % piece_->kv_heads, size = keys ? call_->key_size : call_->value_size;
    const T* from = run.block + (keys ? call_->key_offset : call_->value_offset);
    from += (head * call_->block_size + run.slot) * size;
    at_ = reinterpret_cast<const char*>(from), end_ = at_ + run.count * size * sizeof(T);
    return true;
  }

  const Attention* call_;
  const Piece* piece_;
  const Runs<T, WIDTH>* runs_;
  int64_t unit_, units_;
  const char *at_, *end_;
};

// One KV tile: positions [from, to) of it, of all heads, and their rows for one head at a time.
template <class T>
struct Tile {
  int64_t base;
  int from, to, head;  // head: of the piece
  Runs<T, TILE> runs;
  Ahead<T, TILE> ahead;
  const T *keys[TILE], *values[TILE];

  void find(const Attention& call, const Piece& piece, int64_t at) {
    int64_t begin = std::max(first_seen(call, position_of(call, piece, 0)), at);
    int64_t end = std::min(position_of(call, piece, piece.tokens), at + TILE);
    base = at, from = int(begin - at), to = int(std::max(end, begin) - at);
    runs.find(call, piece, {begin, end});
    ahead.start(call, piece, runs);
  }

  void turn_to(const Attention& call, const Piece& piece, int to_head) {
    head = to_head;
    runs.rows(call, piece.kv_head + head, keys + from, values + from);
  }
};

// Calls act(tile, next) for every tile of a piece and every head of it: memory answers late, so that `next` is fetched
// while `tile` is computed.
template <class T, class Act>
static inline void walk(const Attention& call, const Piece& piece, const Act& act) {
  Tile<T> tiles[2];
  int64_t base = first_seen(call, position_of(call, piece, 0)) / TILE * TILE;
  tiles[0].find(call, piece, base);
  for (int turn = 0; tiles[turn].from < tiles[turn].to; turn = !turn) {
    tiles[!turn].find(call, piece, base += TILE);
    for (int head = 0; head < piece.kv_heads; ++head) {
      tiles[turn].turn_to(call, piece, head);
      act(tiles[turn], tiles[!turn]);
    }
  }
}

// One kernel per kind of CPU and dtype: computes a piece, with memory of its own per thread.
using PieceKernel = void (*)(const Attention&, const Piece&);

// float32, and bfloat16 on any CPU: a query's bits depend on its own sequence alone.
void attend_float32(const Attention& call, const Piece& piece);
void attend_portable_bf16(const Attention& call, const Piece& piece);
void attend_dots(const Attention& call, const Piece& piece);  // bfloat16, few rows, where there is AVX512-BF16
void attend_amx(const Attention& call, const Piece& piece);  // bfloat16, where amx.h says so

}  // namespace pdserve
