// The threads of one engine: they compute pieces of one call and sleep between steps.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace pdserve {

// One caller at a time. A call's pieces are numbered; which thread computes a piece must not change its numbers.
class Threads {
 public:
  explicit Threads(int count);  // the caller's thread is one of them
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return int(others_.size()) + 1; }

  // Calls act(piece, thread) for every piece in [0, pieces), 0 <= thread < count(); returns when all are done.
  template <class Act>
  void run(int64_t pieces, const Act& act) {
    if (pieces <= 1 || others_.empty()) {
      for (int64_t piece = 0; piece < pieces; ++piece) act(piece, 0);
      return;
    }
    start(pieces, &act, [](const void* context, int64_t piece, int thread) {
      (*static_cast<const Act*>(context))(piece, thread);
    });
  }

 private:
  using Call = void (*)(const void* context, int64_t piece, int thread);
  void start(int64_t pieces, const void* context, Call call);
  void work(int thread);
  bool come_in();
  void serve(int thread);

  std::vector<std::thread> others_;
  const void* context_ = nullptr;
  Call call_ = nullptr;
  int64_t pieces_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};     // the next piece that nobody has
  alignas(64) std::atomic<uint32_t> round_{0};   // one more for every call; the others sleep on it
  std::atomic<uint32_t> sleepers_{0};            // others that sleep, or are about to
  alignas(64) std::atomic<uint32_t> guests_{0};  // others inside the call, and OPEN while more may come in
  std::atomic<bool> stopping_{false};
};

}  // namespace pdserve
