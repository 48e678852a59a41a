// Compiled once per instruction set into its own namespace (FASTDETECT_LEVEL). Only static functions and compiler
// built-ins here: an inline library function compiled with AVX-512 could be the copy that the linker keeps for all.
#include "masked_residual_kernels.h"

#include <string.h>

#include "scalars.h"
#include "streaming.h"

namespace fastdetect::FASTDETECT_LEVEL {
namespace {

struct Patch {
  int64_t batch, index, row, col;
};

inline Patch patch_at(const Grid& grid, int64_t flat) {
  const int64_t index = flat % grid.patches;
  return {flat / grid.patches, index, index / grid.cols, index % grid.cols};
}

template <class Pixel>
inline const Pixel* corner(const Image& image, const Grid& grid, const Patch& at) {
  return static_cast<const Pixel*>(image.data) + at.batch * image.stride_b +
         at.row * grid.patch * image.stride_h + at.col * grid.patch * image.stride_w;
}

// One patch of the image into out[K], channel last. The planar RGB case is written out so that it vectorises.
template <class Pixel>
void gather(const Image& image, const Grid& grid, const Patch& at, float* __restrict out) {
  const Pixel* base = corner<Pixel>(image, grid, at);
  const int64_t size = grid.patch, channels = grid.channels;
  for (int64_t y = 0; y < size; ++y, base += image.stride_h, out += size * channels) {
    if (channels == 3 && image.stride_w == 1) {
      const Pixel *r = base, *g = base + image.stride_c, *b = base + 2 * image.stride_c;
      for (int64_t x = 0; x < size; ++x) {
        out[3 * x] = load(r[x]);
        out[3 * x + 1] = load(g[x]);
        out[3 * x + 2] = load(b[x]);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t x = 0; x < size; ++x)
          out[x * channels + c] = load(base[c * image.stride_c + x * image.stride_w]);
    }
  }
}

// The next patch's image rows are short pieces far apart, which the hardware prefetcher does not follow.
template <class Pixel>
void prefetch(const Image& image, const Grid& grid, const Patch& at) {
  const Pixel* base = corner<Pixel>(image, grid, at);
  for (int64_t c = 0; c < grid.channels; ++c)
    for (int64_t y = 0; y < grid.patch; ++y)
      __builtin_prefetch(base + c * image.stride_c + y * image.stride_h);
}

// (t - mean) / sqrt(var + 1e-6) with the unbiased variance, two passes over a row that lies in L1.
void standardise(float* __restrict t, int64_t n) {
  float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += t[i];
  const float mean = sum / static_cast<float>(n);
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) {
    t[i] -= mean;
    squares += t[i] * t[i];
  }
  const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n - 1) + 1e-6f);
  for (int64_t i = 0; i < n; ++i) t[i] *= scale;
}

template <class Pred, class Pixel>
void loss_range(const LossJob& job, int64_t begin, int64_t end, float* scratch) {
  const Grid& grid = job.grid;
  const int64_t n = grid.length;
  const float inverse = 1.0f / static_cast<float>(n);
  const int64_t size = n * static_cast<int64_t>(sizeof(Pred));
  const bool streamed = job.grad && job.count * size >= kStreamed;
  Pred* const staged = reinterpret_cast<Pred*>(scratch + n);
  for (int64_t i = begin; i < end; ++i) {
    const Patch at = patch_at(grid, i);
    const float weight = job.weight[i];
    Pred* __restrict grad = job.grad ? static_cast<Pred*>(job.grad) + i * n : nullptr;
    if (weight == 0.0f) {
      job.loss[i] = 0.0f;
      const float zero = 0.0f * job.grad_scale;  // NaN where no patch at all was removed: 0 / 0, as the loss
      if (grad && zero == 0.0f && streamed) stream_zeros(grad, size);
      if (grad && zero == 0.0f && !streamed) memset(grad, 0, size);
      if (grad && zero != 0.0f)
        for (int64_t k = 0; k < n; ++k) store(grad + k, zero);
      continue;
    }
    if (i + 1 < end && job.weight[i + 1] != 0.0f) prefetch<Pixel>(job.image, grid, patch_at(grid, i + 1));
    gather<Pixel>(job.image, grid, at, scratch);
    if (job.norm_pix) standardise(scratch, n);
    const float* __restrict target = scratch;
    const Pred* __restrict pred =
        static_cast<const Pred*>(job.pred) + at.batch * job.pred_stride_b + at.index * job.pred_stride_l;
    float squares = 0.0f;
    if (grad) {
      const float scale = 2.0f * inverse * weight * job.grad_scale;
      Pred* __restrict made = streamed ? staged : grad;
#pragma omp simd reduction(+ : squares)
      for (int64_t k = 0; k < n; ++k) {
        const float d = load(pred[k]) - target[k];
        squares += d * d;
        store(made + k, d * scale);
      }
      if (streamed) stream_copy(grad, made, size);
    } else {
#pragma omp simd reduction(+ : squares)
      for (int64_t k = 0; k < n; ++k) {
        const float d = load(pred[k]) - target[k];
        squares += d * d;
      }
    }
    job.loss[i] = weight * (squares * inverse);
  }
  if (streamed) end_stream();
}

// values[K], channel last, into the patch's place in the contiguous image.
template <class Out>
void scatter(Out* image, const Grid& grid, const Patch& at, const float* __restrict values) {
  const int64_t size = grid.patch, channels = grid.channels;
  const int64_t width = grid.cols * size, plane = grid.rows * size * width;
  Out* __restrict base = image + at.batch * channels * plane + at.row * size * width + at.col * size;
  for (int64_t y = 0; y < size; ++y, base += width, values += size * channels) {
    if (channels == 3) {
      for (int64_t x = 0; x < size; ++x) {
        store(base + x, values[3 * x]);
        store(base + plane + x, values[3 * x + 1]);
        store(base + 2 * plane + x, values[3 * x + 2]);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t x = 0; x < size; ++x) store(base + c * plane + x, values[x * channels + c]);
    }
  }
}

template <class Pred, class Pixel, class Out>
void residual_range(const ResidualJob& job, int64_t begin, int64_t end, float* scratch) {
  const Grid& grid = job.grid;
  const int64_t n = grid.length;
  const float clamp = job.clamp, gain = job.gain;
  float* __restrict target = scratch;
  float* __restrict mean = scratch + n;
  for (int64_t i = begin; i < end; ++i) {
    const Patch at = patch_at(grid, i);
    int64_t count = 0;
    for (int64_t j = 0; j < job.passes; ++j) {
      if (!job.assignment[j * grid.patches + at.index]) continue;
      const Pred* __restrict pred = static_cast<const Pred*>(job.pred) + j * job.pred_stride_k +
                                    at.batch * job.pred_stride_b + at.index * job.pred_stride_l;
      if (count++ == 0)
        for (int64_t k = 0; k < n; ++k) mean[k] = load(pred[k]);
      else
        for (int64_t k = 0; k < n; ++k) mean[k] += load(pred[k]);
    }
    float squares = 0.0f;
    if (count == 0) {
      memset(mean, 0, n * sizeof(float));
    } else {
      gather<Pixel>(job.image, grid, at, target);
      const float inverse = 1.0f / static_cast<float>(count);
#pragma omp simd reduction(+ : squares)
      for (int64_t k = 0; k < n; ++k) {
        const float d = mean[k] * inverse - target[k];
        squares += d * d;
        const float r = gain * d;  // written so that NaN passes through
        mean[k] = r > clamp ? clamp : (r < -clamp ? -clamp : r);
      }
    }
    scatter(static_cast<Out*>(job.residual), grid, at, mean);
    job.scores[i] = squares / static_cast<float>(n);
  }
}

template <class T>
void scale_range(const ScaleJob& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float factor = job.factor[i * job.factor_stride];
    if (factor == 1.0f) continue;  // the common case: loss.backward() costs no pass over the gradient
    T* __restrict row = static_cast<T*>(job.data) + i * job.length;
    for (int64_t k = 0; k < job.length; ++k) store(row + k, load(row[k]) * factor);
  }
}

template <class Pred>
void loss_by_pixel(const LossJob& job, int64_t begin, int64_t end, float* scratch) {
  switch (job.image.dtype) {
    case Dtype::kFloat32: return loss_range<Pred, float>(job, begin, end, scratch);
    case Dtype::kBFloat16: return loss_range<Pred, BFloat16>(job, begin, end, scratch);
    case Dtype::kFloat16: return loss_range<Pred, _Float16>(job, begin, end, scratch);
    case Dtype::kUInt8: return loss_range<Pred, uint8_t>(job, begin, end, scratch);
  }
}

// The residual has the images' dtype, or float32 for uint8 images.
template <class Pred>
void residual_by_pixel(const ResidualJob& job, int64_t begin, int64_t end, float* scratch) {
  switch (job.image.dtype) {
    case Dtype::kFloat32: return residual_range<Pred, float, float>(job, begin, end, scratch);
    case Dtype::kBFloat16: return residual_range<Pred, BFloat16, BFloat16>(job, begin, end, scratch);
    case Dtype::kFloat16: return residual_range<Pred, _Float16, _Float16>(job, begin, end, scratch);
    case Dtype::kUInt8: return residual_range<Pred, uint8_t, float>(job, begin, end, scratch);
  }
}

}  // namespace

void masked_patch_loss(const LossJob& job, int64_t begin, int64_t end, float* scratch) {
  switch (job.pred_dtype) {
    case Dtype::kFloat32: return loss_by_pixel<float>(job, begin, end, scratch);
    case Dtype::kBFloat16: return loss_by_pixel<BFloat16>(job, begin, end, scratch);
    case Dtype::kFloat16: return loss_by_pixel<_Float16>(job, begin, end, scratch);
    case Dtype::kUInt8: return;  // refused by the callers: a prediction is a floating-point tensor
  }
}

void patch_residual(const ResidualJob& job, int64_t begin, int64_t end, float* scratch) {
  switch (job.pred_dtype) {
    case Dtype::kFloat32: return residual_by_pixel<float>(job, begin, end, scratch);
    case Dtype::kBFloat16: return residual_by_pixel<BFloat16>(job, begin, end, scratch);
    case Dtype::kFloat16: return residual_by_pixel<_Float16>(job, begin, end, scratch);
    case Dtype::kUInt8: return;
  }
}

void scale_rows(const ScaleJob& job, int64_t begin, int64_t end) {
  switch (job.dtype) {
    case Dtype::kFloat32: return scale_range<float>(job, begin, end);
    case Dtype::kBFloat16: return scale_range<BFloat16>(job, begin, end);
    case Dtype::kFloat16: return scale_range<_Float16>(job, begin, end);
    case Dtype::kUInt8: return;
  }
}

}  // namespace fastdetect::FASTDETECT_LEVEL
