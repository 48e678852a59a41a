// Stores that go past the caches, for outputs that are larger than those: the lines that they overwrite are not read first.
// Static functions and compiler built-ins only: this file is compiled once per instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

namespace fastdetect {

constexpr int64_t kStreamed = 32 << 20;  // bytes of an output from which on it pays
constexpr int64_t kLine = 64;

#ifdef __x86_64__
// may_alias: what is read was written as floats, and without it the compiler may read first.
typedef long long StreamLane __attribute__((vector_size(16), may_alias));
typedef long long LooseLane __attribute__((vector_size(16), aligned(1), may_alias));
#endif

// The lines that lie whole in it are streamed; a part of one is written as usual, since a neighbour has the rest.
static inline void stream_zeros(void* to, int64_t bytes) {
  char* at = static_cast<char*>(to);
#ifdef __x86_64__
  const int64_t head = -reinterpret_cast<uintptr_t>(at) & (kLine - 1);
  if (bytes >= head + kLine) {
    memset(at, 0, head);
    at += head;
    for (bytes -= head; bytes >= kLine; bytes -= kLine, at += kLine)
      for (int64_t k = 0; k < kLine; k += 16) __builtin_ia32_movntdq(reinterpret_cast<StreamLane*>(at + k), StreamLane{});
  }
#endif
  memset(at, 0, bytes);
}

static inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* at = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
#ifdef __x86_64__
  const int64_t head = -reinterpret_cast<uintptr_t>(at) & (kLine - 1);
  if (bytes >= head + kLine) {
    memcpy(at, source, head);
    at += head;
    source += head;
    for (bytes -= head; bytes >= kLine; bytes -= kLine, at += kLine, source += kLine)
      for (int64_t k = 0; k < kLine; k += 16)
        __builtin_ia32_movntdq(reinterpret_cast<StreamLane*>(at + k), *reinterpret_cast<const LooseLane*>(source + k));
  }
#endif
  memcpy(at, source, bytes);
}

// Before another thread reads what was streamed.
static inline void end_stream() {
#ifdef __x86_64__
  __builtin_ia32_sfence();
#endif
}

}  // namespace fastdetect
