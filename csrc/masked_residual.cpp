#include "masked_residual.h"

#include <vector>

#include "masked_residual_kernels.h"

namespace fastdetect {

CpuLevel best_cpu_level() {
#ifdef FASTDETECT_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return CpuLevel::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return CpuLevel::kAvx2;
#endif
  return CpuLevel::kBaseline;
}

const char* name(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx512: return "avx512";
    case CpuLevel::kAvx2: return "avx2";
    case CpuLevel::kBaseline: break;
  }
  return "baseline";
}

#ifdef FASTDETECT_X86
#define FASTDETECT_DISPATCH(level, call)                   \
  switch (level) {                                         \
    case CpuLevel::kAvx512: return avx512::call;           \
    case CpuLevel::kAvx2: return avx2::call;               \
    case CpuLevel::kBaseline: return baseline::call;       \
  }
#else
#define FASTDETECT_DISPATCH(level, call) return baseline::call
#endif

void masked_patch_loss(const LossJob& job, int64_t begin, int64_t end, CpuLevel level) {
  std::vector<float> scratch(job.grid.length);
  FASTDETECT_DISPATCH(level, masked_patch_loss(job, begin, end, scratch.data()));
}

void patch_residual(const ResidualJob& job, int64_t begin, int64_t end, CpuLevel level) {
  std::vector<float> scratch(2 * job.grid.length);
  FASTDETECT_DISPATCH(level, patch_residual(job, begin, end, scratch.data()));
}

void scale_rows(const ScaleJob& job, int64_t begin, int64_t end, CpuLevel level) {
  FASTDETECT_DISPATCH(level, scale_rows(job, begin, end));
}

}  // namespace fastdetect
