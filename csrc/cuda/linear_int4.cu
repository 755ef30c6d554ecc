// y = x @ w[branch].T + bias[branch] for few rows, w[o, i] = (nibble[o, i] - 8) * scale[i / 128, o].
//
// x [num_rows, inputs], rows x_stride apart; weight uint8 [branches, outputs, inputs / 2]: 64 bytes are a group, the low half
// of byte j is input j of it, the high half input 64 + j; scale bfloat16 [branches, inputs / 128, outputs]; bias [branches,
// outputs] or null; out [num_rows, outputs]. inputs a multiple of 128. Every lane takes 16 bytes (one load, 32 weights) per
// step of 8 groups; products and sums in float32, one rounding at the store.
#include "skinny.h"

namespace antiphon {

constexpr int kGroup = 128;

// sum + dot of 16 values of x with 16 weights.
template <class T>
__device__ __forceinline__ float dot16(const T* x, const float* values, float sum) {
#pragma unroll
  for (int half = 0; half < 16; half += Vector<T>::kSize) {
    const Vector<T> v = load_vector(x + half);
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) sum = fmaf(widen(v.values[i]), values[half + i], sum);
  }
  return sum;
}

template <int ROWS, class T>
__device__ __forceinline__ void linear_int4(const T* x, const unsigned char* weight, const bfloat16* scale, const T* bias, T* out,
                                            int64 x_stride, int num_rows, int split, int inputs, int outputs) {
  const Unit unit = unit_of_warp(outputs, num_rows, split);
  if (unit.rows <= 0) return;
  const int lane = threadIdx.x % kWarp, groups = inputs / kGroup;
  const int64 row = static_cast<int64>(unit.branch) * outputs + unit.output;
  const unsigned char* w = weight + row * (inputs / 2);
  const bfloat16* scales = scale + static_cast<int64>(unit.branch) * groups * outputs + unit.output;
  float sums[ROWS] = {};
  for (int byte = lane * 16; byte < inputs / 2; byte += kWarp * 16) {
    const uint4 packed = *reinterpret_cast<const uint4*>(w + byte);
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
    const int group = byte / (kGroup / 2);
    const int64 at = static_cast<int64>(group) * kGroup + byte % (kGroup / 2);
    const float step = widen(scales[static_cast<int64>(group) * outputs]);
    float low[16], high[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      low[i] = byte_to_float(words[i / 4] & 0x0f0f0f0fu, i % 4) - 8.0f;
      high[i] = byte_to_float(words[i / 4] >> 4 & 0x0f0f0f0fu, i % 4) - 8.0f;
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (r < unit.rows) {
        const T* source = x + (unit.first + r) * x_stride + at;
        sums[r] = fmaf(dot16(source + kGroup / 2, high, dot16(source, low, 0.0f)), step, sums[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (r < unit.rows) {
      const float total = warp_sum(sums[r]) + (bias ? widen(bias[row]) : 0.0f);
      if (lane == 0) narrow(total, out[static_cast<int64>(unit.first + r) * outputs + unit.output]);
    }
  }
}

}  // namespace antiphon

#define ANTIPHON_KERNEL(name, ROWS, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(antiphon::kWarp* antiphon::kWarps)                                            \
      name(const T* x, const unsigned char* weight, const antiphon::bfloat16* scale, const T* bias, T* out,                  \
           antiphon::int64 x_stride, int num_rows, int split, int inputs, int outputs) {                                     \
    antiphon::linear_int4<ROWS>(x, weight, scale, bias, out, x_stride, num_rows, split, inputs, outputs);                    \
  }

ANTIPHON_KERNEL(linear_int4_bfloat16_1, 1, antiphon::bfloat16)
ANTIPHON_KERNEL(linear_int4_bfloat16_4, 4, antiphon::bfloat16)
ANTIPHON_KERNEL(linear_int4_bfloat16_8, 8, antiphon::bfloat16)
ANTIPHON_KERNEL(linear_int4_float16_1, 1, antiphon::float16)
ANTIPHON_KERNEL(linear_int4_float16_4, 4, antiphon::float16)
ANTIPHON_KERNEL(linear_int4_float16_8, 8, antiphon::float16)
#undef ANTIPHON_KERNEL
