// The core of update_center and synthesize_positives: plain pointers, shared by the torch ops of CPU and CUDA and by
// the NumPy module. Definitions: docs/kernels.md.
#pragma once

#include <cstdint>

#include "core.h"

namespace fastdetect {

struct Rows {  // z [N, D], last stride 1
  const void* data;
  Dtype dtype;
  int64_t count, width, stride;
};

struct MineState {       // as int64[4] in torch
  int64_t mined;         // M
  int64_t bad;           // not 0: a row or the centre is not of unit length, or a label is negative
  int64_t reals;
  int64_t fake;          // order_key of the highest z_f.c; 0: no fakes
};

struct MineJob {
  Rows z;
  const int64_t* labels;  // [N], 0 = real
  const float* center;    // [D]
  double rho;
  int64_t capacity;   // room in index
  float* similarity;  // [N], z.c summed in float64, so that CPU and GPU mine the same rows
  int64_t* index;     // [capacity], ascending; -1 past the mined ones
  MineState* state;
};

struct SynthesisJob {
  Rows z;
  const float* center;
  const float* similarity;  // of MineJob
  const MineState* state;
  const int64_t* index;  // [count] ascending rows of z, -1: none, at the end
  int64_t count;
  const float* lam;  // [N] or [count] by lam_by_row, or null: lam_max * Beta(2, 2)
  bool lam_by_row;
  float lam_max;
  uint64_t seed;
  const int64_t* seed_at;  // takes the place of seed unless null
  bool guard;
  void* out;  // [count, D] of z's dtype, contiguous
  float* applied;  // [count]
};

struct SynthesisBackwardJob {
  Rows z;
  const float* center;
  const int64_t* index;
  int64_t count;
  const float* lam;  // [count], as applied
  const void* grad;  // [count, D] of z's dtype, contiguous
  void* out;         // [N, D] of z's dtype, contiguous
};

struct SumsJob {
  Rows z;
  const int64_t* labels;
  float* partial;  // [chunks, D + 1]; the last column counts the reals
  float* sums;     // [D + 1]; the count is NaN where a label is negative
};

struct MixJob {  // normalize(momentum * center + (1 - momentum) * sums / count)
  const float* center;
  const float* sums;
  int64_t width;
  double momentum;
  float* out;
};

constexpr float kUnitTolerance = 0.02f;  // of a squared length; rounding to bfloat16 moves it by 0.008 at most
constexpr int64_t kSumRows = 256;        // rows per partial sum on the CPU: fixed, so that threads do not matter

// CPU. Each works on [begin, end) of rows, slots, rows and chunks, so that the caller owns the threading.
bool similarities(const MineJob& job, int64_t begin, int64_t end, CpuLevel level);  // all rows of unit length?
void mine(const MineJob& job, bool unit_length, CpuLevel level);                   // after similarities of all rows
void synthesize(const SynthesisJob& job, int64_t begin, int64_t end, CpuLevel level);
void synthesize_backward(const SynthesisBackwardJob& job, int64_t begin, int64_t end, CpuLevel level);
void partial_sums(const SumsJob& job, int64_t begin, int64_t end, CpuLevel level);
void finish_sums(const SumsJob& job);
void mix_center(const MixJob& job);

// CUDA: device pointers, asynchronous on the stream; null, or the error's name.
namespace cuda {

int64_t mine_workspace(int64_t rows);  // uint32 words
int64_t sum_chunks(int64_t rows);      // first dimension of SumsJob::partial
bool runs_here();                      // whether the library holds code for the current device

const char* mine(const MineJob& job, uint32_t* workspace, void* stream);
const char* synthesize(const SynthesisJob& job, void* stream);
const char* synthesize_backward(const SynthesisBackwardJob& job, void* stream);
const char* real_sums(const SumsJob& job, void* stream);
const char* mix_center(const MixJob& job, void* stream);

}  // namespace cuda
}  // namespace fastdetect
