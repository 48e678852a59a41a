// Compiled once per instruction set into its own namespace (FASTDETECT_LEVEL); the rules of masked_residual_kernels.cpp
// hold: static functions and compiler built-ins only.
#include "supcon_kernels.h"

#include <string.h>

namespace fastdetect::FASTDETECT_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kStep = 12;  // rows at a time: 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8, kStep = 6;  // 12 of 16
#else
constexpr int64_t kLanes = 4, kStep = 6;
#endif
constexpr int64_t kPanel = 2 * kLanes;
static_assert(kSupconRows % kStep == 0 && kSupconColumns % kPanel == 0);

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline Mask load(const int32_t* p) { return *reinterpret_cast<const Mask*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<Vector*>(p) = x; }
inline Vector all(float x) { return x - Vector{}; }
inline Mask all(int32_t x) { return x - Mask{}; }
inline Vector where(Mask mask, Vector x) { return reinterpret_cast<Vector>(reinterpret_cast<Mask>(x) & mask); }

inline float sum(Vector x) {
  float total = 0.0f;
  for (int64_t i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// e^x for |x| < 80, to two units in the last place: 2^n by the exponent's bits, e^r by a polynomial (Cephes).
inline Vector exponential(Vector x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer
  const Vector shifted = x * 1.44269504088896341f + kRound;
  const Vector n = shifted - kRound;
  const Vector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vector p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return reinterpret_cast<Vector>(reinterpret_cast<Mask>(p) + (reinterpret_cast<Mask>(shifted) << 23));
}

// out[r][0..kPanel) += sum_k a[r * kRowStep + k * kDepthStep] b[k * kPanel + 0..kPanel), for kStep rows.
template <int64_t kRowStep, int64_t kDepthStep>
inline void product(const float* __restrict a, const float* __restrict b, int64_t depth, float* __restrict out,
                    int64_t out_stride, bool fresh) {
  Vector sum[kStep][2];
#pragma GCC unroll 12
  for (int64_t r = 0; r < kStep; ++r) {
    sum[r][0] = fresh ? Vector{} : load(out + r * out_stride);
    sum[r][1] = fresh ? Vector{} : load(out + r * out_stride + kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Vector left = load(b + k * kPanel), right = load(b + k * kPanel + kLanes);
#pragma GCC unroll 12
    for (int64_t r = 0; r < kStep; ++r) {
      const Vector x = all(a[r * kRowStep + k * kDepthStep]);
      sum[r][0] += x * left;
      sum[r][1] += x * right;
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < kStep; ++r) {
    store(out + r * out_stride, sum[r][0]);
    store(out + r * out_stride + kLanes, sum[r][1]);
  }
}

// Rows of a block: tail rows repeat the last one, and nothing of them is kept.
struct Block {
  int64_t first, count, most;  // most: columns that any of its rows sees
  int64_t row[kSupconRows];
};

inline Block block_of(const SupconTiles& t, int64_t number) {
  Block block{number * kSupconRows, t.rows - number * kSupconRows, 0, {}};
  if (block.count > kSupconRows) block.count = kSupconRows;
  for (int64_t r = 0; r < kSupconRows; ++r) {
    block.row[r] = block.first + (r < block.count ? r : block.count - 1);
    if (t.limit[block.row[r]] > block.most) block.most = t.limit[block.row[r]];
  }
  return block;
}

// The rows of a block, transposed in steps of kStep.
inline float* rows_of(const SupconTiles& t, const Block& block) {
  return t.row_packed + block.first * t.width;
}

inline void pack_rows(const SupconTiles& t, int64_t begin, int64_t end) {
  for (int64_t number = begin; number < end; ++number) {
    const Block block = block_of(t, number);
    for (int64_t r = 0; r < kSupconRows; ++r) {
      const float* __restrict row = t.source + t.order[t.position[block.row[r]]] * t.width;
      float* __restrict out = rows_of(t, block) + (r / kStep) * t.width * kStep + r % kStep;
      for (int64_t k = 0; k < t.width; ++k) out[k * kStep] = row[k];
    }
  }
}

// s of a block and the columns [start, stop), rounded up to panels, into strip [kSupconRows][kSupconColumns].
inline void similarities(const SupconTiles& t, const Block& block, int64_t start, int64_t stop,
                         float* __restrict strip) {
  for (int64_t j = start; j < stop; j += kPanel)
    for (int64_t r = 0; r < kSupconRows; r += kStep)
      product<1, kStep>(rows_of(t, block) + r * t.width, t.packed + j * t.width, t.width,
                        strip + r * kSupconColumns + (j - start), kSupconColumns, true);
}

inline Mask lanes() {
  Mask index{};
  for (int32_t i = 0; i < kLanes; ++i) index[i] = i;
  return index;
}

}  // namespace

int64_t supcon_panel() { return kPanel; }

void supcon_pack(const SupconTiles& t, int64_t begin, int64_t end) {
  for (int64_t j = begin * kPanel; j < end * kPanel && j < t.columns; ++j) {
    const float* __restrict row = t.source + t.order[j] * t.width;
    float* __restrict panel = t.packed + j / kPanel * kPanel * t.width + j % kPanel;
    float square = 0.0f;
#pragma omp simd reduction(+ : square)
    for (int64_t k = 0; k < t.width; ++k) square += row[k] * row[k];
    for (int64_t k = 0; k < t.width; ++k) panel[k * kPanel] = row[k];
    for (int64_t d = 0; d < t.width; d += kPanel)
      memcpy(t.y + d * t.padded + j * kPanel, row + d, (d + kPanel < t.width ? kPanel : t.width - d) * sizeof(float));
    t.square[j] = square;
  }
}

void supcon_forward(const SupconTiles& t, int64_t begin, int64_t end) {
  pack_rows(t, begin, end);
  float strip[kSupconRows * kSupconColumns];
  for (int64_t start = 0; start < t.columns; start += kSupconColumns)
    for (int64_t number = begin; number < end; ++number) {
      const Block block = block_of(t, number);
      const int64_t stop = start + kSupconColumns < block.most ? start + kSupconColumns : block.most;
      if (start >= stop) continue;
      similarities(t, block, start, stop, strip);
      for (int64_t r = 0; r < block.count; ++r) {
        const int64_t row = block.row[r];
        const Mask kind = all(t.kind[t.position[row]]), self = all(t.position[row]), limit = all(t.limit[row]);
        const Vector margin = all(t.margin);
        Vector total{}, similar{};
        for (int64_t j = start; j < stop; j += kLanes) {
          const Mask column = lanes() + static_cast<int32_t>(j);
          const Mask seen = (column < limit) & (column != self), positive = (load(t.kind + j) == kind) & seen;
          const Vector s = load(strip + r * kSupconColumns + (j - start));
          total += where(seen, exponential(s * t.scale - where(positive, margin)));
          similar += where(positive, s);
        }
        t.total[row] += sum(total);
        t.similar[row] += sum(similar);
      }
    }
}

void supcon_backward(const SupconTiles& t, int64_t begin, int64_t end) {
  pack_rows(t, begin, end);
  float* const grad = static_cast<float*>(__builtin_alloca(kSupconRows * t.stride * sizeof(float)));
  float strip[kSupconRows * kSupconColumns];
  for (int64_t start = 0; start < t.columns; start += kSupconColumns)
    for (int64_t number = begin; number < end; ++number) {
      const Block block = block_of(t, number);
      const int64_t stop = start + kSupconColumns < block.most ? start + kSupconColumns : block.most;
      if (start >= stop) continue;
      similarities(t, block, start, stop, strip);
      for (int64_t r = 0; r < kSupconRows; ++r) {
        const int64_t row = block.row[r], other = t.position[row] >= t.samples;
        const Mask kind = all(t.kind[t.position[row]]), self = all(t.position[row]), limit = all(t.limit[row]);
        const Vector margin = all(t.margin), rho = all(t.row_rho[row]), c = all(t.row_c[row]);
        for (int64_t j = start; j < stop; j += kLanes) {
          const Mask column = lanes() + static_cast<int32_t>(j);
          const Mask seen = (column < limit) & (column != self), positive = (load(t.kind + j) == kind) & seen;
          float* const place = strip + r * kSupconColumns + (j - start);
          const Vector e = exponential(load(place) * t.scale - where(positive, margin));
          const Vector w = e * (rho + load(t.rho[other] + j)) - where(positive, c + load(t.c[other] + j));
          store(place, where(seen, w));
        }
      }
      for (int64_t r = 0; r < block.count; ++r)
        memcpy(grad + r * t.stride, t.grad + block.row[r] * t.stride, t.stride * sizeof(float));
      for (int64_t d = 0; d < t.stride; d += kPanel)
        for (int64_t r = 0; r < kSupconRows; r += kStep)
          product<kSupconColumns, 1>(strip + r * kSupconColumns, t.y + d * t.padded + start * kPanel, stop - start,
                                     grad + r * t.stride + d, t.stride, false);
      for (int64_t r = 0; r < block.count; ++r)
        memcpy(t.grad + block.row[r] * t.stride, grad + r * t.stride, t.stride * sizeof(float));
    }
}

}  // namespace fastdetect::FASTDETECT_LEVEL
