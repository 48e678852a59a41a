#include "supcon.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "supcon_kernels.h"

namespace fastdetect {
namespace {

int64_t panel_of(CpuLevel level) { FASTDETECT_DISPATCH(level, supcon_panel()); }

void pack_of(const SupconTiles& tiles, int64_t begin, int64_t end, CpuLevel level) {
  FASTDETECT_DISPATCH(level, supcon_pack(tiles, begin, end));
}

void forward_of(const SupconTiles& tiles, int64_t begin, int64_t end, CpuLevel level) {
  FASTDETECT_DISPATCH(level, supcon_forward(tiles, begin, end));
}

void backward_of(const SupconTiles& tiles, int64_t begin, int64_t end, CpuLevel level) {
  FASTDETECT_DISPATCH(level, supcon_backward(tiles, begin, end));
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace

Supcon::Supcon(const SupconJob& job, CpuLevel level) : job_(job), level_(level) {
  SupconTiles& t = tiles_;
  t.width = job.width;
  t.panel = panel_of(level);
  t.stride = round_up(t.width, t.panel);
  t.samples = job.samples;
  t.columns = job.samples + job.synthetic + job.fused;
  t.scale = static_cast<float>(1.0 / job.temperature);
  t.margin = static_cast<float>(job.margin / job.temperature);
  const int64_t padded = t.padded = round_up(t.columns, t.panel);

  // Class numbers; any integers by their rank, in which 0, the lowest, is 0.
  std::vector<int64_t> known(job.labels, job.labels + job.samples);
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  const auto kind_of = [&](int64_t label) -> int32_t {
    if (job.binary) return label > 0;
    return static_cast<int32_t>(std::lower_bound(known.begin(), known.end(), label) - known.begin());
  };

  for (const bool real : {true, false})
    for (int64_t i = 0; i < job.samples; ++i)
      if (!job.real_anchors ? real : (job.labels[i] == 0) == real) order_.push_back(i);
  t.anchors = job.real_anchors ? std::count(job.labels, job.labels + job.samples, 0) : job.samples;
  place_.resize(t.columns);
  kind_.assign(padded, -1);
  per_kind_.assign(known.size() + 2, 0);
  for (int64_t j = 0; j < t.columns; ++j) {
    if (j >= job.samples) order_.push_back(j);
    place_[order_[j]] = static_cast<int32_t>(j);
    if (j < job.samples)
      ++per_kind_[kind_[j] = kind_of(job.labels[order_[j]])];
    else if (j < job.samples + job.synthetic)
      kind_[j] = 0;
  }
  y_.assign(padded * t.stride, 0.0f);
  packed_.assign(padded * t.width, 0.0f);
  square_.resize(t.columns);
  t.source = job.columns;
  t.order = order_.data();
  t.y = y_.data();
  t.packed = packed_.data();
  t.square = square_.data();
  t.kind = kind_.data();
}

void Supcon::pack(int64_t begin, int64_t end) const { pack_of(tiles_, begin, end, level_); }

bool Supcon::constant_shift() const {
  float longest = 0.0f;
  for (const float square : square_)
    if (square > longest || square != square) longest = square;  // NaN stays
  return (longest + job_.margin) / job_.temperature <= kExponentLimit;
}

void Supcon::add_row(int64_t column, int64_t limit) {
  position_.push_back(place_[column]);
  limit_.push_back(static_cast<int32_t>(limit));
}

void Supcon::set_rows() {
  SupconTiles& t = tiles_;
  t.rows = static_cast<int64_t>(position_.size());
  row_packed_.resize(row_blocks() * kSupconRows * t.width);
  t.position = position_.data();
  t.limit = limit_.data();
  t.row_packed = row_packed_.data();
}

void Supcon::set_anchors() {
  SupconTiles& t = tiles_;
  position_.clear();
  limit_.clear();
  for (int64_t i = job_.first; i < job_.first + job_.count; ++i) {
    const bool real = job_.labels[i] == 0;
    if (real || !job_.real_anchors) add_row(i, real ? t.columns : t.samples);
  }
  set_rows();
  total_.assign(t.rows, 0.0f);
  similar_.assign(t.rows, 0.0f);
  t.total = total_.data();
  t.similar = similar_.data();
}

void Supcon::forward(int64_t begin, int64_t end) const { forward_of(tiles_, begin, end, level_); }

void Supcon::backward(int64_t begin, int64_t end) const { backward_of(tiles_, begin, end, level_); }

void Supcon::losses(float* loss, float* statistics) const {
  float *log_sum = statistics, *q = log_sum + job_.count, *count = q + job_.count;
  int64_t row = 0;
  for (int64_t i = 0; i < job_.count; ++i) {
    const int64_t label = job_.labels[job_.first + i];
    loss[i] = count[i] = 0.0f;
    log_sum[i] = -std::numeric_limits<float>::infinity();
    q[i] = 1.0f;
    if (label != 0 && job_.real_anchors) continue;
    const int64_t mates = per_kind_[kind_[position_[row]]] - 1 + (label == 0 ? job_.synthetic : 0);
    log_sum[i] = std::log(total_[row]);
    if (mates > 0) {
      count[i] = static_cast<float>(mates);
      loss[i] = log_sum[i] + static_cast<float>((job_.margin - similar_[row] / count[i]) / job_.temperature);
    }
    ++row;
  }
}

float Supcon::reduce(const float* loss, const float* statistics, SupconReduction reduction, double scale,
                     float* coefficients) const {
  const float *log_sum = statistics, *q = log_sum + job_.count, *count = q + job_.count;
  double total = 0.0;
  int64_t number = 0;
  for (int64_t i = 0; i < job_.count; ++i) {
    total += loss[i];
    number += count[i] > 0.0f;
  }
  if (reduction == SupconReduction::kMeanAll) number = tiles_.anchors;
  if (reduction == SupconReduction::kSum || number == 0) number = 1;
  const float share = static_cast<float>(scale / static_cast<double>(number));
  for (int64_t i = 0; coefficients && i < job_.count; ++i) {
    coefficients[i] = count[i] > 0.0f ? share * q[i] : 0.0f;
    coefficients[job_.count + i] = count[i] > 0.0f ? share / count[i] : 0.0f;
    coefficients[2 * job_.count + i] = log_sum[i];
  }
  return static_cast<float>(total * scale / static_cast<double>(number));
}

void Supcon::set_coefficients(const float* coefficients, bool fused) {
  SupconTiles& t = tiles_;
  const float *r = coefficients, *c = r + job_.samples, *log_sum = c + job_.samples;
  const int64_t padded = t.padded;
  rho_.assign(2 * padded, 0.0f);
  c_.assign(2 * padded, 0.0f);
  for (int64_t i = 0; i < job_.samples; ++i) {
    const float rho = r[i] == 0.0f ? 0.0f : r[i] * std::exp(-log_sum[i]);
    rho_[place_[i]] = rho;
    c_[place_[i]] = c[i];
    // Own real samples are what pulls and pushes the synthetic positives and the fused negatives.
    if (job_.labels[i] == 0 && i >= job_.first && i < job_.first + job_.count) {
      rho_[padded + place_[i]] = rho;
      c_[padded + place_[i]] = c[i];
    }
  }
  position_.clear();
  limit_.clear();
  for (int64_t i = job_.first; i < job_.first + job_.count; ++i) {
    const bool real = job_.labels[i] == 0;
    add_row(i, real ? t.columns : t.anchors);  // a fake that is no anchor meets anchors only
  }
  const int64_t others = job_.synthetic + (fused ? job_.fused : 0);
  for (int64_t j = 0; j < others; ++j) add_row(job_.samples + j, t.anchors);
  set_rows();
  grad_.assign(t.rows * t.stride, 0.0f);
  row_rho_.clear();
  row_c_.clear();
  for (const int32_t position : position_) {
    row_rho_.push_back(rho_[position]);
    row_c_.push_back(c_[position]);
  }
  for (int64_t i = 0; i < 2; ++i) {
    t.rho[i] = rho_.data() + i * padded;
    t.c[i] = c_.data() + i * padded;
  }
  t.row_rho = row_rho_.data();
  t.row_c = row_c_.data();
  t.grad = grad_.data();
}

void Supcon::gradient(float* out, int64_t begin, int64_t end) const {
  const float scale = static_cast<float>(1.0 / job_.temperature);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t k = 0; k < tiles_.width; ++k) *out++ = scale * grad_[row * tiles_.stride + k];
}

}  // namespace fastdetect
