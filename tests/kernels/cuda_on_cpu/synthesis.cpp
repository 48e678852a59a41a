// csrc/synthesis.cu as a CPU library for test_synthesis_on_cpu.py, by ctypes.
#include "cuda_on_cpu.h"
// After the stand-in, which keeps its cuda_device.h out.
#include "synthesis.cu"

using namespace fastdetect;

extern "C" {

bool mine(const void* z, int dtype, int64_t n, int64_t d, int64_t stride, const int64_t* labels, const float* center,
          double rho, int64_t capacity, float* similarity, int64_t* index, MineState* state) {
  std::vector<uint32_t> workspace(cuda::mine_workspace(n), 0xDEADBEEF);
  return cuda::mine({{z, Dtype(dtype), n, d, stride}, labels, center, rho, capacity, similarity, index, state},
                    workspace.data(), nullptr) == nullptr;
}

void synthesize(const void* z, int dtype, int64_t n, int64_t d, int64_t stride, const float* center,
                const float* similarity, const MineState* state, const int64_t* index, int64_t count, const float* lam,
                bool by_row, float lam_max, uint64_t seed, const int64_t* seed_at, bool guard, void* out,
                float* applied) {
  cuda::synthesize({{z, Dtype(dtype), n, d, stride}, center, similarity, state, index, count, lam, by_row, lam_max,
                    seed, seed_at, guard, out, applied},
                   nullptr);
}

void synthesize_backward(const void* z, int dtype, int64_t n, int64_t d, int64_t stride, const float* center,
                         const int64_t* index, int64_t count, const float* lam, const void* grad, void* out) {
  cuda::synthesize_backward({{z, Dtype(dtype), n, d, stride}, center, index, count, lam, grad, out}, nullptr);
}

void real_sums(const void* z, int dtype, int64_t n, int64_t d, int64_t stride, const int64_t* labels, float* sums) {
  std::vector<float> partial(cuda::sum_chunks(n) * (d + 1), NAN);
  cuda::real_sums({{z, Dtype(dtype), n, d, stride}, labels, partial.data(), sums}, nullptr);
}

void mix_center(const float* center, const float* sums, int64_t d, double momentum, float* out) {
  cuda::mix_center({center, sums, d, momentum, out}, nullptr);
}
}
