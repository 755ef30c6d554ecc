// A small persistent thread pool: a job is called once per thread with (thread_index, num_threads). Operators derive
// their own rows from that or claim them from each other; what a row becomes never depends on who computes it.
#pragma once

#include <cstdint>

namespace antiphon {

using Job = void (*)(void* context, int thread_index, int num_threads);

constexpr int kMaxThreads = 256;

// CPUs this process may run on (sched_getaffinity), or ANTIPHON_CPU_THREADS.
int default_num_threads();
int num_threads();
// Takes effect at the next job; 1 <= count <= kMaxThreads.
void set_num_threads(int count);

// Runs the job on num_threads() threads, the caller among them, and returns when all are done. A second caller that
// arrives meanwhile, or a call from inside a job, runs its job alone as (0, 1): same result, no waiting.
// Exceptions must not leave the job.
void run_job(Job job, void* context);

template <class F>
void parallel(const F& f) {
  run_job([](void* c, int index, int count) { (*static_cast<const F*>(c))(index, count); }, const_cast<F*>(&f));
}

// Threads of one job wait for each other; for jobs with several phases. `count` = the job's num_threads.
void job_barrier(int count);

// This thread's scratch memory: at least `bytes`, 64-byte aligned, contents undefined, valid until its next call.
void* scratch(int64_t bytes);

// The same, apart from scratch(): for memory that the caller of a job shares with its threads.
void* shared_scratch(int64_t bytes);

// Internal linkage: this header is compiled for several instruction sets.
// Rows [begin, end) of thread `index`: contiguous, multiples of `grain` except the last.
struct Range {
  int64_t begin, end;
};
static inline Range partition(int64_t rows, int64_t grain, int index, int count) {
  const int64_t blocks = (rows + grain - 1) / grain;
  const int64_t begin = blocks * index / count * grain, end = blocks * (index + 1) / count * grain;
  return {begin, end < rows ? end : rows};
}

}  // namespace antiphon
