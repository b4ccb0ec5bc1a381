#include "attention.h"

#include <vector>

#include "amx.h"
#include "attention_pieces.h"

namespace pdserve {
namespace {

constexpr int ROWS = 512;      // of a piece, where a sequence has that many: one look at a KV tile serves them all
constexpr int DOT_ROWS = 8;  // of a KV head: where no more share its keys, memory is the limit

PieceKernel choose(const Attention& call, const Piece& piece, Choice choice) {
  if (call.dtype == F32) return attend_float32;
  if (choice == PORTABLE) return attend_portable_bf16;
#if defined(PDSERVE_AMX)
  if (int64_t(piece.tokens) * group(call) > DOT_ROWS && amx_ready()) return attend_amx;
#endif
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  if (int64_t(piece.tokens) * group(call) <= DOT_ROWS) return attend_dots;
#endif
  return attend_portable_bf16;
}

// Rough work of a piece: rows and, for each KV head alike, positions seen.
int64_t cost(const Attention& call, const Piece& piece) {
  int64_t last = position_of(call, piece, piece.tokens - 1);
  return (last + 1 - first_seen(call, position_of(call, piece, 0))) * (16 + piece.tokens);
}

}  // namespace

void attend(const Attention& call, Threads& threads, Choice choice) {
  thread_local std::vector<Piece> pieces;
  pieces.clear();
  int64_t most = std::max(1, ROWS / group(call));
  // Few rows take all heads together, as they lie in a block, unless threads would have nothing to do.
  bool many = call.num_sequences >= 4 * threads.count() || threads.count() == 1;
  for (int64_t sequence = 0; sequence < call.num_sequences; ++sequence) {
    int64_t length = call.ends[sequence] - call.starts[sequence];
    int32_t together = many && length * group(call) <= DOT_ROWS ? call.kv_heads : 1;
    for (int32_t head = 0; head < call.kv_heads; head += together)  // a head's KV stays in the cache for its next piece
      for (int64_t first = 0; first < length; first += most)
        pieces.push_back({sequence, first, int32_t(std::min(most, length - first)), head, together});
  }
  if (threads.count() > 1)  // the longest first: nobody waits for one that was begun last
    std::sort(pieces.begin(), pieces.end(),
              [&](const Piece& a, const Piece& b) { return cost(call, a) > cost(call, b); });
  const Piece* all = pieces.data();
  threads.run(int64_t(pieces.size()), [&](int64_t piece, int) { choose(call, all[piece], choice)(call, all[piece]); });
}

}  // namespace pdserve

extern "C" void pdserve_attend(const pdserve::Attention* call, void* threads, int32_t choice) {
  pdserve::attend(*call, *static_cast<pdserve::Threads*>(threads), pdserve::Choice(choice));
}
