// The CPU core of masked_patch_loss and patch_residual: plain pointers and strides, so that the torch ops and the
// NumPy module share it. Definitions: docs/kernels.md.
#pragma once

#include <cstdint>

#include "core.h"

namespace fastdetect {

struct Image {  // [B, C, H, W]; strides in elements, any values; uint8 stands for value / 255
  const void* data;
  Dtype dtype;
  int64_t stride_b, stride_c, stride_h, stride_w;
};

struct Grid {
  int64_t channels, rows, cols, patch;  // rows x cols patches of patch x patch pixels
  int64_t patches;                      // L = rows * cols
  int64_t length;                       // K = patch * patch * channels, order (row, column, channel)
};

struct LossJob {
  Grid grid;
  Image image;
  const void* pred;  // [B, L, K], last stride 1
  Dtype pred_dtype;
  int64_t pred_stride_b, pred_stride_l;
  int64_t count;        // B * L
  const float* weight;  // [B * L]; a patch of weight 0 is not read
  bool norm_pix;
  float grad_scale;  // d loss / d (weight * e): 1 / sum(weight) for the mean
  float* loss;       // [B * L], weight * e
  void* grad;        // [B, L, K] of pred's dtype, contiguous; null: not wanted
};

struct ResidualJob {
  Grid grid;
  Image image;
  const void* pred;  // [k, B, L, K], last stride 1
  Dtype pred_dtype;
  int64_t passes, pred_stride_k, pred_stride_b, pred_stride_l;
  const bool* assignment;  // [k, L]
  float gain, clamp;
  void* residual;  // [B, C, H, W], contiguous, of the image dtype (float32 for uint8)
  float* scores;  // [B * L]
};

struct ScaleJob {  // rows of a contiguous [rows, length] array times factor[row * factor_stride]
  void* data;
  Dtype dtype;
  int64_t length;
  const float* factor;
  int64_t factor_stride;
};

// Each works on patches (rows) [begin, end) of the flattened B * L, so that the caller owns the threading.
void masked_patch_loss(const LossJob& job, int64_t begin, int64_t end, CpuLevel level);
void patch_residual(const ResidualJob& job, int64_t begin, int64_t end, CpuLevel level);
void scale_rows(const ScaleJob& job, int64_t begin, int64_t end, CpuLevel level);

}  // namespace fastdetect
