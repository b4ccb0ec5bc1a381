#include "threads.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

namespace pdserve {
namespace {

// Pieces of one layer follow each other within microseconds: a futex's wake-up costs more than this short look. Between
// steps every thread sleeps.
constexpr auto LOOK = std::chrono::microseconds(30);

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}

// Returns a value other than `old`.
uint32_t await_change(std::atomic<uint32_t>& word, uint32_t old) {
  auto until = std::chrono::steady_clock::now() + LOOK;
  uint32_t now;
  while ((now = word.load(std::memory_order_acquire)) == old) {
    if (std::chrono::steady_clock::now() < until)
      pause_briefly();
    else
      sleep_while(word, old);
  }
  return now;
}

}  // namespace

Threads::Threads(int count) {
  for (int thread = 1; thread < count; ++thread) others_.emplace_back([this, thread] { serve(thread); });
}

Threads::~Threads() {
  stopping_ = true;
  round_.fetch_add(1, std::memory_order_release);
  wake(round_);
  for (auto& other : others_) other.join();
}

void Threads::start(int64_t pieces, const void* context, Call call) {
  context_ = context, call_ = call, pieces_ = pieces;
  next_.store(0, std::memory_order_relaxed);
  pending_.store(uint32_t(others_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  wake(round_);
  work(0);
  uint32_t left;
  while ((left = pending_.load(std::memory_order_acquire))) await_change(pending_, left);
}

void Threads::work(int thread) {
  for (int64_t piece; (piece = next_.fetch_add(1, std::memory_order_relaxed)) < pieces_;) call_(context_, piece, thread);
}

void Threads::serve(int thread) {
  for (uint32_t seen = 0;;) {
    seen = await_change(round_, seen);
    if (stopping_) return;
    work(thread);
    if (pending_.fetch_sub(1, std::memory_order_release) == 1) wake(pending_);
  }
}

}  // namespace pdserve

extern "C" {

void* pdserve_threads_new(int32_t count) { return new pdserve::Threads(count); }
void pdserve_threads_delete(void* threads) { delete static_cast<pdserve::Threads*>(threads); }
}
