#include "kv_write.h"

namespace pdserve {
namespace {

// Keys or values of one token, all heads.
void write_rows(const KvWrite& call, char* to, const char* from, int64_t head_stride, int64_t size) {
  int64_t width = call.dtype == F32 ? 4 : 2;
  for (int64_t head = 0; head < call.kv_heads; ++head)
    memcpy(to + head * call.block_size * size * width, from + head * head_stride * width, size_t(size * width));
}

}  // namespace

void write_kv(const KvWrite& call) {
  int64_t width = call.dtype == F32 ? 4 : 2;
  for (int64_t token = 0; token < call.num_tokens; ++token) {
    char* block = static_cast<char*>(call.pool) + call.blocks[token] * call.block_stride * width;
    char* key = block + (call.key_offset + call.slots[token] * call.key_size) * width;
    char* value = block + (call.value_offset + call.slots[token] * call.value_size) * width;
    const char* keys = static_cast<const char*>(call.keys) + token * call.key_row_stride * width;
    const char* values = static_cast<const char*>(call.values) + token * call.value_row_stride * width;
    write_rows(call, key, keys, call.key_head_stride, call.key_size);
    write_rows(call, value, values, call.value_head_stride, call.value_size);
  }
}

}  // namespace pdserve

extern "C" void pdserve_write_kv(const pdserve::KvWrite* call) { pdserve::write_kv(*call); }
