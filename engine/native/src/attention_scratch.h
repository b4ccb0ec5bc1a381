// Memory of one thread, kept between calls.
#pragma once

#include <cstdlib>
#include <new>

#include "types.h"

namespace pdserve {

// Aligned memory that only grows; its contents do not outlive a call.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get(int64_t count) {
    if (count > count_) {
      free(data_);
      data_ = static_cast<T*>(std::aligned_alloc(64, (size_t(count) * sizeof(T) + 63) / 64 * 64));
      count_ = data_ ? count : 0;
      if (!data_) throw std::bad_alloc();
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace pdserve
