// fastdetect._host: the CPU core for NumPy arrays, without torch, and what this build is made of.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "masked_residual.h"
#include "synthesis.h"
#include "synthesis_math.h"

namespace py = pybind11;

namespace {

using fastdetect::CpuLevel;
using fastdetect::Dtype;

std::string shape_of(const py::array& a) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + "]";
}

[[noreturn]] void refuse(const std::string& what, const py::array& got, const std::string& wanted) {
  throw std::invalid_argument(what + ": got shape " + shape_of(got) + " dtype " +
                              py::str(got.dtype()).cast<std::string>() + ", want " + wanted);
}

Dtype dtype_of(const char* what, const py::array& a, bool allow_uint8) {
  const char kind = a.dtype().kind();
  const py::ssize_t size = a.itemsize();
  if (kind == 'f' && size == 4) return Dtype::kFloat32;
  if (kind == 'f' && size == 2) return Dtype::kFloat16;
  if (allow_uint8 && kind == 'u' && size == 1) return Dtype::kUInt8;
  refuse(what, a, allow_uint8 ? "dtype float32, float16 or uint8" : "dtype float32 or float16");
}

// The array itself, or a copy where its byte order, alignment or strides are not what the kernels read.
py::array native(const py::array& a) {
  if (a.itemsize() == 0) return a;  // no numbers: refused by its dtype
  bool fits = a.dtype().byteorder() != '>' && reinterpret_cast<uintptr_t>(a.data()) % a.itemsize() == 0;
  for (py::ssize_t i = 0; i < a.ndim(); ++i) fits &= a.strides(i) % a.itemsize() == 0;
  if (fits) return a;
  return py::module_::import("numpy").attr("array")(a, py::arg("dtype") = a.dtype().attr("newbyteorder")("="),
                                                    py::arg("order") = "C");
}

// Numbers of any dtype as float32.
py::array_t<float, py::array::c_style> floats(const char* what, const py::array& a) {
  if (std::string("fiub").find(a.dtype().kind()) == std::string::npos) refuse(what, a, "real numbers");
  return py::array_t<float, py::array::c_style | py::array::forcecast>(a);
}

int64_t stride(const py::array& a, int axis) { return a.strides(axis) / a.itemsize(); }

struct Problem {
  fastdetect::Grid grid;
  fastdetect::Image image;
  int64_t batch;
};

Problem problem_of(const py::array& images, int64_t patch) {
  if (images.ndim() != 4 || images.shape(1) < 1) refuse("images", images, "[B, C, H, W] with C of at least 1");
  if (patch < 1) throw std::invalid_argument("patch_size: got " + std::to_string(patch) + ", want at least 1");
  if (!images.shape(2) || !images.shape(3) || images.shape(2) % patch || images.shape(3) % patch)
    refuse("images", images, "H and W divisible by patch_size " + std::to_string(patch));
  const int64_t rows = images.shape(2) / patch, cols = images.shape(3) / patch;
  return {{images.shape(1), rows, cols, patch, rows * cols, patch * patch * images.shape(1)},
          {images.data(), dtype_of("images", images, true), stride(images, 0), stride(images, 1),
           stride(images, 2), stride(images, 3)},
          images.shape(0)};
}

void want_shape(const char* what, const py::array& a, const std::vector<int64_t>& shape) {
  bool same = a.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = a.shape(i) == shape[i];
  if (same) return;
  std::string wanted = "shape [";
  for (size_t i = 0; i < shape.size(); ++i) wanted += (i ? ", " : "") + std::to_string(shape[i]);
  refuse(what, a, wanted + "]");
}

py::array rows_contiguous(const py::array& given) {  // the kernels want stride 1 in the last axis only
  const py::array a = native(given);
  const bool contiguous = a.ndim() > 0 && a.strides(a.ndim() - 1) == a.itemsize();
  return contiguous ? a : py::array::ensure(a, py::array::c_style);
}

CpuLevel level_of(const std::optional<std::string>& text) {
  const CpuLevel best = fastdetect::best_cpu_level();
  if (!text) return best;
  for (const CpuLevel level : {CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512})
    if (*text == fastdetect::name(level) && level <= best) return level;
  throw std::invalid_argument("level: got '" + *text + "', want baseline, avx2 or avx512, at most '" +
                              fastdetect::name(best) + "' on this processor");
}

template <class Work>
void run(int64_t count, int threads, const Work& work) {
  if (threads < 1) throw std::invalid_argument("threads: got " + std::to_string(threads) + ", want at least 1");
  py::gil_scoped_release release;
  const int64_t share = (count + threads - 1) / threads;
  std::vector<std::thread> pool;
  for (int64_t begin = share; begin < count; begin += share)
    pool.emplace_back([&work, begin, share, count] { work(begin, std::min(count, begin + share)); });
  if (count) work(0, std::min(count, share));
  for (std::thread& thread : pool) thread.join();
}

std::tuple<double, py::array> masked_patch_loss(const py::array& pred_in, const py::array& images_in,
                                                const py::array& mask_in, int64_t patch_size, bool norm_pix,
                                                int threads, const std::optional<std::string>& level_name) {
  const py::array images = native(images_in);
  const auto mask = floats("mask", mask_in);
  const Problem problem = problem_of(images, patch_size);
  want_shape("pred", pred_in, {problem.batch, problem.grid.patches, problem.grid.length});
  want_shape("mask", mask, {problem.batch, problem.grid.patches});
  if (norm_pix && problem.grid.length < 2) refuse("images", images, "two values per patch or more with norm_pix");
  const CpuLevel level = level_of(level_name);
  const py::array pred = rows_contiguous(pred_in);
  const int64_t count = problem.batch * problem.grid.patches;
  std::vector<float> loss(count);
  py::array grad(pred.dtype(), std::vector<py::ssize_t>(pred.shape(), pred.shape() + 3));
  fastdetect::LossJob job{};
  job.grid = problem.grid;
  job.image = problem.image;
  job.pred = pred.data();
  job.pred_dtype = dtype_of("pred", pred, false);
  job.pred_stride_b = stride(pred, 0);
  job.pred_stride_l = stride(pred, 1);
  job.count = count;
  job.weight = mask.data();
  job.norm_pix = norm_pix;
  job.loss = loss.data();
  job.grad = grad.mutable_data();
  double total = 0.0, sum = 0.0;
  for (int64_t i = 0; i < count; ++i) total += job.weight[i];
  job.grad_scale = static_cast<float>(1.0 / total);
  run(count, threads, [&](int64_t begin, int64_t end) { fastdetect::masked_patch_loss(job, begin, end, level); });
  for (const float value : loss) sum += value;
  return {sum / total, grad};
}

std::tuple<py::array, py::array_t<float>> patch_residual(const py::array& pred_in, const py::array& images_in,
                                                         const py::array& assignment_in, int64_t patch_size,
                                                         double gain, double clamp, int threads,
                                                         const std::optional<std::string>& level_name) {
  const py::array images = native(images_in);
  if (assignment_in.dtype().kind() != 'b') refuse("assignment", assignment_in, "dtype bool");
  const py::array_t<bool, py::array::c_style> assignment(assignment_in);
  if (!std::isfinite(gain)) throw std::invalid_argument("gain: got " + std::to_string(gain) + ", want a finite number");
  const Problem problem = problem_of(images, patch_size);
  if (pred_in.ndim() != 4 || pred_in.shape(0) < 1) refuse("pred", pred_in, "[k, B, L, P*P*C] with k of at least 1");
  want_shape("pred", pred_in, {pred_in.shape(0), problem.batch, problem.grid.patches, problem.grid.length});
  want_shape("assignment", assignment, {pred_in.shape(0), problem.grid.patches});
  if (!(clamp > 0.0)) throw std::invalid_argument("clamp: got " + std::to_string(clamp) + ", want more than 0");
  const CpuLevel level = level_of(level_name);
  const py::array pred = rows_contiguous(pred_in);
  const py::dtype dtype = problem.image.dtype == Dtype::kUInt8 ? py::dtype::of<float>() : images.dtype();
  py::array residual(dtype, std::vector<py::ssize_t>(images.shape(), images.shape() + 4));
  py::array_t<float> scores({problem.batch, problem.grid.patches});
  fastdetect::ResidualJob job{};
  job.grid = problem.grid;
  job.image = problem.image;
  job.pred = pred.data();
  job.pred_dtype = dtype_of("pred", pred, false);
  job.passes = pred.shape(0);
  job.pred_stride_k = stride(pred, 0);
  job.pred_stride_b = stride(pred, 1);
  job.pred_stride_l = stride(pred, 2);
  job.assignment = assignment.data();
  job.gain = static_cast<float>(gain);
  job.clamp = static_cast<float>(clamp);
  job.residual = residual.mutable_data();
  job.scores = scores.mutable_data();
  run(problem.batch * problem.grid.patches, threads,
      [&](int64_t begin, int64_t end) { fastdetect::patch_residual(job, begin, end, level); });
  return {residual, scores};
}

using Labels = py::array_t<int64_t, py::array::c_style>;
using Vector = py::array_t<float, py::array::c_style>;

fastdetect::Rows rows_of(const py::array& z) {
  if (z.ndim() != 2 || z.shape(1) < 1) refuse("z", z, "[N, D]");
  return {z.data(), dtype_of("z", z, false), z.shape(0), z.shape(1), stride(z, 0)};
}

Labels labels_of(const py::array& labels, const py::array& z) {
  const char kind = labels.dtype().kind();
  if (kind != 'i' && kind != 'u') refuse("labels", labels, "integers, 0 = real, above = fake");
  want_shape("labels", labels, {z.shape(0)});
  const Labels as_int64 = py::array_t<int64_t, py::array::c_style | py::array::forcecast>(labels);
  for (py::ssize_t i = 0; i < as_int64.size(); ++i) {
    const int64_t label = as_int64.data()[i];
    if (label >= 0) continue;
    const std::string got = kind == 'u' ? std::to_string(static_cast<uint64_t>(label)) : std::to_string(label);
    throw std::invalid_argument("labels: got " + got + " at row " + std::to_string(i) +
                                ", want 0 = real, above = fake, below 2^63");
  }
  return as_int64;
}

Vector update_center(const std::optional<py::array>& center_in, const py::array& z_in, const py::array& labels_in,
                     double momentum, int threads, const std::optional<std::string>& level_name) {
  const auto center = center_in ? std::optional<Vector>(floats("center", *center_in)) : std::nullopt;
  const py::array z = rows_contiguous(z_in);
  const fastdetect::Rows rows = rows_of(z);
  const Labels labels = labels_of(labels_in, z);
  if (!(momentum >= 0.0 && momentum <= 1.0))
    throw std::invalid_argument("momentum: got " + std::to_string(momentum) + ", want 0 to 1");
  const CpuLevel level = level_of(level_name);
  if (center) want_shape("center", *center, {rows.width});
  const int64_t chunks = (rows.count + fastdetect::kSumRows - 1) / fastdetect::kSumRows;
  std::vector<float> partial(chunks * (rows.width + 1)), sums(rows.width + 1), zero(rows.width);
  const fastdetect::SumsJob job{rows, labels.data(), partial.data(), sums.data()};
  run(chunks, threads, [&](int64_t begin, int64_t end) { fastdetect::partial_sums(job, begin, end, level); });
  fastdetect::finish_sums(job);
  for (const float sum : sums)
    if (!std::isfinite(sum)) throw std::invalid_argument("z: a real's row holds NaN or infinity");
  Vector out(rows.width);
  fastdetect::mix_center({center ? center->data() : zero.data(), sums.data(), rows.width, momentum,
                          out.mutable_data()});
  return out;
}

std::tuple<py::array, Labels, Vector> synthesize_positives(const py::array& z_in, const py::array& labels_in,
                                                           const py::array& center_in, double rho, double lam_max,
                                                           const std::optional<py::int_>& seed,
                                                           const std::optional<py::array>& lam_in, bool guard,
                                                           int threads, const std::optional<std::string>& level_name) {
  const Vector center = floats("center", center_in);
  const auto lam = lam_in ? std::optional<Vector>(floats("lam", *lam_in)) : std::nullopt;
  const py::array z = rows_contiguous(z_in);
  const fastdetect::Rows rows = rows_of(z);
  const Labels labels = labels_of(labels_in, z);
  want_shape("center", center, {rows.width});
  if (!(rho >= 0.0 && rho <= 1.0)) throw std::invalid_argument("rho: got " + std::to_string(rho) + ", want 0 to 1");
  if (!(lam_max >= 0.0 && std::isfinite(lam_max)))
    throw std::invalid_argument("lam_max: got " + std::to_string(lam_max) + ", want a finite number from 0");
  if (seed.has_value() == lam.has_value()) throw std::invalid_argument("want one of seed and lam");
  const CpuLevel level = level_of(level_name);
  std::vector<float> similarity(rows.count);
  std::vector<int64_t> index(rows.count);
  fastdetect::MineState state{};
  const fastdetect::MineJob mining{rows,       labels.data(),     center.data(), rho,
                                   rows.count, similarity.data(), index.data(),  &state};
  std::atomic<bool> unit_length{true};
  run(rows.count, threads, [&](int64_t begin, int64_t end) {
    if (!fastdetect::similarities(mining, begin, end, level)) unit_length = false;
  });
  fastdetect::mine(mining, unit_length, level);
  if (state.bad) throw std::invalid_argument("z and center: want finite rows of unit length");
  if (lam && !(lam->ndim() == 1 && (lam->shape(0) == rows.count || lam->shape(0) == state.mined)))
    refuse("lam", *lam, "[N] or [M], M = " + std::to_string(state.mined));
  for (py::ssize_t i = 0; lam && i < lam->size(); ++i)
    if (!(lam->data()[i] >= 0.0f && std::isfinite(lam->data()[i])))
      throw std::invalid_argument("lam: want finite numbers from 0");
  py::array out(z.dtype(), std::vector<py::ssize_t>{state.mined, rows.width});
  Vector applied(state.mined);
  const fastdetect::SynthesisJob job{rows,
                                     center.data(),
                                     similarity.data(),
                                     &state,
                                     index.data(),
                                     state.mined,
                                     lam ? lam->data() : nullptr,
                                     lam && lam->shape(0) == rows.count,
                                     static_cast<float>(lam_max),
                                     seed ? PyLong_AsUnsignedLongLongMask(seed->ptr()) : 0,
                                     nullptr,
                                     guard,
                                     out.mutable_data(),
                                     applied.mutable_data()};
  run(state.mined, threads, [&](int64_t begin, int64_t end) { fastdetect::synthesize(job, begin, end, level); });
  return {out, Labels(state.mined, index.data()), applied};
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, const std::array<uint32_t, 2>& key) {
  fastdetect::philox4x32(counter.data(), key[0], key[1]);
  return counter;
}

py::dict build_info() {
  py::dict info;
  info["version"] = FASTDETECT_VERSION;
  info["compiler"] = FASTDETECT_COMPILER;
  info["flags"] = FASTDETECT_FLAGS;
  info["torch_headers"] = FASTDETECT_TORCH_HEADERS;  // empty: the op library was left out
  info["cpu_library"] = std::string(FASTDETECT_TORCH_HEADERS) != "";
  info["cuda_library"] = std::string(FASTDETECT_CUDA) != "";
  info["cuda_architectures"] = FASTDETECT_CUDA;  // as "80,90a"; empty: the CUDA op library was left out
  info["cpu_level"] = fastdetect::name(fastdetect::best_cpu_level());
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "The CPU core of fastdetect.ops for NumPy arrays (no torch), and build_info().";
  m.def("masked_patch_loss", &masked_patch_loss, py::arg("pred"), py::arg("images"), py::arg("mask"), py::kw_only(),
        py::arg("patch_size"), py::arg("norm_pix") = false, py::arg("threads") = 1, py::arg("level") = py::none(),
        "(mean loss over removed patches, its gradient for pred): pred [B, L, P*P*C] float32 or float16, images "
        "[B, C, H, W] float32, float16 or uint8 (value / 255), mask [B, L] of any dtype, 1 = removed.");
  m.def("patch_residual", &patch_residual, py::arg("pred"), py::arg("images"), py::arg("assignment"), py::kw_only(),
        py::arg("patch_size"), py::arg("gain") = 4.0, py::arg("clamp") = 1.0, py::arg("threads") = 1,
        py::arg("level") = py::none(),
        "(residual [B, C, H, W], scores [B, L]) from pred [k, B, L, P*P*C], images [B, C, H, W] and assignment "
        "[k, L] bool.");
  m.def("update_center", &update_center, py::arg("center"), py::arg("z"), py::arg("labels"), py::kw_only(),
        py::arg("momentum") = 0.9, py::arg("threads") = 1, py::arg("level") = py::none(),
        "The new centre [D] of the reals from the old one (None: none yet), z [N, D] float32 or float16 and labels [N], "
        "0 = real.");
  m.def("synthesize_positives", &synthesize_positives, py::arg("z"), py::arg("labels"), py::arg("center"),
        py::kw_only(), py::arg("rho") = 0.25, py::arg("lam_max") = 0.5, py::arg("seed") = py::none(),
        py::arg("lam") = py::none(), py::arg("guard") = true, py::arg("threads") = 1, py::arg("level") = py::none(),
        "(z_new [M, D], index [M], lam [M]) from z [N, D] float32 or float16 of unit length, labels [N], 0 = real, and "
        "center [D]; seed: any integer, taken modulo 2^64.");
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"), "Philox4x32-10: four random words.");
  m.def("build_info", &build_info, "Version, compiler, flags, CPU level in use, and which libraries were built.");
}
