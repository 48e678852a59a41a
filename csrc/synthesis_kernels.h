// What each compilation of synthesis_kernels.cpp offers to the dispatcher.
#pragma once

#include "synthesis.h"

#define FASTDETECT_DECLARE_LEVEL(level)                                                                     \
  namespace fastdetect::level {                                                                             \
  bool similarities(const MineJob& job, int64_t begin, int64_t end, const double* center);                  \
  void mine(const MineJob& job, uint32_t* keys);                                                            \
  void synthesize(const SynthesisJob& job, int64_t begin, int64_t end, float* scratch);                     \
  void synthesize_backward(const SynthesisBackwardJob& job, int64_t begin, int64_t end, float* scratch);    \
  void partial_sums(const SumsJob& job, int64_t begin, int64_t end);                                        \
  }

FASTDETECT_DECLARE_LEVEL(baseline)
FASTDETECT_DECLARE_LEVEL(avx2)
FASTDETECT_DECLARE_LEVEL(avx512)

#undef FASTDETECT_DECLARE_LEVEL
