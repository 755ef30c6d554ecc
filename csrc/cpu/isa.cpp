// Compiled without instruction-set flags: it must run on any CPU in order to say what the CPU can do.
#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace antiphon {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512bf16"};

std::vector<Isa> detect() {
  std::vector<Isa> found{Isa::scalar};
#if defined(ANTIPHON_HAS_AVX2)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) found.push_back(Isa::avx2);
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) found.push_back(Isa::avx512);
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
    found.push_back(Isa::avx512bf16);
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
