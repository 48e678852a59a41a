// The CUDA ops of positive synthesis for torch: the five of torch_ops_synthesis.cpp on torch's current stream.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "synthesis.h"
#include "torch_synthesis.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Makes the tensor's device the current one and finds the stream that torch works on there.
struct Place {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  explicit Place(const Tensor& tensor) : guard(tensor.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  }
};

void check(const char* what, const char* error) {
  STD_TORCH_CHECK(error == nullptr, "fastdetect_cuda::", what, ": ", error);
}

std::tuple<Tensor, Tensor, Tensor> mine(const Tensor& z, const Tensor& labels, const Tensor& center, double rho,
                                        int64_t capacity) {
  const Place place(z);
  fastdetect::Mining mining(z, labels, center, rho, capacity);
  Tensor workspace = torch::stable::new_empty(z, {fastdetect::cuda::mine_workspace(z.size(0))}, ScalarType::Int);
  check("mine", fastdetect::cuda::mine(mining.job, static_cast<uint32_t*>(workspace.mutable_data_ptr()), place.stream));
  return {mining.index, mining.similarity, mining.state};
}

std::tuple<Tensor, Tensor> synthesize(const Tensor& z, const Tensor& center, const Tensor& index,
                                      const Tensor& similarity, const Tensor& state, const Tensor& lam,
                                      double lam_max, int64_t seed, const Tensor& seed_at, bool guard) {
  const Place place(z);
  fastdetect::Synthesis made(z, center, index, similarity, state, lam, lam_max, seed, seed_at, guard);
  check("synthesize", fastdetect::cuda::synthesize(made.job, place.stream));
  return {made.out, made.applied};
}

Tensor synthesize_backward(const Tensor& grad, const Tensor& z, const Tensor& center, const Tensor& index,
                           const Tensor& lam) {
  const Place place(z);
  fastdetect::SynthesisGradient made(grad, z, center, index, lam,
                                     torch::stable::new_empty(z, {z.size(0), z.size(1)}));
  check("synthesize_backward", fastdetect::cuda::synthesize_backward(made.job, place.stream));
  return made.out;
}

Tensor real_sums(const Tensor& z, const Tensor& labels) {
  const Place place(z);
  fastdetect::Sums made(z, labels, fastdetect::cuda::sum_chunks(z.size(0)));
  check("real_sums", fastdetect::cuda::real_sums(made.job, place.stream));
  return made.sums;
}

Tensor mix_center(const Tensor& center, const Tensor& sums, double momentum) {
  const Place place(center);
  fastdetect::Mix made(center, sums, momentum);
  check("mix_center", fastdetect::cuda::mix_center(made.job, place.stream));
  return made.out;
}

bool runs_here() { return fastdetect::cuda::runs_here(); }

}  // namespace

STABLE_TORCH_LIBRARY(fastdetect_cuda, m) {
  fastdetect::define_synthesis_ops(m);
  m.def("runs_here() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fastdetect_cuda, CUDA, m) {
  m.impl("mine", TORCH_BOX(&mine));
  m.impl("synthesize", TORCH_BOX(&synthesize));
  m.impl("synthesize_backward", TORCH_BOX(&synthesize_backward));
  m.impl("real_sums", TORCH_BOX(&real_sums));
  m.impl("mix_center", TORCH_BOX(&mix_center));
}

STABLE_TORCH_LIBRARY_IMPL(fastdetect_cuda, CompositeExplicitAutograd, m) {
  m.impl("runs_here", TORCH_BOX(&runs_here));
}
