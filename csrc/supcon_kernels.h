// What each compilation of supcon_kernels.cpp offers to the dispatcher.
#pragma once

#include "supcon.h"

#define FASTDETECT_DECLARE_LEVEL(level)                                       \
  namespace fastdetect::level {                                               \
  int64_t supcon_panel();                                                     \
  void supcon_pack(const SupconTiles& tiles, int64_t begin, int64_t end);     \
  void supcon_forward(const SupconTiles& tiles, int64_t begin, int64_t end);  \
  void supcon_backward(const SupconTiles& tiles, int64_t begin, int64_t end); \
  }

FASTDETECT_DECLARE_LEVEL(baseline)
FASTDETECT_DECLARE_LEVEL(avx2)
FASTDETECT_DECLARE_LEVEL(avx512)

#undef FASTDETECT_DECLARE_LEVEL
