// What each compilation of masked_residual_kernels.cpp offers to the dispatcher.
#pragma once

#include "masked_residual.h"

#define FASTDETECT_DECLARE_LEVEL(level)                                                          \
  namespace fastdetect::level {                                                                  \
  void masked_patch_loss(const LossJob& job, int64_t begin, int64_t end, float* scratch);        \
  void patch_residual(const ResidualJob& job, int64_t begin, int64_t end, float* scratch);       \
  void scale_rows(const ScaleJob& job, int64_t begin, int64_t end);                              \
  }

FASTDETECT_DECLARE_LEVEL(baseline)
FASTDETECT_DECLARE_LEVEL(avx2)
FASTDETECT_DECLARE_LEVEL(avx512)
