// Memory on 64-byte boundaries, nothing in front of it or behind it, so that AddressSanitizer sees where it ends.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace antiphon {

constexpr std::align_val_t kCacheLine{64};

struct AlignedDelete {
  void operator()(char* memory) const { ::operator delete[](memory, kCacheLine); }
};
using AlignedMemory = std::unique_ptr<char[], AlignedDelete>;

// Contents undefined.
inline AlignedMemory aligned_memory(int64_t bytes) {
  return AlignedMemory(static_cast<char*>(::operator new[](static_cast<std::size_t>(bytes), kCacheLine)));
}

}  // namespace antiphon
