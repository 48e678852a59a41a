// Memory of large outputs of the CPU ops.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#ifdef __linux__
#include <sys/mman.h>

#include <atomic>
#endif

namespace fastdetect {

#ifdef __linux__

struct Mapping {
  void* data;
  size_t bytes;
};

constexpr size_t kPage = 2 << 20, kMapped = 32 << 20;
constexpr int kKept = 2;
inline std::atomic<Mapping*> kept_mappings[kKept];

inline size_t release(Mapping* mapping) {
  if (!mapping) return 0;
  const size_t bytes = mapping->bytes;
  munmap(mapping->data, bytes);
  delete mapping;
  return bytes;
}

inline Mapping* map_pages(size_t bytes) {
  void* const whole = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) return nullptr;
  const size_t before = -reinterpret_cast<uintptr_t>(whole) & (kPage - 1);  // aligned: 4 KB pages at its ends cost 1 ms
  char* const data = static_cast<char*>(whole) + before;
  if (before) munmap(whole, before);
  if (before < kPage) munmap(data + bytes, kPage - before);
  madvise(data, bytes, MADV_HUGEPAGE);
  return new Mapping{data, bytes};
}

// One that was kept, or a fresh one; nullptr: refused.
inline Mapping* take_pages(size_t bytes) {
  for (auto& place : kept_mappings) {
    Mapping* const found = place.exchange(nullptr);
    if (found && found->bytes == bytes) return found;
    if (found) release(place.exchange(found));  // put back; another thread may have filled the place
  }
  return map_pages(bytes);
}

// Keeps the last ones that were freed for the next step, which wants the same sizes: the kernel would clear the pages of a
// fresh mapping first. MADV_FREE lets it have them where memory gets short.
inline void give_pages(Mapping* mapping) {
  if (madvise(mapping->data, mapping->bytes, MADV_FREE) != 0) {
    release(mapping);
    return;
  }
  for (auto& place : kept_mappings) {
    mapping = place.exchange(mapping);
    if (!mapping) return;
  }
  release(mapping);
}

#endif

// Unmaps what is kept; returns its bytes.
inline int64_t release_pages() {
  int64_t bytes = 0;
#ifdef __linux__
  for (auto& place : kept_mappings) bytes += release(place.exchange(nullptr));
#endif
  return bytes;
}

// A float32, bfloat16 or float16 output of the CPU, contiguous, not initialised. From 32 MB on, where malloc maps and
// unmaps memory for every allocation, the mapping is our own.
inline torch::stable::Tensor large_empty(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
                                         torch::headeronly::ScalarType dtype) {
#ifdef __linux__
  int64_t count = 1;
  std::vector<int64_t> strides(sizes.size());
  for (size_t i = sizes.size(); i-- > 0; count *= sizes[i]) strides[i] = count;
  const size_t bytes = count * (dtype == torch::headeronly::ScalarType::Float ? 4 : 2);
  if (bytes >= kMapped) {
    if (Mapping* const mapping = take_pages((bytes + kPage - 1) & ~(kPage - 1)))
      return torch::stable::from_blob(mapping->data, sizes, strides, like.device(), dtype,
                                      [mapping](void*) { give_pages(mapping); });
  }
#endif
  return torch::stable::new_empty(like, sizes, dtype);
}

}  // namespace fastdetect
