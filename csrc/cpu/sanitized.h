// Memory that only assembler and masked instructions touch, which AddressSanitizer does not see by itself.
//
// saw(p, bytes) tells it; without the sanitizer it is nothing. Tile loads and stores tell by themselves: they are
// redefined here for GCC, whose intrinsics are assembler, and look up their rows and bytes in the tile configuration.
#pragma once

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace antiphon::ANTIPHON_ISA {

#if defined(__SANITIZE_ADDRESS__)
// Reads the first forbidden byte, which ends the process with the sanitizer's report.
inline void saw(const void* p, int64_t bytes) {
  void* forbidden = __asan_region_is_poisoned(const_cast<void*>(p), static_cast<size_t>(bytes));
  if (forbidden) (void)*static_cast<volatile char*>(forbidden);
}
#else
inline void saw(const void*, int64_t) {}
#endif

#if defined(__SANITIZE_ADDRESS__) && defined(__AMX_TILE__) && !defined(__clang__) && !defined(ANTIPHON_EMULATE_TILES)
inline void saw_tile(int tile, const void* base, int64_t stride) {
  alignas(64) uint8_t config[64];
  __asm__ volatile("sttilecfg %0" : "=m"(config));
  const int64_t bytes = config[16 + 2 * tile] + 256 * config[17 + 2 * tile], rows = config[48 + tile];
  for (int64_t r = 0; r < rows; ++r) saw(static_cast<const char*>(base) + r * stride, bytes);
}

#undef _tile_loadd
#define _tile_loadd(tile, base, stride)                  \
  do {                                                   \
    antiphon::ANTIPHON_ISA::saw_tile(tile, base, stride); \
    _tile_loadd_internal(tile, base, stride);            \
  } while (0)
#undef _tile_stored
#define _tile_stored(tile, base, stride)                 \
  do {                                                   \
    antiphon::ANTIPHON_ISA::saw_tile(tile, base, stride); \
    _tile_stored_internal(tile, base, stride);           \
  } while (0)
#endif

}  // namespace antiphon::ANTIPHON_ISA
