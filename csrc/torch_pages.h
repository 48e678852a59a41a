// Memory of large fresh outputs of the CPU ops.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastdetect {

// A fresh 38 MB output costs 9400 page faults of 4 KB, more time than the arithmetic; with 2 MB pages half of that.
inline void* huge_pages(const torch::stable::Tensor& tensor) {
  char* data = static_cast<char*>(tensor.mutable_data_ptr());
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + tensor.numel() * tensor.element_size()) & ~(kPage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may be refused
#endif
  return data;
}

// Zeros the tensor if that is cheaper than writing its zeros: pages that are given back to the kernel come back zero at
// the first touch, which a fresh output pays for in any case. False: nothing was done.
inline bool zero_pages(const torch::stable::Tensor& tensor) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t last = first + tensor.numel() * tensor.element_size();
  const uintptr_t begin = (first + kPage - 1) & ~(kPage - 1), end = last & ~(kPage - 1);
  if (end < begin + 4 * kPage || madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED) != 0)
    return false;
  memset(reinterpret_cast<void*>(first), 0, begin - first);
  memset(reinterpret_cast<void*>(end), 0, last - end);
  return true;
#else
  return false;
#endif
}

struct Output {
  torch::stable::Tensor tensor;
  bool zero;  // it holds zeros already
};

// An output like `like` of which few rows will be written. From 32 MB on, where malloc would map and unmap it anyhow, the
// mapping is our own: aligned to its 2 MB pages, since 4 KB ones at the ends of another cost 1 ms.
inline Output mostly_zero(const torch::stable::Tensor& like) {
  const int64_t rows = like.size(0), width = like.size(1);
#ifdef __linux__
  constexpr size_t kPage = 2 << 20, kMapped = 32 << 20;
  const size_t bytes = (rows * width * like.element_size() + kPage - 1) & ~(kPage - 1);
  void* const whole = bytes < kMapped ? MAP_FAILED
                                      : mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole != MAP_FAILED) {
    const size_t before = -reinterpret_cast<uintptr_t>(whole) & (kPage - 1);
    char* const data = static_cast<char*>(whole) + before;
    if (before) munmap(whole, before);
    munmap(data + bytes, kPage - before);
    madvise(data, bytes, MADV_HUGEPAGE);
    return {torch::stable::from_blob(data, {rows, width}, {width, 1}, like.device(), like.scalar_type(),
                                     [bytes](void* mapped) { munmap(mapped, bytes); }),
            true};
  }
#endif
  torch::stable::Tensor tensor = torch::stable::new_empty(like, {rows, width});
  huge_pages(tensor);
  return {tensor, zero_pages(tensor)};
}

}  // namespace fastdetect
