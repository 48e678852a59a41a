// Torch tensors to the jobs of synthesis.h, for the CPU and the CUDA ops alike. Outputs are allocated
// here, but for the gradient.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "synthesis.h"

namespace fastdetect {
namespace {

using ScalarType = torch::headeronly::ScalarType;
using Tensor = torch::stable::Tensor;

Rows rows_of(const Tensor& z) {
  const ScalarType type = z.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "fastdetect: z must be float32, bfloat16 or float16");
  const Dtype dtype = type == ScalarType::Float      ? Dtype::kFloat32
                      : type == ScalarType::BFloat16 ? Dtype::kBFloat16
                                                     : Dtype::kFloat16;
  return {z.const_data_ptr(), dtype, z.size(0), z.size(1), z.stride(0)};
}

struct Mining {
  Tensor index, similarity, state;
  MineJob job;

  Mining(const Tensor& z, const Tensor& labels, const Tensor& center, double rho, int64_t capacity)
      : index(torch::stable::new_empty(z, {capacity}, ScalarType::Long)),
        similarity(torch::stable::new_empty(z, {z.size(0)}, ScalarType::Float)),
        state(torch::stable::new_empty(z, {4}, ScalarType::Long)),
        job{rows_of(z), labels.const_data_ptr<int64_t>(), center.const_data_ptr<float>(), rho, capacity,
            similarity.mutable_data_ptr<float>(), index.mutable_data_ptr<int64_t>(),
            static_cast<MineState*>(state.mutable_data_ptr())} {}
};

struct Synthesis {
  Tensor out, applied;
  SynthesisJob job;

  Synthesis(const Tensor& z, const Tensor& center, const Tensor& index, const Tensor& similarity,
            const Tensor& state, const Tensor& lam, double lam_max, int64_t seed, const Tensor& seed_at, bool guard)
      : out(torch::stable::new_empty(z, {index.size(0), z.size(1)})),
        applied(torch::stable::new_empty(z, {index.size(0)}, ScalarType::Float)),
        job{rows_of(z),
            center.const_data_ptr<float>(),
            similarity.const_data_ptr<float>(),
            static_cast<const MineState*>(state.const_data_ptr()),
            index.const_data_ptr<int64_t>(),
            index.size(0),
            lam.numel() ? lam.const_data_ptr<float>() : nullptr,
            lam.numel() == z.size(0),
            static_cast<float>(lam_max),
            static_cast<uint64_t>(seed),
            seed_at.numel() ? seed_at.const_data_ptr<int64_t>() : nullptr,
            guard,
            out.mutable_data_ptr(),
            applied.mutable_data_ptr<float>()} {}
};

struct SynthesisGradient {
  Tensor out;
  SynthesisBackwardJob job;

  SynthesisGradient(const Tensor& grad, const Tensor& z, const Tensor& center, const Tensor& index,
                    const Tensor& lam, const Tensor& out_)  // [N, D]
      : out(out_),
        job{rows_of(z),
            center.const_data_ptr<float>(),
            index.const_data_ptr<int64_t>(),
            index.size(0),
            lam.const_data_ptr<float>(),
            grad.const_data_ptr(),
            out.mutable_data_ptr()} {}
};

struct Sums {
  Tensor partial, sums;
  SumsJob job;

  Sums(const Tensor& z, const Tensor& labels, int64_t chunks)
      : partial(torch::stable::new_empty(z, {chunks, z.size(1) + 1}, ScalarType::Float)),
        sums(torch::stable::new_empty(z, {z.size(1) + 1}, ScalarType::Float)),
        job{rows_of(z), labels.const_data_ptr<int64_t>(), partial.mutable_data_ptr<float>(),
            sums.mutable_data_ptr<float>()} {}
};

struct Mix {
  Tensor out;
  MixJob job;

  Mix(const Tensor& center, const Tensor& sums, double momentum)
      : out(torch::stable::new_empty(center, {center.size(0)})),
        job{center.const_data_ptr<float>(), sums.const_data_ptr<float>(), center.size(0), momentum,
            out.mutable_data_ptr<float>()} {}
};

template <class Library>
void define_synthesis_ops(Library& m) {
  m.def("mine(Tensor z, Tensor labels, Tensor center, float rho, int capacity) -> (Tensor, Tensor, Tensor)");
  m.def(
      "synthesize(Tensor z, Tensor center, Tensor index, Tensor similarity, Tensor state, Tensor lam, float lam_max, "
      "int seed, Tensor seed_at, bool guard) -> (Tensor, Tensor)");
  m.def("synthesize_backward(Tensor grad, Tensor z, Tensor center, Tensor index, Tensor lam) -> Tensor");
  m.def("real_sums(Tensor z, Tensor labels) -> Tensor");
  m.def("mix_center(Tensor center, Tensor sums, float momentum) -> Tensor");
}

}  // namespace
}  // namespace fastdetect
