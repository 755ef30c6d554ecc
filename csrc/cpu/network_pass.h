// What passes over a whole network share: linear maps over packed rows, and phases of work. The kernels are the operators',
// on the same rows in the same order.
//
// Threads share the work of a phase in one of two ways. Together they take blocks of rows or panels of columns as they
// come, each phase by a counter of its own, and all must have finished it before the next one. Apart each has rows of its
// own, which stay in its caches from phase to phase; they meet where one reads what another has written. That pays where W
// is in panels, so that any number of rows is good, and a thread's rows are many beside what reading all of W takes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "aligned.h"
#include "counters.h"
#include "kernels.h"

namespace antiphon {

// y = x W^T + bias. W as `linear_wide` takes it, rows or panels, no scales; or in bfloat16 compact weights and their codes,
// no stride; or in float32 digits and scales of `linear_fixed_weight`, no stride.
struct PassLinear {
  const void* weight;
  int64_t w_stride;
  const float* scales;
  const int32_t* codes;
  const void* bias;  // [n]
  int64_t n, k;

  bool in_panels() const { return w_stride == kInPanels && !scales && !codes; }
};

// How the maps of a network are stored: all in one dtype, of float32 all as digits or none.
struct PassFormat {
  DType dtype;
  bool fixed;

  PassFormat(DType dtype, const PassLinear& w) : dtype(dtype), fixed(w.scales != nullptr) {}
};

constexpr int64_t kPassRows = 16;  // rows of a block
constexpr int64_t kOwnRows = 24;   // of a thread, from which on it has its own: four tiles of products

inline int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Rows as linear maps read them: a copy in blocks, with digits the scales.
struct PassOperand {
  Aligned<char> blocks;
  Aligned<float> scales;

  void reserve(PassFormat format, int64_t rows, int64_t k) {
    blocks.reserve(format.fixed ? linear_fixed_bytes(rows, k)
                                : linear_wide_workspace(rows, rows, k) * size_of(format.dtype));
    if (format.fixed) scales.reserve((rows + kPassRows - 1) / kPassRows * kPassRows);
  }
};

// One thread's walk through a pass. All walk the same phases.
struct PassThread {
  const PassFormat format;
  const int index, count;
  std::atomic<int64_t>* next;  // counter of the next phase
  const bool apart = false;    // rows of its own
  const int64_t grain = 1;     // rows from a multiple of this on that a kernel takes for one token; divides kPassRows
  const Kernels& kernel = kernels();
  const DType dtype = format.dtype;
  const int64_t size = size_of(dtype);

  // Rows that are this thread's where threads work apart.
  Range own_rows(int64_t num_rows) const { return partition(num_rows, 1, index, count); }

  // f(first, n) for blocks of up to 16 of the rows; a kernel that f calls does its block alone. A block begins with a token,
  // or is of one alone.
  template <class F>
  void blocks(int64_t num_rows, const F& f) {
    if (!apart) {
      std::atomic<int64_t>* claimed = next++;
      for (int64_t row; (row = claimed->fetch_add(1, std::memory_order_relaxed) * kPassRows) < num_rows;)
        f(row, std::min(kPassRows, num_rows - row));
      return;
    }
    const Range own = own_rows(num_rows);
    for (int64_t row = own.begin, end; row < own.end; row = end) {
      end = std::min(own.end, row % grain ? row / grain * grain + grain : row + kPassRows);
      f(row, end - row);
    }
  }

  char* at(const Aligned<char>& buffer, int64_t row, int64_t width) const { return buffer.data() + row * width * size; }

  // Rows [row, row + n) of x, `stride` elements apart and [k] each, to their block; a block begins at `row`.
  void pack(const void* x, int64_t stride, int64_t row, int64_t n, int64_t k, const PassOperand& to) const {
    const char* block = static_cast<const char*>(x) + row * stride * size;
    if (format.fixed)
      kernel.linear_fixed_pack({reinterpret_cast<const float*>(block), stride, nullptr, nullptr, nullptr, nullptr,
                                reinterpret_cast<int8_t*>(to.blocks.data()) + linear_fixed_bytes(row, k),
                                to.scales.data() + row, nullptr, n, 0, k}, 0, 1);
    else
      kernel.linear_wide_pack({dtype, block, stride, nullptr, 0, nullptr, nullptr, packed_row(to, row, k),
                               nullptr, n, n, 0, k}, 0, 1);
  }
  void pack(const void* x, int64_t row, int64_t n, int64_t k, const PassOperand& to) const {
    pack(x, k, row, n, k, to);
  }

  // out = x W^T + bias of rows [num_rows], `stride` elements apart, packed before; with an activation as LinearWideArgs
  // says, unless W is in digits. `then`: the map that follows, if it is known.
  void linear(const PassLinear& w, const PassLinear* then, const void* x, int64_t stride, const PassOperand& packed,
              int64_t num_rows, void* out, Activation activation = Activation::none,
              const PassOperand* packed_out = nullptr) {
    if (!apart)
      return linear_of({0, num_rows}, next++, index, count, w, then, x, stride, packed, out, activation, packed_out);
    std::atomic<int64_t> claimed{0};
    linear_of(own_rows(num_rows), &claimed, 0, 1, w, then, x, stride, packed, out, activation, packed_out);
  }
  void linear(const PassLinear& w, const PassLinear* then, const void* x, const PassOperand& packed, int64_t num_rows,
              void* out) {
    linear(w, then, x, w.k, packed, num_rows, out);
  }

  // out = gelu(x W^T + bias), packed for the map that follows; all threads are done with it when this returns.
  void linear_gelu(const PassLinear& w, const PassLinear& then, const void* x, const PassOperand& packed,
                   int64_t num_rows, const Aligned<char>& out, Activation activation, const PassOperand& packed_out) {
    if (!format.fixed) return linear(w, &then, x, w.k, packed, num_rows, out.data(), activation, &packed_out), wait();
    linear(w, &then, x, packed, num_rows, out.data());
    wait();
    blocks(num_rows, [&](int64_t row, int64_t n) {
      char* of_block = at(out, row, w.n);
      kernel.gelu({dtype, of_block, of_block, n * w.n, activation == Activation::gelu_tanh}, 0, 1);
      pack(out.data(), row, n, w.n, packed_out);
    });
    wait();
  }

  // Before a phase that reads what this thread wrote: rows as many and as wide as those that it replaces.
  void wait() const {
    if (!apart) job_barrier(count);
  }
  // Before a phase that reads or writes what others did.
  void meet() const { job_barrier(count); }

 private:
  // `linear` of a range of rows by thread `of` of `together`.
  void linear_of(Range rows, std::atomic<int64_t>* claimed, int of, int together, const PassLinear& w,
                 const PassLinear* then, const void* x, int64_t stride, const PassOperand& packed, void* out,
                 Activation activation, const PassOperand* packed_out) {
    const int64_t n = rows.end - rows.begin;
    if (format.fixed)
      return kernel.linear_fixed({static_cast<const float*>(x), stride, static_cast<const int8_t*>(w.weight), w.scales,
                                  static_cast<const float*>(w.bias), static_cast<float*>(out),
                                  reinterpret_cast<int8_t*>(packed.blocks.data()), packed.scales.data(), claimed, n, w.n,
                                  w.k}, of, together);
    LinearWideArgs args{dtype, static_cast<const char*>(x) + rows.begin * stride * size, stride, nullptr, 0, w.bias,
                        static_cast<char*>(out) + rows.begin * w.n * size, packed_row(packed, rows.begin, w.k), claimed, n,
                        n, w.n, w.k, activation, packed_out ? packed_row(*packed_out, rows.begin, w.n) : nullptr};
    if (w.codes) return kernel.linear_compact_wide({args, static_cast<const uint8_t*>(w.weight), w.codes}, of, together);
    args.weight = w.weight;
    args.w_stride = w.w_stride;
    if (then && then->in_panels())  // of which this thread is likely to take the `of`-th
      args.then = static_cast<const char*>(then->weight) + of * kernel.panel_outputs * wide_columns(dtype, then->k) * size;
    kernel.linear_wide(args, of, together);
  }

  char* packed_row(const PassOperand& packed, int64_t row, int64_t k) const {
    return at(packed.blocks, row, wide_columns(dtype, k));
  }
};

}  // namespace antiphon
