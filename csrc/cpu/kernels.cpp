#include "kernels.h"

#include "isa.h"

namespace antiphon {

// `isa::name, ` for every kernel. One macro per instruction set, because a macro cannot pass its own argument on.
#define ANTIPHON_SCALAR(name, Args) scalar::name,
#define ANTIPHON_AVX2(name, Args) avx2::name,
#define ANTIPHON_AVX512(name, Args) avx512::name,
#define ANTIPHON_AVX512VNNI(name, Args) avx512vnni::name,
#define ANTIPHON_AVX512BF16(name, Args) avx512bf16::name,
#define ANTIPHON_AMX(name, Args) amx::name,

const Kernels& kernels() {
  static const Kernels of_scalar{ANTIPHON_KERNELS(ANTIPHON_SCALAR) scalar::panel_outputs};
#if defined(ANTIPHON_HAS_AVX2)
  static const Kernels of_avx2{ANTIPHON_KERNELS(ANTIPHON_AVX2) avx2::panel_outputs};
#endif
#if defined(ANTIPHON_HAS_AVX512)
  static const Kernels of_avx512{ANTIPHON_KERNELS(ANTIPHON_AVX512) avx512::panel_outputs};
#endif
#if defined(ANTIPHON_HAS_AVX512VNNI)
  static const Kernels of_avx512vnni{ANTIPHON_KERNELS(ANTIPHON_AVX512VNNI) avx512vnni::panel_outputs};
#endif
#if defined(ANTIPHON_HAS_AVX512BF16)
  static const Kernels of_avx512bf16{ANTIPHON_KERNELS(ANTIPHON_AVX512BF16) avx512bf16::panel_outputs};
#endif
#if defined(ANTIPHON_HAS_AMX)
  static const Kernels of_amx{ANTIPHON_KERNELS(ANTIPHON_AMX) amx::panel_outputs};
#endif
  switch (active_isa()) {
#if defined(ANTIPHON_HAS_AVX2)
    case Isa::avx2: return of_avx2;
#endif
#if defined(ANTIPHON_HAS_AVX512)
    case Isa::avx512: return of_avx512;
#endif
#if defined(ANTIPHON_HAS_AVX512VNNI)
    case Isa::avx512vnni: return of_avx512vnni;
#endif
#if defined(ANTIPHON_HAS_AVX512BF16)
    case Isa::avx512bf16: return of_avx512bf16;
#endif
#if defined(ANTIPHON_HAS_AMX)
    case Isa::amx: return of_amx;
#endif
    default: return of_scalar;
  }
}

}  // namespace antiphon
