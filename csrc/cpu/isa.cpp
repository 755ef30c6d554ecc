// Compiled without instruction-set flags: it must run on any CPU in order to say what the CPU can do.
#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(ANTIPHON_HAS_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace antiphon {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"};

// AMX with bfloat16 and int8, and the kernel's leave to use its 8 KB of register state (Linux: arch_prctl, from 5.16).
bool have_amx() {
#if defined(ANTIPHON_HAS_AMX) && defined(ANTIPHON_EMULATE_TILES)
  return true;
#elif defined(ANTIPHON_HAS_AMX) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned needed = (1u << 22) | (1u << 24) | (1u << 25);  // AMX-BF16, AMX-TILE, AMX-INT8
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return (d & needed) == needed && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::vector<Isa> detect() {
  std::vector<Isa> found{Isa::scalar};
#if defined(ANTIPHON_HAS_AVX2)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) found.push_back(Isa::avx2);
#endif
#if defined(ANTIPHON_HAS_AVX512)
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) found.push_back(Isa::avx512);
#endif
#if defined(ANTIPHON_HAS_AVX512VNNI)
  if (avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(Isa::avx512vnni);
#endif
#if defined(ANTIPHON_HAS_AVX512BF16)
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (bf16) found.push_back(Isa::avx512bf16);
  if (bf16 && have_amx()) found.push_back(Isa::amx);
#endif
  return found;
}

Isa parse(const std::string& name) {
  std::string known;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    known += std::string(known.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("CPU instruction set '" + name + "': this build on this CPU has " + known);
}

std::atomic<int>& active() {
  static std::atomic<int> value = [] {
    const char* forced = std::getenv("ANTIPHON_CPU_ISA");
    return static_cast<int>(forced && *forced ? parse(forced) : available_isas().back());
  }();
  return value;
}

}  // namespace

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> found = detect();
  return found;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }
Isa active_isa() { return static_cast<Isa>(active().load(std::memory_order_relaxed)); }
void set_isa(const std::string& name) { active().store(static_cast<int>(parse(name))); }

}  // namespace antiphon
