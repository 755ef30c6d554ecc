// Arguments of the linear maps; kernels.h says what all kernels have in common.
#pragma once

#include <atomic>
#include <cstdint>

#include "bf16.h"

namespace antiphon {

constexpr int64_t kMaxSkinnyRows = 16;

// Threads of a linear map of few rows may share W unevenly: `next` is null, or has a counter for each thread of the first
// branch and then of the second, so many elements apart (a line), 0 at the start.
constexpr int64_t kClaimStride = 8;

struct LinearArgs {
  DType dtype;
  const void* x;       // [num_rows, k], rows x_stride apart; num_rows <= kMaxSkinnyRows
  int64_t x_stride;
  const void* weight;  // [branches, n, k], rows w_stride apart
  int64_t w_stride;
  const void* bias;    // [branches, n] or null
  void* out;           // [num_rows, n]
  int64_t num_rows, split, n, k;
  std::atomic<int64_t>* next = nullptr;
};

enum class Activation { none, gelu_tanh, gelu_exact };

struct LinearWideArgs {
  DType dtype;
  const void* x;       // [num_rows, k], rows x_stride apart
  int64_t x_stride;
  const void* weight;  // [branches, n, k], rows w_stride apart, or of one branch panels
  int64_t w_stride;    // or kInPanels
  const void* bias;    // [branches, n] or null
  void* out;           // [num_rows, n]
  void* workspace;     // linear_wide_workspace() elements, filled by linear_wide_pack
  std::atomic<int64_t>* next;  // 0 at the start: threads take units of work as they come
  int64_t num_rows, split, n, k;
  // With an activation, one branch and n a multiple of 32, the results are there for the next linear map alone: as
  // linear_wide_pack would leave them in this workspace; but where tiles cannot take k, in `out`.
  Activation activation = Activation::none;
  void* packed_out = nullptr;
  // Panels that are read next, or null: asked for while the last ones here are at work.
  const void* then = nullptr;
};

// Columns of a packed row: whole words of two bfloat16; of float32, behind them, two for every chunk of k, for what an
// instruction set may keep of it.
constexpr int64_t kWideChunk = 192;
constexpr int64_t word_columns(int64_t k) { return (k + 1) / 2 * 2; }
constexpr int64_t wide_columns(DType dtype, int64_t k) {
  return word_columns(k) + (dtype == DType::f32 ? (k + kWideChunk - 1) / kWideChunk * 2 : 0);
}

// Weights for linear_wide alone, in the order in which vectors of an instruction set read them: [n / panel_outputs()] panels
// of wide_columns(k) times as many elements, the last one filled up. Only made for the instruction set that reads them, and
// not for tiles.
constexpr int64_t kInPanels = 0;
struct WeightPanelsArgs {
  DType dtype;
  void* weight;      // [n, k], rows w_stride apart: read by weight_to_panels, written by weight_from_panels, the same bits
  int64_t w_stride;
  void* panels;
  int64_t n, k;
};

// Elements of the workspace, enough for either dtype: blocks of 16 rows of each branch.
inline int64_t linear_wide_workspace(int64_t num_rows, int64_t split, int64_t k) {
  return ((split + 15) / 16 + (num_rows - split + 15) / 16) * 16 * wide_columns(DType::f32, k);
}

// Compact weights: bfloat16 matrices [branches, n, k] without loss in 12 bits a weight, k a multiple of 128. A weight's
// lower byte is kept; its upper one, sign and most of the exponent, is one of 16 that the matrix has most often, or an
// escape. A row is groups of 128 columns: 128 lower bytes, then 64 bytes of two codes each. The lower bytes of 64 columns
// come in four lanes of 8 and 8, columns 8 j .. and 32 + 8 j ..; byte i of the codes has the code of lower byte i in its
// low nibble and that of lower byte 64 + i in its high one. So bytes interleaved within lanes are columns in order.
//
// codes: 16 upper bytes (4 words); for every row of all branches, and behind the last, the index in `codes` of its first
// escape; the escapes: column << 8 | upper byte, by column. An escape's own code is 0.
constexpr int64_t kCompactGroup = 128, kCompactGroupBytes = 192;
constexpr int64_t kCompactTableWords = 4;

// Rows of float32 meet the same weights, widened.
struct LinearCompactArgs {
  DType dtype;            // of x, bias and out
  const void* x;          // [num_rows, k], rows x_stride apart; num_rows <= kMaxSkinnyRows
  int64_t x_stride;
  const uint8_t* weight;  // [branches, n, k * 3 / 2]
  const int32_t* codes;
  const void* bias;       // [branches, n] or null
  void* out;              // [num_rows, n]
  int64_t num_rows, split, n, k;
  std::atomic<int64_t>* next = nullptr;
};

struct LinearCompactWideArgs {
  LinearWideArgs linear;  // without weight; packed by linear_wide_pack
  const uint8_t* weight;
  const int32_t* codes;
};

// Making compact weights of plain ones [rows, k], which lie one after the other.
struct CompactPackArgs {
  const bf16* weight;
  int64_t rows, k;
  int32_t* codes;         // the table is there; compact_count fills the row starts with counts, compact_pack the escapes
  uint8_t* out;           // [rows, k * 3 / 2], of compact_pack
};

struct CompactHistogramArgs {
  const bf16* weight;
  int64_t rows, k;
  int64_t (*counts)[256];  // [threads], += how often each upper byte is there
};

struct CompactWidenArgs {
  const uint8_t* weight;
  const int32_t* codes;
  bf16* out;              // [rows, k]
  int64_t rows, k;
};

struct LinearFixedWeightArgs {
  const float* weight;  // [n, k], k <= kMaxFixedInputs
  int8_t* tiles;        // linear_fixed_weight_bytes(); linear_fixed.cpp says how
  float* scales;        // [n]
  int64_t n, k;
};

struct LinearFixedArgs {
  const float* x;       // [num_rows, k], rows x_stride apart
  int64_t x_stride;
  const int8_t* tiles;  // of linear_fixed_weight
  const float* scales;
  const float* bias;    // [n] or null
  float* out;           // [num_rows, n]
  int8_t* x_tiles;      // linear_fixed_bytes(num_rows, k), filled by linear_fixed_pack
  float* x_units;       // [num_rows rounded up to 16], of linear_fixed_pack too
  std::atomic<int64_t>* next;  // 0 at the start: threads take units of work as they come
  int64_t num_rows, n, k;
};

// Sums of three products of bytes of so many inputs fit 32 bits.
constexpr int64_t kMaxFixedInputs = 32768;

// Bytes of the digits of rows of 16 at a time.
inline int64_t linear_fixed_bytes(int64_t num_rows, int64_t k) {
  return (num_rows + 15) / 16 * 16 * ((k + 63) / 64 * 64) * 3;
}
inline int64_t linear_fixed_weight_bytes(int64_t n, int64_t k) { return linear_fixed_bytes((n + 31) / 32 * 32, k); }

struct LinearInt8Args {
  DType dtype;           // of x, bias and out
  const void* x;         // [num_rows, k], rows x_stride apart
  int64_t x_stride;
  const int8_t* weight;  // [branches, n, k], k a multiple of 64
  const float* scale;    // [branches, n]
  const void* bias;      // [branches, n] or null
  void* out;             // [num_rows, n]
  int64_t num_rows, split, n, k;
  std::atomic<int64_t>* next = nullptr;
};

struct LinearInt4Args {
  DType dtype;
  const void* x;
  int64_t x_stride;
  const uint8_t* weight;  // [branches, n, k / 2], k a multiple of 128
  const bf16* scale;      // [branches, k / 128, n]
  const void* bias;
  void* out;
  int64_t num_rows, split, n, k;
  std::atomic<int64_t>* next = nullptr;
};

// Rows of x as int8 planes for linear_int8_wide and linear_int4_wide; kernels/plane_blocks.h says how.
struct PlanesArgs {
  DType dtype;      // of x
  const void* x;    // [num_rows, k], rows x_stride apart, k a multiple of 64
  int64_t x_stride;
  int8_t* planes;   // linear_planes_bytes() of both together
  float* steps;     // behind the planes
  int64_t num_rows, split, k;
};

// Blocks of 16 rows.
inline int64_t plane_blocks(int64_t rows) { return (rows + 15) / 16; }
inline int64_t linear_planes_bytes(int64_t num_rows, int64_t split, int64_t k) {
  return (plane_blocks(split) + plane_blocks(num_rows - split)) * 16 * (2 * k + 4);
}

// In linear_planes_bytes() of `memory`.
inline PlanesArgs planes_in(int8_t* memory, DType dtype, const void* x, int64_t x_stride, int64_t num_rows, int64_t split,
                            int64_t k) {
  const int64_t blocks = plane_blocks(split) + plane_blocks(num_rows - split);
  return {dtype, x, x_stride, memory, reinterpret_cast<float*>(memory + blocks * 16 * 2 * k), num_rows, split, k};
}

struct SplitRows {
  const int8_t* planes;
  const float* steps;
  std::atomic<int64_t>* next;  // 0 at the start: threads take units of work as they come
};

struct LinearInt8WideArgs {
  LinearInt8Args linear;  // any number of rows
  SplitRows x;
};

struct LinearInt4WideArgs {
  LinearInt4Args linear;
  SplitRows x;
};

}  // namespace antiphon
