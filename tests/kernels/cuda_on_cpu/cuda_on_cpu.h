// Enough of CUDA to run csrc/synthesis.cu on a CPU, where there is no GPU: the threads of a block are fibers that take
// turns, and wait for each other at barriers and warp operations. Blocks run one after another, so races between
// blocks, memory order and speed are not seen here; indexing, reductions and the selection are.
#pragma once
#define FASTDETECT_CUDA_DEVICE  // instead of csrc/cuda_device.h

#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};

namespace cuda_on_cpu {

struct Barrier {
  unsigned waiting = 0, generation = 0;
};

struct Fiber {
  dim3 thread;
  bool done;
  jmp_buf jump;
  ucontext_t context;
  std::vector<char> stack;
};

inline std::vector<Fiber> fibers;
inline Fiber* current;
inline jmp_buf scheduler;
inline ucontext_t scheduler_context;
inline dim3 block, grid_size, block_size;
inline std::function<void()> body;
inline Barrier block_barrier;
inline Barrier warp_barrier[32];
inline uint64_t lanes[32][32];

inline void yield() {
  if (_setjmp(current->jump) == 0) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier, unsigned threads) {
  const unsigned generation = barrier.generation;
  if (++barrier.waiting == threads) {
    barrier.waiting = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline void fiber_main() {
  body();
  current->done = true;
  _longjmp(scheduler, 1);
}

inline void run_block(unsigned threads) {
  fibers.resize(std::max<size_t>(fibers.size(), threads));
  block_barrier = {};
  std::fill_n(warp_barrier, 32, Barrier{});
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.thread = dim3(t);
    fiber.done = false;
    fiber.stack.resize(1 << 16);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, fiber_main, 0);
  }
  std::vector<bool> started(threads);
  for (unsigned left = threads, rounds = 0; left; ++rounds) {
    if (rounds > 1u << 20) abort();  // a barrier that not all threads reach
    left = 0;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].done) continue;
      current = &fibers[t];
      if (_setjmp(scheduler) == 0) {
        if (started[t]) _longjmp(current->jump, 1);
        started[t] = true;
        setcontext(&current->context);
      }
      left += !fibers[t].done;
    }
  }
}

// Every lane gives a value and reads another lane's.
template <class T>
T exchange(T value, unsigned from) {
  const unsigned warp = current->thread.x / 32, lane = current->thread.x % 32;
  memcpy(&lanes[warp][lane], &value, sizeof value);
  wait(warp_barrier[warp], 32);
  memcpy(&value, &lanes[warp][from < 32 ? from : lane], sizeof value);
  wait(warp_barrier[warp], 32);
  return value;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::current->thread)
#define blockIdx (cuda_on_cpu::block)
#define gridDim (cuda_on_cpu::grid_size)
#define blockDim (cuda_on_cpu::block_size)

using std::max;
using std::min;

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::block_barrier, blockDim.x); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
  return cuda_on_cpu::exchange(value, threadIdx.x % 32 ^ step);
}

template <class T>
T __shfl_up_sync(unsigned, T value, unsigned step) {
  return cuda_on_cpu::exchange(value, threadIdx.x % 32 - step);  // below 0: its own, as on the GPU
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= unsigned{cuda_on_cpu::exchange(vote, lane)} << lane;
  return votes;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T atomicAdd(T* p, T value) {
  const T old = *p;
  *p += value;
  return old;
}

template <class T>
T atomicMax(T* p, T value) {
  const T old = *p;
  *p = std::max(old, value);
  return old;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
inline cudaError_t cuda_error = cudaSuccess;
struct cudaFuncAttributes {};
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}
inline void cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  if (!bytes) cuda_error = cudaErrorInvalidValue;  // as in a graph's capture
  memset(p, value, bytes);
}

namespace fastdetect::cuda {

struct BFloat16 {
  uint16_t bits;
};
using Half = _Float16;

inline float load(float x) { return x; }
inline float load(Half x) { return x; }
inline float load(BFloat16 x) { return __int_as_float(x.bits << 16); }
inline void store(float* p, float x) { *p = x; }
inline void store(Half* p, float x) { *p = static_cast<Half>(x); }
inline void store(BFloat16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  p->bits = static_cast<uint16_t>(x != x ? 0x7FFFu : (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, cudaStream_t, Arguments... arguments) {
  cuda_on_cpu::grid_size = grid;
  cuda_on_cpu::block_size = dim3(threads);
  cuda_on_cpu::body = [=] { kernel(arguments...); };
  for (cuda_on_cpu::block.y = 0; cuda_on_cpu::block.y < grid.y; ++cuda_on_cpu::block.y)
    for (cuda_on_cpu::block.x = 0; cuda_on_cpu::block.x < grid.x; ++cuda_on_cpu::block.x)
      cuda_on_cpu::run_block(threads);
}

}  // namespace fastdetect::cuda
