#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "synthesis_kernels.h"

namespace fastdetect {

bool similarities(const MineJob& job, int64_t begin, int64_t end, CpuLevel level) {
  const std::vector<double> center(job.center, job.center + job.z.width);
  FASTDETECT_DISPATCH(level, similarities(job, begin, end, center.data()));
}

void synthesize(const SynthesisJob& job, int64_t begin, int64_t end, CpuLevel level) {
  std::vector<float> scratch(job.z.width);
  FASTDETECT_DISPATCH(level, synthesize(job, begin, end, scratch.data()));
}

void synthesize_backward(const SynthesisBackwardJob& job, int64_t begin, int64_t end, CpuLevel level) {
  std::vector<float> scratch(2 * job.z.width);
  FASTDETECT_DISPATCH(level, synthesize_backward(job, begin, end, scratch.data()));
}

void partial_sums(const SumsJob& job, int64_t begin, int64_t end, CpuLevel level) {
  FASTDETECT_DISPATCH(level, partial_sums(job, begin, end));
}

void mine(const MineJob& job, bool unit_length, CpuLevel level) {
  double length = 0.0;
  for (int64_t k = 0; k < job.z.width; ++k) length += static_cast<double>(job.center[k]) * job.center[k];
  *job.state = {0, !unit_length || !(std::abs(length - 1.0) <= kUnitTolerance), 0, 0};
  const auto keys = std::make_unique_for_overwrite<uint32_t[]>(job.z.count);
  FASTDETECT_DISPATCH(level, mine(job, keys.get()));
}

void finish_sums(const SumsJob& job) {
  const int64_t width = job.z.width + 1, chunks = (job.z.count + kSumRows - 1) / kSumRows;
  std::vector<double> total(width, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t k = 0; k < width; ++k) total[k] += job.partial[chunk * width + k];
  for (int64_t k = 0; k < width; ++k) job.sums[k] = static_cast<float>(total[k]);
}

void mix_center(const MixJob& job) {
  const double count = job.sums[job.width];
  double old_length = 0.0, length = 0.0;
  for (int64_t k = 0; k < job.width; ++k) old_length += static_cast<double>(job.center[k]) * job.center[k];
  const double keep = old_length == 0.0 ? 0.0 : job.momentum;
  std::vector<double> mixed(job.width);
  for (int64_t k = 0; k < job.width; ++k) {
    mixed[k] = keep * job.center[k] + (1.0 - keep) * (job.sums[k] / count);
    length += mixed[k] * mixed[k];
  }
  if (count == 0.0 || length == 0.0)
    std::copy(job.center, job.center + job.width, job.out);
  else
    for (int64_t k = 0; k < job.width; ++k) job.out[k] = static_cast<float>(mixed[k] / std::sqrt(length));
}

}  // namespace fastdetect
