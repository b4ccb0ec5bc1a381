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
constexpr uint32_t OPEN = 1u << 31;

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

// Whether `word` left `old` within a short look.
bool look(const std::atomic<uint32_t>& word, uint32_t old) {
  const auto until = std::chrono::steady_clock::now() + LOOK;
  while (word.load(std::memory_order_acquire) == old) {
    if (std::chrono::steady_clock::now() >= until) return false;
    pause_briefly();
  }
  return true;
}

}  // namespace

Threads::Threads(int count) {
  for (int thread = 1; thread < count; ++thread) others_.emplace_back([this, thread] { serve(thread); });
}

Threads::~Threads() {
  stopping_ = true;
  round_.fetch_add(1);
  wake(round_);
  for (auto& other : others_) other.join();
}

// The caller waits for those that came in, never for one that the system has not run yet: on a busy machine that one
// may be milliseconds away, and its pieces are computed by then.
void Threads::start(int64_t pieces, const void* context, Call call) {
  context_ = context, call_ = call, pieces_ = pieces;
  next_.store(0, std::memory_order_relaxed);
  guests_.store(OPEN, std::memory_order_release);
  round_.fetch_add(1);
  if (sleepers_.load()) wake(round_);
  work(0);
  for (uint32_t inside = guests_.fetch_and(~OPEN) & ~OPEN; inside; inside = guests_.load(std::memory_order_acquire))
    if (!look(guests_, inside)) sleep_while(guests_, inside);
}

void Threads::work(int thread) {
  for (int64_t piece; (piece = next_.fetch_add(1, std::memory_order_relaxed)) < pieces_;) call_(context_, piece, thread);
}

bool Threads::come_in() {
  uint32_t inside = guests_.load(std::memory_order_acquire);
  while (inside & OPEN)
    if (guests_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
  return false;
}

void Threads::serve(int thread) {
  for (uint32_t seen = 0;;) {
    if (!look(round_, seen)) {
      sleepers_.fetch_add(1);
      while (round_.load() == seen) sleep_while(round_, seen);
      sleepers_.fetch_sub(1);
    }
    seen = round_.load(std::memory_order_acquire);
    if (stopping_) return;
    if (!come_in()) continue;
    work(thread);
    if (guests_.fetch_sub(1, std::memory_order_acq_rel) == 1) wake(guests_);  // the last, and the door is shut
  }
}

}  // namespace pdserve

extern "C" {

void* pdserve_threads_new(int32_t count) { return new pdserve::Threads(count); }
void pdserve_threads_delete(void* threads) { delete static_cast<pdserve::Threads*>(threads); }
}
