// Memory of large fresh outputs of the CPU ops.
#pragma once

#include <torch/csrc/stable/tensor.h>

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

}  // namespace fastdetect
