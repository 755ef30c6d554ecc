// Runs a CUDA kernel on the CPU: one operating-system thread per CUDA thread of a block, blocks one after the other.
//
// With it a .cu file compiles as C++, so that g++ tests its numbers and ThreadSanitizer its use of shared memory. What is
// there: threadIdx and its kin, __shared__, __syncthreads, __shfl_xor_sync over full warps. Nothing is fast here.
#pragma once

#include <pthread.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time, so one copy is right

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cpu_exec {

constexpr unsigned kWarp = 32;

class Barrier {
 public:
  explicit Barrier(unsigned count) { pthread_barrier_init(&barrier_, nullptr, count); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Warp {
  Barrier barrier{kWarp};
  uint32_t slots[kWarp] = {};
};

struct Block {
  explicit Block(unsigned threads) : barrier(threads), warps(threads / kWarp) {}
  Barrier barrier;
  std::vector<Warp> warps;
};

inline thread_local Block* block = nullptr;

// Runs body() as every thread of every block; threads must be a multiple of 32.
inline void launch(unsigned grid, unsigned threads, const std::function<void()>& body) {
  Block shared(threads);
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      block = &shared;
      threadIdx.x = t;
      blockDim.x = threads;
      gridDim.x = grid;
      for (unsigned b = 0; b < grid; ++b) {
        blockIdx.x = b;
        body();
        shared.barrier.wait();  // shared memory belongs to the next block from here on
      }
    });
  }
  for (auto& worker : workers) worker.join();
}

}  // namespace cpu_exec

// CPU_EXEC_WITHOUT_SYNC breaks every kernel that needs a barrier: the race test proves with it that it can fail.
inline void __syncthreads() {
#ifndef CPU_EXEC_WITHOUT_SYNC
  cpu_exec::block->barrier.wait();
#endif
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  static_assert(sizeof(T) == 4);
  auto& warp = cpu_exec::block->warps[threadIdx.x / cpu_exec::kWarp];
  const unsigned lane = threadIdx.x % cpu_exec::kWarp;
  std::memcpy(&warp.slots[lane], &value, 4);
  warp.barrier.wait();
  T other;
  std::memcpy(&other, &warp.slots[lane ^ lane_mask], 4);
  warp.barrier.wait();
  return other;
}
