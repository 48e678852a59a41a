// The CPU ops of supcon_margin_loss for torch; see torch_ops.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "supcon.h"

namespace {

using fastdetect::Supcon;
using torch::stable::Tensor;

constexpr int64_t kProducts = 1 << 22;  // multiplications of a task at least: about 0.1 ms

fastdetect::SupconJob job_of(const Tensor& columns, const Tensor& labels, int64_t synthetic, int64_t first,
                             int64_t count, double temperature, double margin, bool real_anchors, bool binary) {
  const int64_t samples = labels.size(0);
  return {columns.const_data_ptr<float>(), labels.const_data_ptr<int64_t>(), samples, synthetic,
          columns.size(0) - samples - synthetic, columns.size(1), first, count, temperature, margin, real_anchors,
          binary};
}

int64_t grain(const Tensor& columns) {
  return kProducts / (fastdetect::kSupconRows * columns.size(0) * columns.size(1)) + 1;
}

fastdetect::CpuLevel level_of(int64_t level) {  // -1: the best; the tests run each
  return level < 0 ? fastdetect::best_cpu_level() : static_cast<fastdetect::CpuLevel>(level);
}

// Packed columns; whether the exponents need no maximum.
bool prepare(const Supcon& supcon, const Tensor& columns) {
  torch::stable::parallel_for(0, supcon.column_panels(), 65536 / (16 * columns.size(1)) + 1,
                              [&](int64_t begin, int64_t end) { supcon.pack(begin, end); });
  return supcon.constant_shift();
}

// Loss [count] and statistics [3, count]; both empty where the exponents need a maximum.
std::tuple<Tensor, Tensor> forward(const Tensor& columns, const Tensor& labels, int64_t synthetic, int64_t first,
                                   int64_t count, double temperature, double margin, bool real_anchors, bool binary,
                                   int64_t level) {
  Supcon supcon(job_of(columns, labels, synthetic, first, count, temperature, margin, real_anchors, binary),
                level_of(level));
  if (!prepare(supcon, columns))
    return {torch::stable::new_empty(columns, {0}), torch::stable::new_empty(columns, {3, 0})};
  Tensor loss = torch::stable::new_empty(columns, {count}), statistics = torch::stable::new_empty(columns, {3, count});
  supcon.set_anchors();
  torch::stable::parallel_for(0, supcon.row_blocks(), grain(columns),
                              [&](int64_t begin, int64_t end) { supcon.forward(begin, end); });
  supcon.losses(loss.mutable_data_ptr<float>(), statistics.mutable_data_ptr<float>());
  return {loss, statistics};
}

// Gradients of the samples, and of the synthetic positives and, if wanted, the fused negatives; or both empty.
std::tuple<Tensor, Tensor> backward(const Tensor& columns, const Tensor& labels, int64_t synthetic, int64_t first,
                                    int64_t count, double temperature, double margin, bool real_anchors, bool binary,
                                    const Tensor& coefficients, bool fused, int64_t level) {
  Supcon supcon(job_of(columns, labels, synthetic, first, count, temperature, margin, real_anchors, binary),
                level_of(level));
  const int64_t width = columns.size(1);
  if (!prepare(supcon, columns))
    return {torch::stable::new_empty(columns, {0, width}), torch::stable::new_empty(columns, {0, width})};
  supcon.set_coefficients(coefficients.const_data_ptr<float>(), fused);
  torch::stable::parallel_for(0, supcon.row_blocks(), grain(columns),
                              [&](int64_t begin, int64_t end) { supcon.backward(begin, end); });
  Tensor grad = torch::stable::new_empty(columns, {count, width});
  Tensor others = torch::stable::new_empty(columns, {supcon.rows() - count, width});
  supcon.gradient(grad.mutable_data_ptr<float>(), 0, count);
  supcon.gradient(others.mutable_data_ptr<float>(), count, supcon.rows());
  return {grad, others};
}

// The lowest label; where it is not negative also the reduced loss [] and, if wanted, its gradient for the samples and the
// synthetic positives, both empty where the exponents need a maximum. One call for both: packing the columns twice, and
// what torch does around an op, cost more than the products of a batch of 64.
std::tuple<int64_t, Tensor, Tensor> reduced(const Tensor& columns, const Tensor& labels, int64_t synthetic,
                                            double temperature, double margin, bool real_anchors, bool binary,
                                            int64_t reduction, double scale, bool need_grad) {
  const int64_t samples = labels.size(0), width = columns.size(1);
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const int64_t lowest = *std::min_element(label, label + samples);
  const Tensor none = torch::stable::new_empty(columns, {0});
  if (lowest < 0) return {lowest, none, none};
  Supcon supcon(job_of(columns, labels, synthetic, 0, samples, temperature, margin, real_anchors, binary),
                fastdetect::best_cpu_level());
  if (!prepare(supcon, columns)) return {lowest, none, none};
  supcon.set_anchors();
  torch::stable::parallel_for(0, supcon.row_blocks(), grain(columns),
                              [&](int64_t begin, int64_t end) { supcon.forward(begin, end); });
  std::vector<float> rows(samples), statistics(3 * samples), coefficients(need_grad ? 3 * samples : 0);
  supcon.losses(rows.data(), statistics.data());
  Tensor loss = torch::stable::new_empty(columns, {});
  *loss.mutable_data_ptr<float>() =
      supcon.reduce(rows.data(), statistics.data(), static_cast<fastdetect::SupconReduction>(reduction), scale,
                    need_grad ? coefficients.data() : nullptr);
  if (!need_grad) return {lowest, loss, none};
  supcon.set_coefficients(coefficients.data(), false);
  torch::stable::parallel_for(0, supcon.row_blocks(), grain(columns),
                              [&](int64_t begin, int64_t end) { supcon.backward(begin, end); });
  Tensor grad = torch::stable::new_empty(columns, {supcon.rows(), width});
  supcon.gradient(grad.mutable_data_ptr<float>(), 0, supcon.rows());
  return {lowest, loss, grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastdetect_cpu, m) {
  m.def(
      "supcon(Tensor columns, Tensor labels, int synthetic, int first, int count, float temperature, float margin, "
      "bool real_anchors, bool binary, int level=-1) -> (Tensor, Tensor)");
  m.def(
      "supcon_backward(Tensor columns, Tensor labels, int synthetic, int first, int count, float temperature, "
      "float margin, bool real_anchors, bool binary, Tensor coefficients, bool fused, int level=-1) "
      "-> (Tensor, Tensor)");
  m.def(
      "supcon_reduced(Tensor columns, Tensor labels, int synthetic, float temperature, float margin, bool real_anchors, "
      "bool binary, int reduction, float scale, bool need_grad) -> (int, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastdetect_cpu, CPU, m) {
  m.impl("supcon", TORCH_BOX(&forward));
  m.impl("supcon_backward", TORCH_BOX(&backward));
  m.impl("supcon_reduced", TORCH_BOX(&reduced));
}
