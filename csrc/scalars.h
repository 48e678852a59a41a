// Element types of the CPU kernels. Static functions only: these files are compiled once per instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

namespace fastdetect {

struct BFloat16 {
  uint16_t bits;
};

static inline float load(float x) { return x; }
static inline float load(_Float16 x) { return static_cast<float>(x); }
static inline float load(uint8_t x) { return static_cast<float>(x) * (1.0f / 255.0f); }
static inline float load(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline void store(float* p, float x) { *p = x; }
static inline void store(_Float16* p, float x) { *p = static_cast<_Float16>(x); }
static inline void store(BFloat16* p, float x) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

}  // namespace fastdetect
