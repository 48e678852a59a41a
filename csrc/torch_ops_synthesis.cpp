// The CPU ops of positive synthesis for torch; see torch_ops.cpp. torch_ops_cuda.cpp offers the same five for CUDA.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <tuple>

#include "synthesis.h"
#include "torch_pages.h"
#include "torch_synthesis.h"

namespace {

using fastdetect::CpuLevel;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t grain(int64_t width) { return 16384 / width + 1; }  // rows per task at least: about 5 us of work

std::tuple<Tensor, Tensor, Tensor> mine(const Tensor& z, const Tensor& labels, const Tensor& center, double rho,
                                        int64_t capacity) {
  fastdetect::Mining mining(z, labels, center, rho, capacity);
  const CpuLevel level = fastdetect::best_cpu_level();
  std::atomic<bool> unit_length{true};
  torch::stable::parallel_for(0, z.size(0), grain(z.size(1)), [&](int64_t begin, int64_t end) {
    if (!fastdetect::similarities(mining.job, begin, end, level)) unit_length = false;
  });
  fastdetect::mine(mining.job, unit_length, level);
  return {mining.index, mining.similarity, mining.state};
}

std::tuple<Tensor, Tensor> synthesize(const Tensor& z, const Tensor& center, const Tensor& index,
                                      const Tensor& similarity, const Tensor& state, const Tensor& lam,
                                      double lam_max, int64_t seed, const Tensor& seed_at, bool guard) {
  fastdetect::Synthesis made(z, center, index, similarity, state, lam, lam_max, seed, seed_at, guard);
  const CpuLevel level = fastdetect::best_cpu_level();
  torch::stable::parallel_for(0, made.job.count, grain(z.size(1)), [&](int64_t begin, int64_t end) {
    fastdetect::synthesize(made.job, begin, end, level);
  });
  return {made.out, made.applied};
}

Tensor synthesize_backward(const Tensor& grad, const Tensor& z, const Tensor& center, const Tensor& index,
                           const Tensor& lam) {
  fastdetect::SynthesisGradient made(grad, z, center, index, lam,
                                     fastdetect::large_empty(z, {z.size(0), z.size(1)}, z.scalar_type()));
  const CpuLevel level = fastdetect::best_cpu_level();
  torch::stable::parallel_for(0, z.size(0), grain(z.size(1)), [&](int64_t begin, int64_t end) {
    fastdetect::synthesize_backward(made.job, begin, end, level);
  });
  return made.out;
}

Tensor real_sums(const Tensor& z, const Tensor& labels) {
  const int64_t chunks = (z.size(0) + fastdetect::kSumRows - 1) / fastdetect::kSumRows;
  fastdetect::Sums made(z, labels, chunks);
  const CpuLevel level = fastdetect::best_cpu_level();
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    fastdetect::partial_sums(made.job, begin, end, level);
  });
  fastdetect::finish_sums(made.job);
  return made.sums;
}

Tensor mix_center(const Tensor& center, const Tensor& sums, double momentum) {
  fastdetect::Mix made(center, sums, momentum);
  fastdetect::mix_center(made.job);
  return made.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastdetect_cpu, m) { fastdetect::define_synthesis_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(fastdetect_cpu, CPU, m) {
  m.impl("mine", TORCH_BOX(&mine));
  m.impl("synthesize", TORCH_BOX(&synthesize));
  m.impl("synthesize_backward", TORCH_BOX(&synthesize_backward));
  m.impl("real_sums", TORCH_BOX(&real_sums));
  m.impl("mix_center", TORCH_BOX(&mix_center));
}
