// The matrix unit of x86 (AMX), where the compiler was told of it.
#pragma once

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define PDSERVE_AMX 1

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace pdserve {

// Whether the system lets this process use tiles; asked once, for all threads.
inline bool amx_ready() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool ready = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return ready;
}

// Before tiles are loaded from what plain code stored: GCC's intrinsics do not say that they read memory.
inline void stores_done() { __asm__ volatile("" ::: "memory"); }

// All eight tiles of 16 rows of 64 bytes, in this thread until it releases them.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    stores_done();
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace pdserve

#endif
