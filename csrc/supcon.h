// The core of supcon_margin_loss on the CPU: class pairs, denominator "all", exponents that need no maximum. N x N never
// exists: 12 rows meet 256 columns at a time, in L1. Definitions and identities: docs/kernels.md.
#pragma once

#include <cstdint>
#include <vector>

#include "core.h"

namespace fastdetect {

struct SupconJob {
  const float* columns;   // [samples + synthetic + fused, width] contiguous
  const int64_t* labels;  // [samples], 0 = real
  int64_t samples, synthetic, fused, width;
  int64_t first, count;  // the samples whose losses and gradients are wanted
  double temperature, margin;
  bool real_anchors, binary;
};

enum class SupconReduction : int64_t { kMean, kMeanAll, kSum };  // over rows with a positive, over anchors

constexpr int64_t kSupconRows = 12;      // rows of a block: with two vectors of columns, 24 of AVX-512's registers
constexpr int64_t kSupconColumns = 256;  // columns of a chunk: at D = 128 both copies of it fit into the L2 cache
constexpr double kExponentLimit = 40.0;  // as supcon_chunked's

// What a kernel sees: the samples, anchors first, then the synthetic positives and the fused negatives.
struct SupconTiles {
  int64_t width, stride, panel;  // stride: width, rounded up to panels
  int64_t anchors, samples, columns;
  float scale, margin;        // 1 / tau, m / tau
  int64_t padded;             // columns, rounded up to panels
  const float* source;        // the job's columns
  const int64_t* order;       // [columns] which of them each is
  float* y;                   // [stride / panel][padded][panel], zero before
  float* packed;              // [padded / panel][width][panel], zero before: the same, transposed
  float* square;              // [columns] squared lengths
  const int32_t* kind;        // [padded] equal ones are positives
  const int32_t* position;    // [rows] of the rows of the job
  const int32_t* limit;       // [rows] how many columns each row sees
  int64_t rows;
  float* row_packed;          // [rows / kSupconRows][width][kSupconRows], in steps of the kernel's
  float *total, *similar;     // forward: [rows] sum of exponentials, sum of the positives' similarities
  const float *row_rho, *row_c;        // backward: [rows]
  const float *rho[2], *c[2];          // [padded] for rows that are samples, for the others
  float* grad;                         // [rows, stride], zero before
};

class Supcon {
 public:
  // Orders the columns.
  Supcon(const SupconJob& job, CpuLevel level);

  int64_t column_panels() const { return tiles_.padded / tiles_.panel; }
  void pack(int64_t begin, int64_t end) const;  // column panels, all of them before anything else
  bool constant_shift() const;  // whether every exponent and their sums are normal numbers; NaN: no

  // Rows of the forward: the anchors among the samples [first, first + count).
  void set_anchors();
  // Rows of the gradient: the samples [first, first + count), then the synthetic positives and, if wanted, the fused.
  void set_coefficients(const float* coefficients, bool fused);  // [3, samples]: r, c, log normaliser

  int64_t row_blocks() const { return (tiles_.rows + kSupconRows - 1) / kSupconRows; }
  int64_t rows() const { return tiles_.rows; }
  void forward(int64_t begin, int64_t end) const;   // row blocks
  void backward(int64_t begin, int64_t end) const;  // row blocks
  void losses(float* loss, float* statistics) const;  // [count], [3, count]
  // Their mean or sum, from what losses() gave; where asked for, the coefficients [3, samples] of its gradient, when the
  // rows are all samples.
  float reduce(const float* loss, const float* statistics, SupconReduction reduction, double scale,
               float* coefficients) const;
  void gradient(float* out, int64_t begin, int64_t end) const;  // [end - begin, width] of these rows

 private:
  void add_row(int64_t column, int64_t limit);
  void set_rows();

  SupconJob job_;
  CpuLevel level_;
  SupconTiles tiles_{};
  std::vector<int64_t> order_, per_kind_;  // position -> column of the job; samples of a kind
  std::vector<int32_t> place_, kind_, position_, limit_;  // place_: column of the job -> position
  std::vector<float> y_, packed_, square_, row_packed_, total_, similar_, rho_, c_, row_rho_, row_c_, grad_;
};

}  // namespace fastdetect
