// The 16-bit floats as bits, with their conversions; no header of CUDA or PyTorch, so that NVRTC needs none either.
#pragma once

#ifdef ANTIPHON_CPU_EXEC
#include "cpu_exec.h"
#endif

namespace antiphon {

using int64 = long long;

struct bfloat16 {
  unsigned short bits;
};
struct float16 {
  unsigned short bits;
};

__device__ __forceinline__ float from_bits(unsigned bits) {
#ifdef ANTIPHON_CPU_EXEC
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#else
  return __uint_as_float(bits);
#endif
}

__device__ __forceinline__ unsigned to_bits(float value) {
#ifdef ANTIPHON_CPU_EXEC
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
#else
  return __float_as_uint(value);
#endif
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bfloat16 x) { return from_bits(unsigned(x.bits) << 16); }
__device__ __forceinline__ float widen(float16 x) {
#ifdef ANTIPHON_CPU_EXEC
  _Float16 value;
  std::memcpy(&value, &x.bits, 2);
  return static_cast<float>(value);
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#endif
}

// Round to nearest even; NaN stays NaN.
__device__ __forceinline__ void narrow(float value, float& out) { out = value; }
__device__ __forceinline__ void narrow(float value, bfloat16& out) {
  const unsigned bits = to_bits(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<unsigned short>(is_nan ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
__device__ __forceinline__ void narrow(float value, float16& out) {
#ifdef ANTIPHON_CPU_EXEC
  const _Float16 half = static_cast<_Float16>(value);
  std::memcpy(&out.bits, &half, 2);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#endif
}

// 16 bytes of values, moved as one.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* from) {
  union {
    uint4 raw;
    Vector<T> vector;
  } u;
  u.raw = *reinterpret_cast<const uint4*>(from);
  return u.vector;
}

template <class T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T>& vector) {
  union {
    uint4 raw;
    Vector<T> vector;
  } u;
  u.vector = vector;
  *reinterpret_cast<uint4*>(to) = u.raw;
}

}  // namespace antiphon
