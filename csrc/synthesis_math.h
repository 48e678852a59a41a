// The scalar arithmetic of positive synthesis, one text for CPU and GPU, so that both draw the same numbers. Static
// functions and built-ins only: the CPU kernels that include this are compiled once per instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FASTDETECT_HOST_DEVICE __host__ __device__
#else
#define FASTDETECT_HOST_DEVICE
#endif

namespace fastdetect {

// Philox4x32-10 (Salmon et al., SC'11): the counter becomes four random words.
FASTDETECT_HOST_DEVICE static inline void philox4x32(uint32_t counter[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * counter[0];
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * counter[2];
    counter[0] = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key0;
    counter[2] = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key1;
    counter[1] = static_cast<uint32_t>(b);
    counter[3] = static_cast<uint32_t>(a);
  }
}

// Beta(2, 2) = the median of three uniforms; 24 bits, so exact in float32 and in [0, 1). Keyed by (seed, row of z).
FASTDETECT_HOST_DEVICE static inline float beta22(uint64_t seed, uint64_t row) {
  uint32_t word[4] = {static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), 0u, 0u};
  philox4x32(word, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint32_t a = word[0] >> 8, b = word[1] >> 8, c = word[2] >> 8;
  const uint32_t low = a < b ? a : b, high = a < b ? b : a, upper = high < c ? high : c;
  return static_cast<float>(low < upper ? upper : low) * (1.0f / 16777216.0f);
}

// Unsigned order of these keys = order of the floats; NaN comes first or last, -0 equals 0. No branch: loops over it are
// vectorised.
FASTDETECT_HOST_DEVICE static inline uint32_t order_key(float value, bool nan_first) {
  value += 0.0f;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t key = bits ^ ((0u - (bits >> 31)) | 0x80000000u), nan = nan_first ? 0u : 0xFFFFFFFFu;
  return value == value ? key : nan;
}

// The float of a key of a fake's cosine; 0xFFFFFFFF gives NaN.
FASTDETECT_HOST_DEVICE static inline float key_value(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7FFFFFFFu : ~key;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FASTDETECT_HOST_DEVICE static inline double sine(double cosine) {
  const double square = 1.0 - cosine * cosine;
#ifdef __CUDA_ARCH__
  return square > 0.0 ? sqrt(square) : 0.0;
#else
  return square > 0.0 ? __builtin_sqrt(square) : 0.0;
#endif
}

// min(lam, lam*) of the guard (docs/kernels.md): real and fake are z_h.c and max z_f.c. NaN stays NaN.
FASTDETECT_HOST_DEVICE static inline float guarded(float lam, float real, float fake) {
  if (real != real || fake != fake) return real + fake;
  const double h = real > 1.0f ? 1.0 : (real < -1.0f ? -1.0 : real);
  const double g = fake > 1.0f ? 1.0 : (fake < -1.0f ? -1.0 : fake);
  if (h <= g) return 0.0f * lam;
  const double between = sine(g) * h - g * sine(h);  // sin(theta_g - theta_h)
  const double denominator = sine(g) - between;
  if (denominator <= 0.0) return lam;
  const double limit = between / denominator;
  return limit < lam ? static_cast<float>(limit) : lam;
}

// ceil(rho * reals); the 1e-9 takes back the rounding of a product such as 0.07 * 100 = 7.000000000000001.
FASTDETECT_HOST_DEVICE static inline int64_t mined_count(double rho, int64_t reals, int64_t capacity) {
  const double exact = rho * static_cast<double>(reals) - 1e-9;
  int64_t count = static_cast<int64_t>(exact);
  if (static_cast<double>(count) < exact) ++count;
  return count < capacity ? count : capacity;
}

}  // namespace fastdetect
