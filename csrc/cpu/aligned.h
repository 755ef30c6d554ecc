// Memory on 64-byte boundaries, nothing in front of it or behind it, so that AddressSanitizer sees where it ends.
#pragma once

#include <cstdint>
#include <cstring>
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

// Memory that is kept for the next use.
template <class T>
class Aligned {
 public:
  // At least `size` elements; what was there is lost when it grows. New memory is zero.
  T* reserve(int64_t size) {
    if (grow(size)) std::memset(memory_.get(), 0, size * sizeof(T));
    return data();
  }
  // The same for what is written before it is read: contents undefined, pages untouched.
  T* reserve_unset(int64_t size) {
    grow(size);
    return data();
  }
  T* data() const { return reinterpret_cast<T*>(memory_.get()); }
  int64_t size() const { return size_; }

 private:
  // Frees before it allocates. Tells whether the memory is new.
  bool grow(int64_t size) {
    if (size <= size_) return false;
    size_ = 0;
    memory_.reset();
    memory_ = aligned_memory(size * sizeof(T));
    size_ = size;
    return true;
  }

  AlignedMemory memory_;
  int64_t size_ = 0;
};

}  // namespace antiphon
