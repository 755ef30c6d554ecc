// y = round(silu(x[:, :half])) * x[:, half:]. Threads own ranges of the flattened output.
#include "activations.h"
#include "kernels.h"
#include "simd.h"

namespace antiphon::ANTIPHON_ISA {
namespace {

template <class T>
void run(const SiluMulArgs& a, int index, int count) {
  constexpr int64_t kGrain = 512;
  const int64_t blocks = (a.half + kGrain - 1) / kGrain;
  const Range range = partition(a.num_rows * blocks, 1, index, count);
  for (int64_t unit = range.begin; unit < range.end; ++unit) {
    const int64_t t = unit / blocks, begin = unit % blocks * kGrain;
    const T* gate = static_cast<const T*>(a.x) + t * 2 * a.half + begin;
    T* out = static_cast<T*>(a.out) + t * a.half + begin;
    const auto activation = [](auto x) { return silu<T>(x); };
    activate(gate, min64(kGrain, a.half - begin), activation, [&](int64_t i, vf y, int64_t n) {
      store_upto(out + i, mul(through<T>(y), load_upto(gate + a.half + i, n)), n);
    });
  }
}

}  // namespace

void silu_mul(const SiluMulArgs& a, int index, int count) {
  a.dtype == DType::f32 ? run<float>(a, index, count) : run<bf16>(a, index, count);
}

}  // namespace antiphon::ANTIPHON_ISA
