// The CUDA core of update_center and synthesize_positives. Reductions are deterministic: fixed order inside a warp and
// over partial sums; atomics only on integers. No host sync. Tiling and byte counts: docs/kernels.md.
#include "synthesis.h"

#include "cuda_device.h"
#include "synthesis_math.h"

namespace fastdetect::cuda {
namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / 32, kAll = 0xFFFFFFFFu;
// The second number of __launch_bounds__ is there for ptxas: without it it aims at more blocks than pay, and spills.
constexpr int kRowsAtOnce = 4;       // rows that a warp has in flight while it takes cosines
constexpr unsigned kMaxBlocks = 1056;  // 8 per multiprocessor of an H200; each then walks over rows
constexpr int kBins = 2048;          // 11 bits of a key per pass of the selection; 10 in the last
constexpr int kKeysPerThread = 8, kChunk = kThreads * kKeysPerThread;
constexpr int kSumChunk = 256;       // rows per partial sum

// Up to 16 bytes of a row, or the floats of the centre that go with them.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T values[V];
};

template <class T, int V>
__device__ Pack<T, V> read(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}

template <class T>
__device__ const T* row_of(const Rows& z, int64_t row) {
  return static_cast<const T*>(z.data) + row * z.stride;
}

template <class Number>
__device__ Number warp_sum(Number value) {
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// Sum over the threads before this one, and over all, of a block of kThreads.
__device__ uint32_t scan_before(uint32_t value, uint32_t* total) {
  __shared__ uint32_t of_warp[kWarps];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t sum = value;
  for (unsigned step = 1; step < 32; step *= 2) {
    const uint32_t below = __shfl_up_sync(kAll, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  uint32_t before = 0, all = 0;
  for (unsigned w = 0; w < kWarps; ++w) {
    before += w < warp ? of_warp[w] : 0;
    all += of_warp[w];
  }
  __syncthreads();
  *total = all;
  return before + sum - value;
}

struct Workspace {  // zeroed before the first kernel
  uint32_t histogram[3][kBins];
  uint32_t prefix[3], rank[3];  // after each pass: the key's leading bits, and its rank (from 1) among those that share them
};

// ---- Mining: cosines, then the M lowest real ones by radix selection, then their rows in ascending order ----

template <class T, int V>
__global__ __launch_bounds__(kThreads, 3) void similarity_kernel(MineJob job, uint32_t* keys, Workspace* work) {
  __shared__ uint32_t histogram[kBins];
  __shared__ unsigned long long reals, fake, bad;
  for (unsigned i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
  if (threadIdx.x == 0) reals = fake = bad = 0;
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kRowsAtOnce; first < job.z.count;
       first += warps * kRowsAtOnce) {
    double dot[kRowsAtOnce] = {};
    float square[kRowsAtOnce] = {};
    for (int64_t k = lane * V; k < job.z.width; k += 32 * V) {
      const Pack<float, V> c = read<float, V>(job.center + k);
      Pack<T, V> z[kRowsAtOnce];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) z[r] = read<T, V>(row_of<T>(job.z, min(first + r, job.z.count - 1)) + k);
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float x = load(z[r].values[j]);
          dot[r] += static_cast<double>(x) * c.values[j];
          square[r] += x * x;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const float similarity = static_cast<float>(warp_sum(dot[r]));
      const float length = warp_sum(square[r]);
      const int64_t row = first + r;
      if (lane != r || row >= job.z.count) continue;
      const int64_t label = job.labels[row];
      const uint32_t key = order_key(similarity, label == 0);
      job.similarity[row] = similarity;
      keys[row] = label == 0 ? key : 0xFFFFFFFFu;  // above every real's
      if (label == 0) {
        atomicAdd(&reals, 1ull);
        atomicAdd(&histogram[key >> 21], 1u);
      } else {
        atomicMax(&fake, static_cast<unsigned long long>(key));
      }
      if (label < 0 || !(length >= 1.0f - kUnitTolerance && length <= 1.0f + kUnitTolerance)) bad = 1;
    }
  }
  if (blockIdx.x == 0 && warp == 0) {
    float square = 0.0f;
    for (int64_t k = lane; k < job.z.width; k += 32) square += job.center[k] * job.center[k];
    square = warp_sum(square);
    if (lane == 0 && !(square >= 1.0f - kUnitTolerance && square <= 1.0f + kUnitTolerance)) bad = 1;
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kBins; i += kThreads)
    if (histogram[i]) atomicAdd(&work->histogram[0][i], histogram[i]);
  if (threadIdx.x == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&job.state->reals), reals);
    atomicMax(reinterpret_cast<unsigned long long*>(&job.state->fake), fake);
    atomicMax(reinterpret_cast<unsigned long long*>(&job.state->bad), bad);
  }
}

// Every block finds the bin of pass `pass` that holds the key of the wanted rank; block 0 writes it down as well.
__device__ void find_bin(Workspace* work, int pass, uint32_t mined, uint32_t* prefix, uint32_t* rank) {
  __shared__ uint32_t found[2];
  const uint32_t wanted = pass ? work->rank[pass - 1] : mined;
  const uint32_t* histogram = work->histogram[pass] + threadIdx.x * (kBins / kThreads);
  uint32_t sum = 0, total;
  for (unsigned i = 0; i < kBins / kThreads; ++i) sum += histogram[i];
  const uint32_t before = scan_before(sum, &total);
  if (before < wanted && wanted <= before + sum) {
    uint32_t below = before;
    unsigned i = 0;
    while (below + histogram[i] < wanted) below += histogram[i++];
    const uint32_t digit = threadIdx.x * (kBins / kThreads) + i;
    found[0] = pass ? work->prefix[pass - 1] << (pass == 2 ? 10 : 11) | digit : digit;
    found[1] = wanted - below;
  }
  __syncthreads();
  *prefix = found[0];
  *rank = found[1];
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    work->prefix[pass] = found[0];
    work->rank[pass] = found[1];
  }
}

__device__ int64_t mined_rows(const MineJob& job) { return mined_count(job.rho, job.state->reals, job.capacity); }

// Histogram of the next digit over the keys that share the digits found so far; after = 0, 1.
template <int kAfter>
__global__ __launch_bounds__(kThreads) void refine_kernel(MineJob job, const uint32_t* keys, Workspace* work) {
  __shared__ uint32_t histogram[kBins];
  const int64_t mined = mined_rows(job);
  if (mined == 0) return;
  for (unsigned i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
  uint32_t prefix, rank;
  find_bin(work, kAfter, static_cast<uint32_t>(mined), &prefix, &rank);  // ends behind a barrier
  constexpr int kShift = kAfter ? 10 : 21, kDrop = kAfter ? 0 : 10, kMask = kAfter ? 1023 : 2047;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < job.z.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const uint32_t key = keys[i];
    if (key >> kShift == prefix) atomicAdd(&histogram[key >> kDrop & kMask], 1u);
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kBins; i += kThreads)
    if (histogram[i]) atomicAdd(&work->histogram[kAfter + 1][i], histogram[i]);
}

// Keys below the limit in the low half, equal ones in the high half: a chunk has 2048 keys, so neither overflows.
__device__ uint32_t compare(uint32_t key, uint32_t limit) { return key < limit ? 1u : (key == limit ? 1u << 16 : 0u); }

__device__ uint32_t compare_own(const uint32_t* keys, int64_t rows, uint32_t limit) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk + threadIdx.x * kKeysPerThread;
  uint32_t sum = 0;
  for (int i = 0; i < kKeysPerThread; ++i)
    if (first + i < rows) sum += compare(keys[first + i], limit);
  return sum;
}

__global__ __launch_bounds__(kThreads) void count_kernel(MineJob job, const uint32_t* keys, Workspace* work,
                                                         uint32_t* counts) {
  const int64_t mined = mined_rows(job);
  if (mined == 0) return;
  uint32_t limit, rank, total;
  find_bin(work, 2, static_cast<uint32_t>(mined), &limit, &rank);
  scan_before(compare_own(keys, job.z.count, limit), &total);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// Slot of a mined row: lower keys before it, and equal ones before it as far as they are taken.
__global__ __launch_bounds__(kThreads) void emit_kernel(MineJob job, const uint32_t* keys, const Workspace* work,
                                                        const uint32_t* counts) {
  const int64_t mined = mined_rows(job);
  if (blockIdx.x == 0 && threadIdx.x == 0) job.state->mined = mined;
  if (mined == 0) return;
  const uint32_t limit = work->prefix[2], taken = work->rank[2];
  uint32_t lower = 0, equal = 0, total_lower, total_equal, total;
  for (unsigned chunk = threadIdx.x; chunk < blockIdx.x; chunk += kThreads) {
    lower += counts[chunk] & 0xFFFFu;
    equal += counts[chunk] >> 16;
  }
  scan_before(lower, &total_lower);
  scan_before(equal, &total_equal);
  const uint32_t before = scan_before(compare_own(keys, job.z.count, limit), &total);
  lower = total_lower + (before & 0xFFFFu);
  equal = total_equal + (before >> 16);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk + threadIdx.x * kKeysPerThread;
  for (int i = 0; i < kKeysPerThread && first + i < job.z.count; ++i) {
    const uint32_t key = keys[first + i];
    if (key < limit || (key == limit && equal < taken)) job.index[lower + min(equal, taken)] = first + i;
    lower += key < limit;
    equal += key == limit;
  }
}

// ---- Synthesis: a warp per row; the second reading of a row comes from L1 ----

template <class T, int V>
__global__ __launch_bounds__(kThreads, 4) void synthesis_kernel(SynthesisJob job) {
  const unsigned lane = threadIdx.x % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  const uint32_t fake = static_cast<uint32_t>(job.state->fake);
  const bool bad = job.state->bad;
  const uint64_t seed = job.seed_at ? static_cast<uint64_t>(*job.seed_at) : job.seed;
  for (int64_t slot = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; slot < job.count; slot += warps) {
    const int64_t row = job.index[slot];
    float lam = 0.0f, scale = 0.0f;
    if (row >= 0) {
      lam = job.lam ? job.lam[job.lam_by_row ? row : slot] : job.lam_max * beta22(seed, row);
      if (!(lam >= 0.0f) || bad) lam = __int_as_float(0x7FC00000);
      if (job.guard && fake) lam = guarded(lam, job.similarity[row], key_value(fake));
    }
    if (lane == 0) job.applied[slot] = lam;
    const T* z = row_of<T>(job.z, max(row, int64_t{0}));
    T* out = static_cast<T*>(job.out) + slot * job.z.width;
    const float one_lam = 1.0f + lam;
    if (row >= 0) {
      float square = 0.0f;
      for (int64_t k = lane * V; k < job.z.width; k += 32 * V) {
        const Pack<T, V> x = read<T, V>(z + k);
        const Pack<float, V> c = read<float, V>(job.center + k);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float u = one_lam * load(x.values[j]) - lam * c.values[j];
          square += u * u;
        }
      }
      scale = 1.0f / sqrtf(warp_sum(square));
    }
    for (int64_t k = lane * V; k < job.z.width; k += 32 * V) {
      const Pack<T, V> x = read<T, V>(z + k);
      const Pack<float, V> c = read<float, V>(job.center + k);
      Pack<T, V> y;
#pragma unroll
      for (int j = 0; j < V; ++j)
        store(&y.values[j], row < 0 ? 0.0f : (one_lam * load(x.values[j]) - lam * c.values[j]) * scale);
      *reinterpret_cast<Pack<T, V>*>(out + k) = y;
    }
  }
}

// Slots below `row`: a search with 32 probes a step. -1 past the mined rows is the largest as unsigned.
__device__ int64_t first_slot(const int64_t* index, int64_t count, int64_t row, unsigned lane) {
  int64_t low = 0;
  while (count > 0) {
    const int64_t step = (count + 31) / 32, probe = lane * step;
    const bool below = probe < count && static_cast<uint64_t>(index[low + probe]) < static_cast<uint64_t>(row);
    const int passed = __popc(__ballot_sync(kAll, below));
    if (passed == 0) break;
    const int64_t start = (passed - 1) * step + 1;
    count = min(step - 1, count - start);
    low += start;
  }
  return low;
}

template <class T, int V>
__global__ __launch_bounds__(kThreads, 4) void backward_kernel(SynthesisBackwardJob job, int64_t rows_per_warp) {
  const unsigned lane = threadIdx.x % 32;
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * rows_per_warp;
  const int64_t end = min(begin + rows_per_warp, job.z.count);
  int64_t slot = first_slot(job.index, job.count, begin, lane);
  for (int64_t row = begin; row < end; ++row) {
    const bool mined = slot < job.count && job.index[slot] == row;
    T* out = static_cast<T*>(job.out) + row * job.z.width;
    const T* z = row_of<T>(job.z, row);
    const T* grad = static_cast<const T*>(job.grad) + (mined ? slot : 0) * job.z.width;
    const float lam = mined ? job.lam[slot] : 0.0f, one_lam = 1.0f + lam;
    float scale = 0.0f, along = 0.0f;
    if (mined) {
      float square = 0.0f, dot = 0.0f;
      for (int64_t k = lane * V; k < job.z.width; k += 32 * V) {
        const Pack<T, V> x = read<T, V>(z + k), g = read<T, V>(grad + k);
        const Pack<float, V> c = read<float, V>(job.center + k);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float u = one_lam * load(x.values[j]) - lam * c.values[j];
          square += u * u;
          dot += u * load(g.values[j]);
        }
      }
      square = warp_sum(square);
      scale = one_lam / sqrtf(square);
      along = warp_sum(dot) / square;
      ++slot;
    }
    for (int64_t k = lane * V; k < job.z.width; k += 32 * V) {
      Pack<T, V> y;
      if (mined) {
        const Pack<T, V> x = read<T, V>(z + k), g = read<T, V>(grad + k);
        const Pack<float, V> c = read<float, V>(job.center + k);
#pragma unroll
        for (int j = 0; j < V; ++j)
          store(&y.values[j],
                scale * (load(g.values[j]) - along * (one_lam * load(x.values[j]) - lam * c.values[j])));
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) store(&y.values[j], 0.0f);
      }
      *reinterpret_cast<Pack<T, V>*>(out + k) = y;
    }
  }
}

// ---- Centre: partial sums of kSumChunk rows, their sum, the mixture ----

// A block: a chunk of rows by 32 * V columns; warp w adds rows w, w + 8, ... of the chunk, then the warps in order.
template <class T, int V>
__global__ __launch_bounds__(kThreads) void partial_sum_kernel(SumsJob job) {
  __shared__ float sums[kWarps][32 * V];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t width = job.z.width, column = (static_cast<int64_t>(blockIdx.y) * 32 + lane) * V;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSumChunk, last = min(first + kSumChunk, job.z.count);
  float sum[V] = {};
  float count = 0.0f;
  for (int64_t row = first + warp; row < last; row += 4 * kWarps) {
    Pack<T, V> z[4] = {};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t at = row + r * kWarps;
      const int64_t label = at < last ? job.labels[at] : 1;
      if (label == 0 && column < width) z[r] = read<T, V>(row_of<T>(job.z, at) + column);
      count += label == 0 ? 1.0f : (label < 0 ? __int_as_float(0x7FC00000) : 0.0f);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += load(z[r].values[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) sums[warp][lane * V + j] = sum[j];
  __syncthreads();
  float* out = job.partial + blockIdx.x * (width + 1);
  for (unsigned k = threadIdx.x; k < 32 * V; k += kThreads) {
    float total = 0.0f;
    for (unsigned w = 0; w < kWarps; ++w) total += sums[w][k];
    const int64_t at = static_cast<int64_t>(blockIdx.y) * 32 * V + k;
    if (at < width) out[at] = total;
  }
  if (blockIdx.y) return;
  __syncthreads();
  if (lane == 0) sums[warp][0] = count;
  __syncthreads();
  if (threadIdx.x) return;
  for (unsigned w = 1; w < kWarps; ++w) count += sums[w][0];
  out[width] = count;
}

// 32 columns a block; warp w adds chunks w, w + 8, ...
__global__ __launch_bounds__(kThreads) void finish_sum_kernel(SumsJob job, int64_t chunks) {
  __shared__ float sums[kWarps][32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t width = job.z.width + 1, column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  for (int64_t chunk = warp; chunk < chunks; chunk += kWarps)
    if (column < width) sum += job.partial[chunk * width + column];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp || column >= width) return;
  for (unsigned w = 1; w < kWarps; ++w) sum += sums[w][lane];
  job.sums[column] = sum;
}

__device__ float block_sum(float value) {
  __shared__ float of_warp[kWarps];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (unsigned w = 0; w < kWarps; ++w) total += of_warp[w];
  __syncthreads();
  return total;
}

__global__ __launch_bounds__(kThreads) void mix_kernel(MixJob job) {
  const float count = job.sums[job.width];
  float square = 0.0f;
  for (int64_t k = threadIdx.x; k < job.width; k += kThreads) square += job.center[k] * job.center[k];
  const float keep = block_sum(square) == 0.0f ? 0.0f : static_cast<float>(job.momentum);
  const float weight = keep == 0.0f ? 1.0f : static_cast<float>(1.0 - job.momentum);
  square = 0.0f;
  for (int64_t k = threadIdx.x; k < job.width; k += kThreads) {
    const float mixed = keep * job.center[k] + weight * (job.sums[k] / count);
    square += mixed * mixed;
  }
  const float length = sqrtf(block_sum(square));
  for (int64_t k = threadIdx.x; k < job.width; k += kThreads) {
    const float mixed = keep * job.center[k] + weight * (job.sums[k] / count);
    job.out[k] = count == 0.0f || length == 0.0f ? job.center[k] : mixed / length;
  }
}

// ---- Launches ----

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

unsigned blocks(int64_t items, int64_t per_block) { return static_cast<unsigned>((items + per_block - 1) / per_block); }

unsigned few_blocks(int64_t items, int64_t per_block) {
  const int64_t wanted = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(wanted < kMaxBlocks ? wanted : kMaxBlocks);
}

// Calls launcher.template run<T, V>() with 16-byte accesses where all rows and pointers allow them.
template <class Launcher>
void by_type(const Rows& z, bool all_aligned, const Launcher& launcher) {
  const auto with = [&](auto element) {
    using T = decltype(element);
    constexpr int V = 16 / sizeof(T);
    if (all_aligned && aligned(z.data) && z.width % V == 0 && z.stride % V == 0)
      launcher.template operator()<T, V>();
    else
      launcher.template operator()<T, 1>();
  };
  if (z.dtype == Dtype::kBFloat16)
    with(BFloat16{});
  else if (z.dtype == Dtype::kFloat16)
    with(Half{});
  else
    with(float{});
}

constexpr int64_t kWords = sizeof(Workspace) / sizeof(uint32_t);

}  // namespace

int64_t mine_workspace(int64_t rows) { return kWords + blocks(rows, kChunk) + rows; }

int64_t sum_chunks(int64_t rows) { return blocks(rows, kSumChunk); }

bool runs_here() {
  cudaFuncAttributes attributes;
  const bool found = cudaFuncGetAttributes(&attributes, mix_kernel) == cudaSuccess;
  cudaGetLastError();  // "no kernel image" would be the next call's error
  return found;
}

const char* mine(const MineJob& job, uint32_t* workspace, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  auto* work = reinterpret_cast<Workspace*>(workspace);
  uint32_t* counts = workspace + kWords;
  uint32_t* keys = counts + blocks(job.z.count, kChunk);
  cudaMemsetAsync(work, 0, sizeof(Workspace), stream);
  cudaMemsetAsync(job.state, 0, sizeof(MineState), stream);
  // No bytes: an error in a graph's capture.
  if (job.capacity) cudaMemsetAsync(job.index, 0xFF, job.capacity * sizeof(int64_t), stream);
  by_type(job.z, aligned(job.center), [&]<class T, int V>() {
    launch(similarity_kernel<T, V>, few_blocks(job.z.count, kWarps * kRowsAtOnce), kThreads, stream, job, keys, work);
  });
  launch(refine_kernel<0>, few_blocks(job.z.count, kChunk), kThreads, stream, job, keys, work);
  launch(refine_kernel<1>, few_blocks(job.z.count, kChunk), kThreads, stream, job, keys, work);
  launch(count_kernel, blocks(job.z.count, kChunk), kThreads, stream, job, keys, work, counts);
  launch(emit_kernel, blocks(job.z.count, kChunk), kThreads, stream, job, keys, work, counts);
  return last_error();
}

const char* synthesize(const SynthesisJob& job, void* stream) {
  by_type(job.z, aligned(job.center) && aligned(job.out), [&]<class T, int V>() {
    launch(synthesis_kernel<T, V>, few_blocks(job.count, kWarps), kThreads, static_cast<cudaStream_t>(stream), job);
  });
  return last_error();
}

const char* synthesize_backward(const SynthesisBackwardJob& job, void* stream) {
  constexpr int64_t kRowsPerWarp = 4;  // one search of the slots for each four rows
  by_type(job.z, aligned(job.center) && aligned(job.grad) && aligned(job.out), [&]<class T, int V>() {
    launch(backward_kernel<T, V>, blocks(job.z.count, kWarps * kRowsPerWarp), kThreads,
           static_cast<cudaStream_t>(stream), job, kRowsPerWarp);
  });
  return last_error();
}

const char* real_sums(const SumsJob& job, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t chunks = sum_chunks(job.z.count);
  by_type(job.z, true, [&]<class T, int V>() {
    const dim3 grid(static_cast<unsigned>(chunks), blocks(job.z.width, 32 * V));
    launch(partial_sum_kernel<T, V>, grid, kThreads, stream, job);
  });
  launch(finish_sum_kernel, blocks(job.z.width + 1, 32), kThreads, stream, job, chunks);
  return last_error();
}

const char* mix_center(const MixJob& job, void* stream) {
  launch(mix_kernel, 1, kThreads, static_cast<cudaStream_t>(stream), job);
  return last_error();
}

}  // namespace fastdetect::cuda
