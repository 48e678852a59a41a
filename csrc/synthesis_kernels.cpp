// Compiled once per instruction set into its own namespace (FASTDETECT_LEVEL); the rules of masked_residual_kernels.cpp
// hold: static functions and compiler built-ins only.
#include "synthesis_kernels.h"

#include <string.h>

#include "scalars.h"
#include "synthesis_math.h"

namespace fastdetect::FASTDETECT_LEVEL {
namespace {

template <class T>
inline const T* row_of(const Rows& z, int64_t row) {
  return static_cast<const T*>(z.data) + row * z.stride;
}

template <class T>
bool similarity_range(const MineJob& job, int64_t begin, int64_t end, const double* __restrict center) {
  const int64_t n = job.z.width;
  bool unit = true;
  for (int64_t i = begin; i < end; ++i) {
    const T* __restrict z = row_of<T>(job.z, i);
    double dot = 0.0;
    float square = 0.0f;
#pragma omp simd reduction(+ : dot, square)
    for (int64_t k = 0; k < n; ++k) {
      const float x = load(z[k]);
      dot += static_cast<double>(x) * center[k];
      square += x * x;
    }
    job.similarity[i] = static_cast<float>(dot);
    unit &= square >= 1.0f - kUnitTolerance && square <= 1.0f + kUnitTolerance;  // NaN is neither
  }
  return unit;
}

// u = (1 + lam) z - lam c into a row that stays in L1; its squared length.
template <class T>
inline float extrapolate(const T* __restrict z, const float* __restrict center, float lam, int64_t n,
                         float* __restrict u) {
  const float one_lam = 1.0f + lam;
  float square = 0.0f;
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < n; ++k) {
    u[k] = one_lam * load(z[k]) - lam * center[k];
    square += u[k] * u[k];
  }
  return square;
}

template <class T>
void synthesis_range(const SynthesisJob& job, int64_t begin, int64_t end, float* __restrict u) {
  const int64_t n = job.z.width;
  const uint32_t fake_key = static_cast<uint32_t>(job.state->fake);
  const uint64_t seed = job.seed_at ? static_cast<uint64_t>(*job.seed_at) : job.seed;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = job.index[i];
    T* __restrict out = static_cast<T*>(job.out) + i * n;
    if (row < 0) {
      memset(out, 0, n * sizeof(T));
      job.applied[i] = 0.0f;
      continue;
    }
    const T* __restrict z = row_of<T>(job.z, row);
    if (i + 1 < end && job.index[i + 1] >= 0) __builtin_prefetch(row_of<T>(job.z, job.index[i + 1]));
    float lam = job.lam ? job.lam[job.lam_by_row ? row : i] : job.lam_max * beta22(seed, row);
    if (!(lam >= 0.0f) || job.state->bad) lam = __builtin_nanf("");
    if (job.guard && fake_key) lam = guarded(lam, job.similarity[row], key_value(fake_key));
    job.applied[i] = lam;
    const float scale = 1.0f / __builtin_sqrtf(extrapolate(z, job.center, lam, n, u));
    for (int64_t k = 0; k < n; ++k) store(out + k, u[k] * scale);
  }
}

// Slots are ascending and -1 is past all rows when it is read as unsigned.
inline int64_t first_slot(const int64_t* index, int64_t count, int64_t row) {
  int64_t low = 0;
  while (low < count) {
    const int64_t middle = low + (count - low) / 2;
    if (static_cast<uint64_t>(index[middle]) < static_cast<uint64_t>(row))
      low = middle + 1;
    else
      count = middle;
  }
  return low;
}

template <class T>
void backward_range(const SynthesisBackwardJob& job, int64_t begin, int64_t end, float* __restrict u) {
  const int64_t n = job.z.width;
  int64_t slot = first_slot(job.index, job.count, begin);
  for (int64_t i = begin; i < end; ++i) {
    T* __restrict out = static_cast<T*>(job.out) + i * n;
    const int64_t next = slot < job.count && job.index[slot] >= 0 ? job.index[slot] : end;
    if (i < next) {  // rows that were not mined
      const int64_t stop = next < end ? next : end;
      if (!job.zeroed) memset(out, 0, (stop - i) * n * sizeof(T));
      i = stop - 1;
      continue;
    }
    const T* __restrict grad = static_cast<const T*>(job.grad) + slot * n;
    const float lam = job.lam[slot++];
    const float square = extrapolate(row_of<T>(job.z, i), job.center, lam, n, u);
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t k = 0; k < n; ++k) dot += u[k] * load(grad[k]);
    const float scale = (1.0f + lam) / __builtin_sqrtf(square), along = dot / square;
    for (int64_t k = 0; k < n; ++k) store(out + k, scale * (load(grad[k]) - along * u[k]));
  }
}

constexpr int kAhead = 8, kTogether = 4;  // rows of reals

template <class T>
inline void fetch(const T* row, int64_t n) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < n * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(bytes + byte);
}

template <class T>
void sums_range(const SumsJob& job, int64_t begin, int64_t end) {
  const int64_t n = job.z.width;
  int64_t real[kSumRows + 1];  // written without a branch: labels are as good as random
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    float* __restrict sum = job.partial + chunk * (n + 1);
    memset(sum, 0, (n + 1) * sizeof(float));
    const int64_t first = chunk * kSumRows;
    const int64_t last = first + kSumRows < job.z.count ? first + kSumRows : job.z.count;
    int count = 0;
    bool bad = false;
    for (int64_t i = first; i < last; ++i) {
      real[count] = i;
      count += job.labels[i] == 0;
      bad |= job.labels[i] < 0;
    }
    sum[n] = bad ? __builtin_nanf("") : static_cast<float>(count);
    // Rows of fakes in between break the hardware's streams.
    for (int r = 0; r < kAhead && r < count; ++r) fetch(row_of<T>(job.z, real[r]), n);
    int r = 0;
    for (; r + kTogether <= count; r += kTogether) {
      const T* __restrict a = row_of<T>(job.z, real[r]);
      const T* __restrict b = row_of<T>(job.z, real[r + 1]);
      const T* __restrict c = row_of<T>(job.z, real[r + 2]);
      const T* __restrict d = row_of<T>(job.z, real[r + 3]);
      for (int next = r + kAhead; next < r + kAhead + kTogether && next < count; ++next)
        fetch(row_of<T>(job.z, real[next]), n);
      for (int64_t k = 0; k < n; ++k) sum[k] = (((sum[k] + load(a[k])) + load(b[k])) + load(c[k])) + load(d[k]);
    }
    for (; r < count; ++r) {
      const T* __restrict z = row_of<T>(job.z, real[r]);
      for (int64_t k = 0; k < n; ++k) sum[k] += load(z[k]);
    }
  }
}

}  // namespace

#define FASTDETECT_BY_DTYPE(dtype, function, ...)                              \
  switch (dtype) {                                                             \
    case Dtype::kBFloat16: return function<BFloat16>(__VA_ARGS__);             \
    case Dtype::kFloat16: return function<_Float16>(__VA_ARGS__);              \
    default: return function<float>(__VA_ARGS__); /* the callers check */      \
  }

bool similarities(const MineJob& job, int64_t begin, int64_t end, const double* center) {
  FASTDETECT_BY_DTYPE(job.z.dtype, similarity_range, job, begin, end, center)
}

void synthesize(const SynthesisJob& job, int64_t begin, int64_t end, float* scratch) {
  FASTDETECT_BY_DTYPE(job.z.dtype, synthesis_range, job, begin, end, scratch)
}

void synthesize_backward(const SynthesisBackwardJob& job, int64_t begin, int64_t end, float* scratch) {
  FASTDETECT_BY_DTYPE(job.z.dtype, backward_range, job, begin, end, scratch)
}

void partial_sums(const SumsJob& job, int64_t begin, int64_t end) {
  FASTDETECT_BY_DTYPE(job.z.dtype, sums_range, job, begin, end)
}

}  // namespace fastdetect::FASTDETECT_LEVEL
