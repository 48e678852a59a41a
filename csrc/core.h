// What the CPU cores of all ops share: data types, and the instruction sets that their kernels are compiled for.
#pragma once

#include <cstdint>

namespace fastdetect {

enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat16, kUInt8 };

// The best one that the processor has is chosen at run time.
enum class CpuLevel : int32_t { kBaseline, kAvx2, kAvx512 };

CpuLevel best_cpu_level();
const char* name(CpuLevel level);

}  // namespace fastdetect

#ifdef FASTDETECT_X86
#define FASTDETECT_DISPATCH(level, call)                   \
  switch (level) {                                         \
    case CpuLevel::kAvx512: return avx512::call;           \
    case CpuLevel::kAvx2: return avx2::call;               \
    case CpuLevel::kBaseline: break;                       \
  }                                                        \
  return baseline::call
#else
#define FASTDETECT_DISPATCH(level, call) return baseline::call
#endif
