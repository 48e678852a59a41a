#include "core.h"

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

}  // namespace fastdetect
