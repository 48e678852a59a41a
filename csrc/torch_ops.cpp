// The CPU ops for torch, over the LibTorch stable ABI: one binary serves every supported torch. Private to
// fastdetect.ops, which checks the arguments and owns the public ops, their fakes and their autograd.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "masked_residual.h"
#include "torch_pages.h"

namespace {

using fastdetect::CpuLevel;
using fastdetect::Dtype;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 64;  // patches per task at least: about 20 us of work at K = 768

Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::Byte: return Dtype::kUInt8;
    default: STD_TORCH_CHECK(false, "fastdetect_cpu: dtype must be float32, bfloat16, float16 or uint8");
  }
}

fastdetect::Image image_of(const Tensor& images) {
  return {images.const_data_ptr(), dtype_of(images), images.stride(0),
          images.stride(1),        images.stride(2), images.stride(3)};
}

fastdetect::Grid grid_of(const Tensor& images, int64_t patch) {
  const int64_t rows = images.size(2) / patch, cols = images.size(3) / patch;
  return {images.size(1), rows, cols, patch, rows * cols, patch * patch * images.size(1)};
}

std::tuple<Tensor, Tensor> masked_patch_loss(const Tensor& pred, const Tensor& images, const Tensor& weight,
                                             int64_t patch_size, bool norm_pix, bool mean, bool need_grad) {
  const int64_t count = weight.numel();
  Tensor loss = torch::stable::new_empty(weight, {weight.size(0), weight.size(1)});
  Tensor grad = need_grad
                    ? fastdetect::large_empty(pred, {pred.size(0), pred.size(1), pred.size(2)}, pred.scalar_type())
                    : torch::stable::new_empty(pred, {0});
  fastdetect::LossJob job{};
  job.grid = grid_of(images, patch_size);
  job.image = image_of(images);
  job.pred = pred.const_data_ptr();
  job.pred_dtype = dtype_of(pred);
  job.pred_stride_b = pred.stride(0);
  job.pred_stride_l = pred.stride(1);
  job.count = count;
  job.weight = weight.const_data_ptr<float>();
  job.norm_pix = norm_pix;
  job.loss = loss.mutable_data_ptr<float>();
  job.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  job.grad_scale = 1.0f;
  if (job.pred_dtype == fastdetect::Dtype::kFloat16) {
    job.grad_scale = 0.5f * static_cast<float>(job.grid.length);  // mask * (pred - t): the backward has the rest
  } else if (mean) {
    double total = 0.0;
    for (int64_t i = 0; i < count; ++i) total += job.weight[i];
    job.grad_scale = static_cast<float>(1.0 / total);
  }
  const CpuLevel level = fastdetect::best_cpu_level();
  torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    fastdetect::masked_patch_loss(job, begin, end, level);
  });
  return {loss, grad};
}

std::tuple<Tensor, Tensor> patch_residual(const Tensor& pred, const Tensor& images, const Tensor& assignment,
                                          int64_t patch_size, double gain, double clamp) {
  fastdetect::ResidualJob job{};
  job.grid = grid_of(images, patch_size);
  job.image = image_of(images);
  const ScalarType dtype = images.scalar_type() == ScalarType::Byte ? ScalarType::Float : images.scalar_type();
  Tensor residual = fastdetect::large_empty(
      images, {images.size(0), images.size(1), images.size(2), images.size(3)}, dtype);
  Tensor scores = torch::stable::new_empty(images, {images.size(0), job.grid.patches}, ScalarType::Float);
  job.pred = pred.const_data_ptr();
  job.pred_dtype = dtype_of(pred);
  job.passes = pred.size(0);
  job.pred_stride_k = pred.stride(0);
  job.pred_stride_b = pred.stride(1);
  job.pred_stride_l = pred.stride(2);
  job.assignment = assignment.const_data_ptr<bool>();
  job.gain = static_cast<float>(gain);
  job.clamp = static_cast<float>(clamp);
  job.residual = residual.mutable_data_ptr();
  job.scores = scores.mutable_data_ptr<float>();
  const CpuLevel level = fastdetect::best_cpu_level();
  torch::stable::parallel_for(0, images.size(0) * job.grid.patches, kGrain, [&](int64_t begin, int64_t end) {
    fastdetect::patch_residual(job, begin, end, level);
  });
  return {residual, scores};
}

// data [..., K] contiguous, times factor of one element or of one per row.
void scale_rows(Tensor data, const Tensor& factor) {
  fastdetect::ScaleJob job{};
  job.data = data.mutable_data_ptr();
  job.dtype = dtype_of(data);
  job.length = data.size(data.dim() - 1);
  job.factor = factor.const_data_ptr<float>();
  job.factor_stride = factor.numel() == 1 ? 0 : 1;
  const CpuLevel level = fastdetect::best_cpu_level();
  torch::stable::parallel_for(0, data.numel() / job.length, kGrain, [&](int64_t begin, int64_t end) {
    fastdetect::scale_rows(job, begin, end, level);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY(fastdetect_cpu, m) {
  m.def(
      "masked_patch_loss(Tensor pred, Tensor images, Tensor weight, int patch_size, bool norm_pix, bool mean, "
      "bool need_grad) -> (Tensor, Tensor)");
  m.def(
      "patch_residual(Tensor pred, Tensor images, Tensor assignment, int patch_size, float gain, float clamp) -> "
      "(Tensor, Tensor)");
  m.def("scale_rows(Tensor(a!) data, Tensor factor) -> ()");
  m.def("release_pages() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fastdetect_cpu, CompositeExplicitAutograd, m) {
  m.impl("release_pages", TORCH_BOX(&fastdetect::release_pages));
}

STABLE_TORCH_LIBRARY_IMPL(fastdetect_cpu, CPU, m) {
  m.impl("masked_patch_loss", TORCH_BOX(&masked_patch_loss));
  m.impl("patch_residual", TORCH_BOX(&patch_residual));
  m.impl("scale_rows", TORCH_BOX(&scale_rows));
}
