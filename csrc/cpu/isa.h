// Which instruction sets this process may use, and which one it does use.
#pragma once

#include <string>
#include <vector>

namespace antiphon {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2, avx512vnni = 3, avx512bf16 = 4, amx = 5 };

// Compiled in and supported by this CPU and operating system, slowest first; always starts with scalar.
const std::vector<Isa>& available_isas();

// The best available one, or what ANTIPHON_CPU_ISA or set_isa chose.
Isa active_isa();

// Force one by name; std::invalid_argument names the available ones.
void set_isa(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace antiphon
