// What the skinny quantised products share: which output and rows a warp owns, and how a warp ends its sums.
//
// One warp: one output of one branch, all rows of that branch (at most ROWS). Lanes walk the inputs in the same order for
// every number of rows and join their sums in a fixed tree, so a row's result does not depend on the rows beside it.
#pragma once

#include "types.h"

namespace antiphon {

constexpr int kWarp = 32;
constexpr int kWarps = 4;

struct Unit {
  int branch, output, first, rows;  // rows [first, first + rows) of x; rows 0: nothing to do
};

// Grid: branches * ceil(outputs / kWarps) blocks of kWarp * kWarps threads; branch 0 owns rows [0, split).
__device__ __forceinline__ Unit unit_of_warp(int outputs, int num_rows, int split) {
  const int blocks = (outputs + kWarps - 1) / kWarps;
  const int branch = blockIdx.x / blocks;
  const int output = (blockIdx.x % blocks) * kWarps + threadIdx.x / kWarp;
  const int first = branch ? split : 0;
  return {branch, output, first, output < outputs ? (branch ? num_rows : split) - first : 0};
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Bytes 0..255 as floats 0..255 without a conversion instruction: as the low mantissa bits of 2^23.
__device__ __forceinline__ float byte_to_float(unsigned word, int index) {
  return from_bits(0x4b000000u | (word >> (8 * index) & 0xffu)) - 8388608.0f;
}

}  // namespace antiphon
