// What synthesis.cu takes from CUDA beyond its keywords. tests/kernels/cuda_on_cpu brings a stand-in for the CPU.
#ifndef FASTDETECT_CUDA_DEVICE
#define FASTDETECT_CUDA_DEVICE

#include <cuda_runtime.h>
#include <stdint.h>

namespace fastdetect::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// PTX instead of cuda_bf16.h and cuda_fp16.h, which take a second per architecture to compile.
__device__ inline float load(float x) { return x; }
__device__ inline float load(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float load(Half x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}

__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(BFloat16* p, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(x)); }
__device__ inline void store(Half* p, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(x)); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, cudaStream_t stream, Arguments... arguments) {
  if (grid.x && grid.y) kernel<<<grid, threads, 0, stream>>>(arguments...);
}

}  // namespace fastdetect::cuda

#endif
