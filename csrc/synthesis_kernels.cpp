// Compiled once per instruction set into its own namespace (FASTDETECT_LEVEL); the rules of masked_residual_kernels.cpp
// hold: static functions and compiler built-ins only.
#include "synthesis_kernels.h"

#include <string.h>

#include "scalars.h"
#include "streaming.h"
#include "synthesis_math.h"

namespace fastdetect::FASTDETECT_LEVEL {
namespace {

template <class T>
inline const T* row_of(const Rows& z, int64_t row) {
  return static_cast<const T*>(z.data) + row * z.stride;
}

template <class T>
inline void fetch(const T* row, int64_t n) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < n * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(bytes + byte);
}

constexpr int64_t kAheadBytes = 4096;  // the arithmetic of a row is too long for its reads to be kept in flight

constexpr int kAheadRows = 4;  // of mined rows, which lie apart

// Two rows together: one's sums are added up while the other's arrive.
template <class T>
bool similarity_range(const MineJob& job, int64_t begin, int64_t end, const double* __restrict center) {
  const int64_t n = job.z.width, ahead = kAheadBytes / (n * static_cast<int64_t>(sizeof(T))) + 1;
  bool unit = true;
  for (int64_t i = begin; i < end; i += 2) {
    const int64_t j = i + 1 < end ? i + 1 : i;
    const T* __restrict a = row_of<T>(job.z, i);
    const T* __restrict b = row_of<T>(job.z, j);
    if (i + ahead + 1 < end) {
      fetch(row_of<T>(job.z, i + ahead), n);
      fetch(row_of<T>(job.z, i + ahead + 1), n);
    }
    double dot_a = 0.0, dot_b = 0.0;
    float square_a = 0.0f, square_b = 0.0f;
#pragma omp simd reduction(+ : dot_a, dot_b, square_a, square_b)
    for (int64_t k = 0; k < n; ++k) {
      const float x = load(a[k]), y = load(b[k]);
      dot_a += static_cast<double>(x) * center[k];
      dot_b += static_cast<double>(y) * center[k];
      square_a += x * x;
      square_b += y * y;
    }
    job.similarity[i] = static_cast<float>(dot_a);
    job.similarity[j] = static_cast<float>(dot_b);
    unit &= square_a >= 1.0f - kUnitTolerance && square_a <= 1.0f + kUnitTolerance;  // NaN is neither
    unit &= square_b >= 1.0f - kUnitTolerance && square_b <= 1.0f + kUnitTolerance;
  }
  return unit;
}

constexpr uint32_t kFake = 0xFFFFFFFFu;  // above every real's key

inline int64_t count_below(const uint32_t* keys, int64_t count, uint32_t limit) {
  int64_t total = 0;
  for (int64_t begin = 0; begin < count; begin += 1 << 30) {
    const int64_t end = count - begin < 1 << 30 ? count : begin + (1 << 30);
    int32_t part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += keys[i] < limit;
    total += part;
  }
  return total;
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
    if (i + kAheadRows < end && job.index[i + kAheadRows] >= 0) fetch(row_of<T>(job.z, job.index[i + kAheadRows]), n);
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

// Each row is written once: zeros up to the next mined row, then that row, streamed where the gradient is larger than the caches.
template <class T>
void backward_range(const SynthesisBackwardJob& job, int64_t begin, int64_t end, float* u) {
  const int64_t n = job.z.width, size = n * static_cast<int64_t>(sizeof(T));
  const bool streamed = job.z.count * size >= kStreamed;
  T* const all = static_cast<T*>(job.out);
  T* const staged = reinterpret_cast<T*>(u + n);
  const auto clear = [&](int64_t first, int64_t last) {
    if (streamed)
      stream_zeros(all + first * n, (last - first) * size);
    else
      memset(all + first * n, 0, (last - first) * size);
  };
  int64_t done = begin;
  for (int64_t slot = first_slot(job.index, job.count, begin); slot < job.count; ++slot) {
    const int64_t row = job.index[slot];
    if (row < 0 || row >= end) break;
    const int64_t coming = slot + kAheadRows < job.count ? job.index[slot + kAheadRows] : -1;
    if (coming >= 0 && coming < end) fetch(row_of<T>(job.z, coming), n);
    clear(done, row);
    done = row + 1;
    const T* __restrict grad = static_cast<const T*>(job.grad) + slot * n;
    T* const out = all + row * n;
    const float lam = job.lam[slot];
    const float square = extrapolate(row_of<T>(job.z, row), job.center, lam, n, u);
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t k = 0; k < n; ++k) dot += u[k] * load(grad[k]);
    const float scale = (1.0f + lam) / __builtin_sqrtf(square), along = dot / square;
    T* __restrict made = streamed ? staged : out;
    for (int64_t k = 0; k < n; ++k) store(made + k, scale * (load(grad[k]) - along * u[k]));
    if (streamed) stream_copy(out, made, size);
  }
  clear(done, end);
  if (streamed) end_stream();
}

constexpr int kAhead = 8, kTogether = 4;  // rows of reals

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

void mine(const MineJob& job, uint32_t* __restrict keys) {
  const int64_t n = job.z.count;
  const int64_t* __restrict labels = job.labels;
  const float* __restrict similarity = job.similarity;
  int64_t* __restrict index = job.index;
  MineState& state = *job.state;
  uint32_t fake = 0, common = ~0u, any = 0;
  int32_t negative = 0;
  int64_t reals = 0;
#pragma omp simd reduction(max : fake) reduction(& : common) reduction(| : any, negative) reduction(+ : reals)
  for (int64_t i = 0; i < n; ++i) {
    const bool real = labels[i] == 0;
    const uint32_t key = order_key(similarity[i], real), own = real ? key : kFake, other = real ? 0u : key;
    keys[i] = own;
    common &= own;
    any |= real ? key : 0u;
    fake = fake > other ? fake : other;
    reals += real;
    negative |= labels[i] < 0;
  }
  state.bad |= negative;
  state.fake = fake;
  state.reals = reals;
  state.mined = mined_count(job.rho, reals, job.capacity);
  // The last key that is mined and how many are lower, by bisection over the bits that the keys do not share: 5 us a
  // bit at 65536 keys in the L2 cache, since counting has no branch.
  uint32_t last = kFake;
  int64_t below = state.mined;
  if (state.mined && state.mined < reals) {
    uint32_t bit = any & ~common;
    for (int shift = 1; shift < 32; shift *= 2) bit |= bit >> shift;
    last = common & ~bit;
    below = 0;
    for (bit ^= bit >> 1; bit; bit >>= 1) {
      const int64_t lower = count_below(keys, n, last | bit);
      if (lower >= state.mined) continue;
      last |= bit;
      below = lower;
    }
  }
  const int64_t mined = state.mined;
  int64_t ties = mined - below, found = 0;
  const uint32_t limit = last + (ties > 0);
  if (count_below(keys, n, limit) == mined) {
    for (int64_t i = 0; found < mined; ++i) {
      index[found] = i;
      found += keys[i] < limit;
    }
  } else {  // of equal keys the lower rows
    for (int64_t i = 0; found < mined; ++i) {
      const bool tie = keys[i] == last;
      index[found] = i;
      found += (keys[i] < last) | (tie & (ties > 0));
      ties -= tie;
    }
  }
  for (; found < job.capacity; ++found) index[found] = -1;
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
