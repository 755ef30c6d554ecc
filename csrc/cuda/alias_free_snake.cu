// BigVGAN's anti-aliased SnakeBeta in one pass: up by 2 (12 taps), x + inv_beta sin^2(alpha x), down by 2 (12 taps).
//
//     even[j] = 2 sum_i x[j + 2 - i] up[1 + 2i]      odd[j] = 2 sum_i x[j + 3 - i] up[2i]           i = 0..5
//     out[t]  = sum_i even[t - 2 + i] down[1 + 2i] + odd[t - 3 + i] down[2i]
//
// x is repeated beyond its ends before the up filter; the activated signal is repeated before the down filter: even and odd
// before frame 0 are even[0], from frame T on odd[T - 1]. That second rule is where the fused kernel of the public BigVGAN
// differs from its own PyTorch form, in the first and last three samples.
//
// One block: kTile samples of one line (batch item and channel). The doubled signal lives in shared memory only:
// input [tile - 6, tile + kTile + 6), frames [tile - 3, tile + kTile + 3). Memory is read and written 16 bytes at a time
// where the line starts at a multiple of 16 bytes and the tile is whole. float32 between load and store.
#include "types.h"

namespace antiphon {

constexpr int kThreads = 128;
constexpr int kTile = 1024;
constexpr int kHalo = 3;
constexpr int kReach = 2 * kHalo;
constexpr int kFrameSpace = (kTile + 2 * kHalo + 3) / 4 * 4;

// sin(y)^2: pi, its period, is subtracted in three parts; beyond 1e5, where they no longer suffice, in float64.
__device__ __forceinline__ float sin_squared(float y) {
  const float turns = rintf(y * 0.318309886f);
  float r = fmaf(turns, -3.140625f, y);
  r = fmaf(turns, -9.67502593994140625e-4f, r);
  r = fmaf(turns, -1.50995799e-7f, r);
  if (fabsf(y) > 1e5f) {
    const double wide = y;
    r = static_cast<float>(wide - rint(wide * 0.31830988618379067) * 3.14159265358979324);
  }
  const float z = r * r;
  float p = fmaf(z, -2.388977765e-8f, 2.7525304382e-6f);
  p = fmaf(z, p, -1.98408619e-4f);
  p = fmaf(z, p, 8.33333098e-3f);
  p = fmaf(z, p, -1.66666666e-1f);
  const float s = fmaf(r * z, p, r);
  return s * s;
}

template <class T>
__device__ void load_input(const T* line, int start, int length, float* input) {
  constexpr int kVector = Vector<T>::kSize;
  const bool aligned = reinterpret_cast<unsigned long long>(line) % 16 == 0;
  const bool whole = aligned && start + kTile <= length;
  if (whole) {
    for (int i = threadIdx.x * kVector; i < kTile; i += kThreads * kVector) {
      const Vector<T> v = load_vector(line + start + i);
#pragma unroll
      for (int k = 0; k < kVector; ++k) input[kReach + i + k] = widen(v.values[k]);
    }
  }
  const int edge = whole ? kReach : kReach + kTile;  // what remains: both edges, or everything
  for (int i = threadIdx.x; i < kReach + edge; i += kThreads) {
    const int at = whole && i >= kReach ? i + kTile : i;
    const int source = start - kReach + at;
    input[at] = widen(line[source < 0 ? 0 : source >= length ? length - 1 : source]);
  }
}

// Frame j of the activated signal from input x[j - 3 .. j + 3], given as x.
__device__ __forceinline__ void activate(const float* x, const float* up, float alpha, float inv_beta, float& even, float& odd) {
  even = 0.0f;
  odd = 0.0f;
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    even = fmaf(x[5 - i], up[1 + 2 * i], even);
    odd = fmaf(x[6 - i], up[2 * i], odd);
  }
  even *= 2.0f;
  odd *= 2.0f;
  even = fmaf(inv_beta, sin_squared(alpha * even), even);
  odd = fmaf(inv_beta, sin_squared(alpha * odd), odd);
}

// Every thread: kVector neighbouring outputs from frames that it reads as four floats at a time.
template <class T>
__device__ void store_outputs(T* line, int start, int length, const float* even, const float* odd, const float* down) {
  constexpr int kVector = Vector<T>::kSize;
  constexpr int kFrames = (kVector + 2 * kHalo + 3) / 4 * 4;
  const bool aligned = reinterpret_cast<unsigned long long>(line) % 16 == 0;
  for (int i = threadIdx.x * kVector; i < kTile && start + i < length; i += kThreads * kVector) {
    float e[kFrames], o[kFrames];
#pragma unroll
    for (int k = 0; k < kFrames; k += 4) {
      const Vector<float> a = load_vector(even + i + k), b = load_vector(odd + i + k);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        e[k + q] = a.values[q];
        o[k + q] = b.values[q];
      }
    }
    Vector<T> v;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < 6; ++j) {
        sum = fmaf(o[k + j], down[2 * j], sum);
        sum = fmaf(e[k + j + 1], down[1 + 2 * j], sum);
      }
      narrow(sum, v.values[k]);
    }
    if (aligned && start + i + kVector <= length) {
      store_vector(line + start + i, v);
    } else {
      for (int k = 0; k < kVector && start + i + k < length; ++k) line[start + i + k] = v.values[k];
    }
  }
}

// x, out [lines, length]; alpha, inv_beta [channels] and filters [12] in float32. Grid: lines * ceil(length / kTile) blocks of kThreads.
template <class T>
__device__ __forceinline__ void alias_free_snake(
    const T* x, const float* alpha, const float* inv_beta, const float* up_filter, const float* down_filter, T* out, int channels,
    int length) {
  __shared__ float input[kTile + 2 * kReach];
  alignas(16) __shared__ float even[kFrameSpace];
  alignas(16) __shared__ float odd[kFrameSpace];
  __shared__ float filters[24];
  const int tiles = (length + kTile - 1) / kTile;
  const int64 row = blockIdx.x / tiles;
  const int start = static_cast<int>(blockIdx.x % tiles) * kTile;
  const T* source = x + row * length;
  if (threadIdx.x < 24) filters[threadIdx.x] = threadIdx.x < 12 ? up_filter[threadIdx.x] : down_filter[threadIdx.x - 12];
  load_input(source, start, length, input);
  __syncthreads();
  const float a = alpha[row % channels], b = inv_beta[row % channels];
  for (int i = threadIdx.x; i < kTile + 2 * kHalo; i += kThreads) {
    const int frame = start - kHalo + i;
    const int inside = frame < 0 ? 0 : frame >= length ? length - 1 : frame;
    float e, o;
    activate(input + inside - start + kHalo, filters, a, b, e, o);
    even[i] = frame >= length ? o : e;
    odd[i] = frame < 0 ? e : o;
  }
  __syncthreads();
  store_outputs(out + row * length, start, length, even, odd, filters + 12);
}

}  // namespace antiphon

#define ANTIPHON_KERNEL(name, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(antiphon::kThreads) name(                                                 \
      const T* x, const float* alpha, const float* inv_beta, const float* up_filter, const float* down_filter, T* out,    \
      int channels, int length) {                                                                                        \
    antiphon::alias_free_snake(x, alpha, inv_beta, up_filter, down_filter, out, channels, length);                       \
  }

ANTIPHON_KERNEL(alias_free_snake_float32, float)
ANTIPHON_KERNEL(alias_free_snake_bfloat16, antiphon::bfloat16)
ANTIPHON_KERNEL(alias_free_snake_float16, antiphon::float16)
#undef ANTIPHON_KERNEL
