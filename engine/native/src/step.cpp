#include "step.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "attention.h"
#include "rows.h"

namespace pdserve {
namespace {

constexpr int64_t ROWS_PER_PIECE = 16;

// Memory that is kept between steps: one engine thread computes one step at a time.
struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { free(data); }
  template <class Number>
  Number* get(int64_t count) {
    const size_t wanted = (size_t(count) * sizeof(Number) + 4095) / 4096 * 4096;
    if (wanted > bytes) {
      free(data);
      data = aligned_alloc(4096, wanted);
      bytes = data ? wanted : 0;
      if (!data) throw std::bad_alloc();
    }
    return static_cast<Number*>(data);
  }
};

struct Workspace {
  Buffer hidden, normed, qkv, attended, inner, product, cosines, sines, starts, ends, first_rows, tables, kept, queries;
};

Workspace& workspace() {
  static thread_local Workspace mine;
  return mine;
}

enum Phase { EMBED, NORMS, QKV, ROPE, ATTENTION, OUT, MLP, HEAD };

struct Timer {
  double* profile;
  std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();
  void mark(Phase phase) {
    if (!profile) return;
    const auto now = std::chrono::steady_clock::now();
    profile[phase] += std::chrono::duration<double>(now - last).count();
    last = now;
  }
};

template <class Act>
void by_rows(Threads& threads, int64_t rows, const Act& act) {
  threads.run((rows + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE, [&](int64_t piece, int) {
    const int64_t last = std::min(rows, (piece + 1) * ROWS_PER_PIECE);
    for (int64_t row = piece * ROWS_PER_PIECE; row < last; ++row) act(row);
  });
}

template <class Number>
class Pass {
 public:
  Pass(const Decoder& decoder, const Step& step, Threads& threads, double* profile)
      : d(decoder), s(step), threads(threads), timer{profile}, w(workspace()), rows(step.rows) {}

  void run() {
    embed();
    turn();
    for (int layer = 0; layer < d.num_layers; ++layer) run_layer(d.layers[layer], layer + 1 == d.num_layers);
    if (rows) head();
  }

 private:
  static constexpr DType DTYPE = sizeof(Number) == 2 ? BF16 : F32;

  void embed() {
    hidden = w.hidden.get<float>(rows * d.hidden);
    by_rows(threads, rows, [&](int64_t row) {
      const Number* from = static_cast<const Number*>(d.embedding) + s.token_ids[row] * d.embedding_stride;
      float* to = hidden + row * d.hidden;
      int64_t at = 0;
      for (; at + LANES <= d.hidden; at += LANES) store(to + at, load(from + at) * d.embedding_scale);
      for (; at < d.hidden; ++at) {
        if constexpr (sizeof(Number) == 2) to[at] = to_float(from[at]) * d.embedding_scale;
        else to[at] = from[at] * d.embedding_scale;
      }
    });
    timer.mark(EMBED);
  }

  // Cosines and sines of every row, for each kind of rotation.
  void turn() {
    int64_t widest = 0;
    for (int kind = 0; kind < d.num_ropes; ++kind) widest = std::max<int64_t>(widest, d.ropes[kind].rotary / 2);
    rope_stride = widest;
    cosines = w.cosines.get<float>(d.num_ropes * rows * widest);
    sines = w.sines.get<float>(d.num_ropes * rows * widest);
    for (int kind = 0; kind < d.num_ropes; ++kind) {
      const Rope& rope = d.ropes[kind];
      by_rows(threads, rows, [&](int64_t row) {
        float* cosine = cosines + (kind * rows + row) * widest;
        float* sine = sines + (kind * rows + row) * widest;
        for (int i = 0; i < rope.rotary / 2; ++i) {
          const float angle = float(s.positions[row]) * rope.frequencies[i];
          cosine[i] = std::cos(angle) * rope.scale;
          sine[i] = std::sin(angle) * rope.scale;
        }
      });
    }
    timer.mark(ROPE);
  }

  void run_layer(const Layer& layer, bool last) {
    const int64_t q_width = int64_t(d.heads) * d.head_size, kv_width = int64_t(d.kv_heads) * d.head_size;
    const int64_t qkv_width = q_width + 2 * kv_width;
    const Number* in = normalized(layer.before_attention);
    timer.mark(NORMS);
    Number* qkv = w.qkv.get<Number>(rows * qkv_width);
    multiply(layer.qkv, in, d.hidden, rows, qkv, qkv_width, DTYPE, STORE, threads);
    timer.mark(QKV);
    place(layer, qkv, qkv_width, q_width, kv_width);
    timer.mark(ROPE);
    Number* attended = attend_layer(layer, qkv, qkv_width, q_width, last);
    timer.mark(ATTENTION);
    if (!rows) return;  // nobody samples: all that mattered was the KV
    add(layer.out, attended, q_width, layer.after_attention);
    timer.mark(OUT);
    in = normalized(layer.before_mlp);
    timer.mark(NORMS);
    Number* inner = w.inner.get<Number>(rows * d.inner);
    multiply(layer.gate_up, in, d.hidden, rows, inner, d.inner, DTYPE, Store(layer.gate), threads);
    add(layer.down, inner, d.inner, layer.after_mlp);
    timer.mark(MLP);
  }

  // The rows as a product takes them: of dtype, normalized where there is a norm.
  const Number* normalized(const Norm& norm) {
    Number* to = w.normed.get<Number>(rows * d.hidden);
    by_rows(threads, rows, [&](int64_t row) {
      const float* from = hidden + row * d.hidden;
      if (norm.weight) normalize(from, d.hidden, norm.weight, norm.eps, to + row * d.hidden);
      else convert(from, d.hidden, to + row * d.hidden);
    });
    return to;
  }

  static void convert(const float* from, int64_t size, Number* to) {
    int64_t at = 0;
    for (; at + LANES <= size; at += LANES) store(to + at, load(from + at));
    for (; at < size; ++at) {
      if constexpr (sizeof(Number) == 2) to[at] = to_bf16(from[at]);
      else to[at] = from[at];
    }
  }

  // Norms and rotation of queries and keys in place; keys and values into their slots.
  void place(const Layer& layer, Number* qkv, int64_t width, int64_t q_width, int64_t kv_width) {
    const int64_t size = d.head_size;
    by_rows(threads, rows, [&](int64_t row) {
      Number* query = qkv + row * width;
      Number* key = query + q_width;
      norm_heads(layer.query, query, d.heads);
      norm_heads(layer.key, key, d.kv_heads);
      if (layer.rope >= 0) {
        const int64_t half = d.ropes[layer.rope].rotary / 2, at = (layer.rope * rows + row) * rope_stride;
        for (int64_t head = 0; head < d.heads + d.kv_heads; ++head)
          rotate(query + head * size, half, cosines + at, sines + at);
      }
      Number* block = static_cast<Number*>(s.pool) + s.write_blocks[row] * s.block_stride;
      for (int64_t head = 0; head < d.kv_heads; ++head) {
        const int64_t at = (head * d.block_size + s.write_slots[row]) * size;
        memcpy(block + layer.key_offset + at, key + head * size, size_t(size) * sizeof(Number));
        memcpy(block + layer.value_offset + at, key + kv_width + head * size, size_t(size) * sizeof(Number));
      }
    });
  }

  void norm_heads(const Norm& norm, Number* heads, int64_t count) {
    if (!norm.weight) return;
    const int64_t size = d.norm_all_heads ? count * d.head_size : d.head_size;
    for (int64_t at = 0; at < count * d.head_size; at += size)
      normalize(heads + at, size, norm.weight, norm.eps, heads + at);
  }

  Number* attend_layer(const Layer& layer, const Number* qkv, int64_t width, int64_t q_width, bool last) {
    Attention call{};
    call.dtype = DTYPE;
    call.heads = d.heads, call.kv_heads = d.kv_heads, call.key_size = call.value_size = d.head_size;
    call.block_size = d.block_size;
    call.pool = s.pool, call.block_stride = s.block_stride;
    call.key_offset = layer.key_offset, call.value_offset = layer.value_offset;
    call.num_sequences = s.num_sequences;
    call.block_tables = s.block_tables, call.table_stride = s.table_stride;
    call.starts = s.starts, call.ends = s.ends, call.first_rows = s.first_rows;
    call.scale = layer.scale, call.window = layer.window, call.softcap = layer.softcap;
    if (last) qkv = keep_samples(call, qkv, width, q_width);
    call.q = qkv, call.q_row_stride = last ? q_width : width, call.q_head_stride = d.head_size;
    Number* attended = w.attended.get<Number>(rows * q_width);
    call.out = attended, call.out_row_stride = q_width, call.out_head_stride = d.head_size;
    if (rows) attend(call, threads);
    return attended;
  }

  // After the last layer's KV is written only the rows that sample matter: from here on there are no others.
  const Number* keep_samples(Attention& call, const Number* qkv, int64_t width, int64_t q_width) {
    const int64_t count = s.num_samples;
    Number* queries = w.queries.get<Number>(count * q_width);
    float* kept = w.kept.get<float>(count * d.hidden);
    int64_t* starts = w.starts.get<int64_t>(count);
    int64_t* ends = w.ends.get<int64_t>(count);
    int64_t* first_rows = w.first_rows.get<int64_t>(count);
    int64_t* tables = w.tables.get<int64_t>(count * s.table_stride);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = s.sample_rows[i], sequence = s.sample_sequences[i];
      memcpy(queries + i * q_width, qkv + row * width, size_t(q_width) * sizeof(Number));
      memcpy(kept + i * d.hidden, hidden + row * d.hidden, size_t(d.hidden) * sizeof(float));
      memcpy(tables + i * s.table_stride, s.block_tables + sequence * s.table_stride, size_t(s.table_stride) * 8);
      starts[i] = s.positions[row], ends[i] = starts[i] + 1, first_rows[i] = i;
    }
    std::swap(w.hidden.data, w.kept.data), std::swap(w.hidden.bytes, w.kept.bytes);
    hidden = kept, rows = count;
    call.num_sequences = count, call.block_tables = tables;
    call.starts = starts, call.ends = ends, call.first_rows = first_rows;
    return queries;
  }

  // hidden += scale * norm(in @ matrix)
  void add(const PackedLinear& matrix, const Number* in, int64_t depth, const Norm& norm) {
    if (!norm.weight && d.residual_scale == 1.0f) {
      multiply(matrix, in, depth, rows, hidden, d.hidden, F32, ADD, threads);
      return;
    }
    float* product = w.product.get<float>(rows * d.hidden);
    multiply(matrix, in, depth, rows, product, d.hidden, F32, STORE, threads);
    by_rows(threads, rows, [&](int64_t row) {
      float* from = product + row * d.hidden;
      if (norm.weight) normalize(from, d.hidden, norm.weight, norm.eps, from);
      float* to = hidden + row * d.hidden;
      for (int64_t at = 0; at < d.hidden; ++at) to[at] += d.residual_scale * from[at];
    });
  }

  void head() {
    const Number* in = normalized(d.last);
    multiply(d.head, in, d.hidden, rows, s.logits, d.vocabulary, F32, STORE, threads);
    if (d.logit_scale != 1.0f || d.logit_softcap != 0.0f)
      by_rows(threads, rows, [&](int64_t row) {
        float* logits = s.logits + row * d.vocabulary;
        for (int64_t at = 0; at < d.vocabulary; ++at) {
          float value = logits[at] * d.logit_scale;
          if (d.logit_softcap != 0.0f) value = std::tanh(value / d.logit_softcap) * d.logit_softcap;
          logits[at] = value;
        }
      });
    timer.mark(HEAD);
  }

  const Decoder& d;
  const Step& s;
  Threads& threads;
  Timer timer;
  Workspace& w;
  int64_t rows;  // of hidden: all, then those that sample
  float* hidden = nullptr;
  float *cosines = nullptr, *sines = nullptr;
  int64_t rope_stride = 0;
};

}  // namespace

void run_step(const Decoder& decoder, const Step& step, Threads& threads, double* profile) {
  if (decoder.dtype == BF16) Pass<bf16>(decoder, step, threads, profile).run();
  else Pass<float>(decoder, step, threads, profile).run();
}

}  // namespace pdserve

extern "C" void pdserve_step(const pdserve::Decoder* decoder, const pdserve::Step* step, void* threads,
                             double* profile) {
  pdserve::run_step(*decoder, *step, *static_cast<pdserve::Threads*>(threads), profile);
}

// What the Python side's mirrors must measure: PackedLinear, Norm, Rope, Layer, Decoder, Step.
extern "C" void pdserve_struct_bytes(int64_t* bytes) {
  const int64_t found[] = {sizeof(pdserve::PackedLinear), sizeof(pdserve::Norm),    sizeof(pdserve::Rope),
                           sizeof(pdserve::Layer),        sizeof(pdserve::Decoder), sizeof(pdserve::Step)};
  memcpy(bytes, found, sizeof found);
}
