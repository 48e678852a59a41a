#include "masked_residual.h"

#include <vector>

#include "masked_residual_kernels.h"

namespace fastdetect {

void masked_patch_loss(const LossJob& job, int64_t begin, int64_t end, CpuLevel level) {
  std::vector<float> scratch(2 * job.grid.length);
  FASTDETECT_DISPATCH(level, masked_patch_loss(job, begin, end, scratch.data()));
}

void patch_residual(const ResidualJob& job, int64_t begin, int64_t end, CpuLevel level) {
  std::vector<float> scratch(2 * job.grid.length);
  FASTDETECT_DISPATCH(level, patch_residual(job, begin, end, scratch.data()));
}

void scale_rows(const ScaleJob& job, int64_t begin, int64_t end, CpuLevel level) {
  FASTDETECT_DISPATCH(level, scale_rows(job, begin, end));
}

}  // namespace fastdetect
