// y = (x @ weight[branch].T) * scale[branch] + bias[branch] for few rows: int8 weights, one scale per output.
//
// x [num_rows, inputs], rows x_stride apart; weight [branches, outputs, inputs]; scale float32 and bias [branches, outputs]
// (bias may be null); out [num_rows, outputs]. inputs a multiple of 16. Every lane takes 16 neighbouring weights (one
// 16-byte load) per step of 512; products and sums in float32, one rounding at the store.
#include "skinny.h"

namespace antiphon {

template <int ROWS, class T>
__device__ __forceinline__ void linear_int8(const T* x, const unsigned char* weight, const float* scale, const T* bias, T* out,
                                            int64 x_stride, int num_rows, int split, int inputs, int outputs) {
  const Unit unit = unit_of_warp(outputs, num_rows, split);
  if (unit.rows <= 0) return;
  const int lane = threadIdx.x % kWarp;
  const int64 row = static_cast<int64>(unit.branch) * outputs + unit.output;
  const unsigned char* w = weight + row * inputs;
  float sums[ROWS] = {};
  for (int k = lane * 16; k < inputs; k += kWarp * 16) {
    const uint4 packed = *reinterpret_cast<const uint4*>(w + k);
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
    float values[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) values[i] = byte_to_float(words[i / 4] ^ 0x80808080u, i % 4) - 128.0f;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (r < unit.rows) {
        const T* source = x + (unit.first + r) * x_stride + k;
#pragma unroll
        for (int half = 0; half < 16; half += Vector<T>::kSize) {
          const Vector<T> v = load_vector(source + half);
#pragma unroll
          for (int i = 0; i < Vector<T>::kSize; ++i) sums[r] = fmaf(widen(v.values[i]), values[half + i], sums[r]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (r < unit.rows) {
      const float total = warp_sum(sums[r]) * scale[row] + (bias ? widen(bias[row]) : 0.0f);
      if (lane == 0) narrow(total, out[static_cast<int64>(unit.first + r) * outputs + unit.output]);
    }
  }
}

}  // namespace antiphon

#define ANTIPHON_KERNEL(name, ROWS, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(antiphon::kWarp* antiphon::kWarps)                                            \
      name(const T* x, const unsigned char* weight, const float* scale, const T* bias, T* out, antiphon::int64 x_stride,     \
           int num_rows, int split, int inputs, int outputs) {                                                               \
    antiphon::linear_int8<ROWS>(x, weight, scale, bias, out, x_stride, num_rows, split, inputs, outputs);                    \
  }

ANTIPHON_KERNEL(linear_int8_bfloat16_1, 1, antiphon::bfloat16)
ANTIPHON_KERNEL(linear_int8_bfloat16_4, 4, antiphon::bfloat16)
ANTIPHON_KERNEL(linear_int8_bfloat16_8, 8, antiphon::bfloat16)
ANTIPHON_KERNEL(linear_int8_float16_1, 1, antiphon::float16)
ANTIPHON_KERNEL(linear_int8_float16_4, 4, antiphon::float16)
ANTIPHON_KERNEL(linear_int8_float16_8, 8, antiphon::float16)
#undef ANTIPHON_KERNEL
