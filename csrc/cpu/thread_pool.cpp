#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "aligned.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace antiphon {
namespace {

// A thread that waits for the others of its job spins this often before it lets others run; one that waits for the next
// job spins for tens of microseconds, the gap between operators of one step, and then sleeps: another library's threads
// may need its core.
constexpr int kSpins = 4000;
constexpr int kIdleSpins = 600;

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

thread_local bool inside_job = false;

class Pool {
 public:
  explicit Pool(int count) : count_(count) {
    for (int index = 1; index < count; ++index) workers_.emplace_back([this, index] { work(index); });
  }

  ~Pool() {
    stop_.store(true);
    publish();
    for (auto& worker : workers_) worker.join();
  }

  int count() const { return count_; }

  void run(Job job, void* context) {
    job_ = job;
    context_ = context;
    pending_.store(count_ - 1, std::memory_order_relaxed);
    publish();
    inside_job = true;
    job(context, 0, count_);
    inside_job = false;
    for (int spins = 0; pending_.load(std::memory_order_acquire) > 0; ++spins)
      spins < kSpins ? pause_cpu() : std::this_thread::yield();
  }

  void barrier() {
    const int64_t arrived = arrived_.fetch_add(1, std::memory_order_acq_rel) + 1;
    const int64_t goal = (arrived + count_ - 1) / count_ * count_;
    for (int spins = 0; arrived_.load(std::memory_order_acquire) < goal; ++spins)
      spins < kSpins ? pause_cpu() : std::this_thread::yield();
  }

 private:
  void publish() {
    { std::lock_guard<std::mutex> lock(mutex_); epoch_.fetch_add(1, std::memory_order_release); }
    wake_.notify_all();
  }

  void work(int index) {
    inside_job = true;
    for (uint64_t seen = 0;;) {
      for (int spins = 0; spins < kIdleSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) pause_cpu();
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
      }
      ++seen;
      if (stop_.load()) return;
      job_(context_, index, count_);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int count_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> pending_{0};
  std::atomic<int64_t> arrived_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// `busy` is held while a job runs. After fork the child has no worker threads: it forgets the pool and makes its own.
struct Shared {
  std::mutex busy;
  std::unique_ptr<Pool> pool;
  std::atomic<int> wanted{default_num_threads()};
};

Shared* shared = nullptr;

void forget_after_fork() { shared = new Shared; }

Shared& get_shared() {
  static const bool once = [] {
    shared = new Shared;  // never freed: worker threads may outlive static destructors
#if defined(__linux__)
    pthread_atfork(nullptr, nullptr, forget_after_fork);
#endif
    return true;
  }();
  (void)once;
  return *shared;
}

// Grows, never shrinks; freed with its thread. For AddressSanitizer every call gets memory that ends where it was told to.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeepScratch = false;
#else
constexpr bool kKeepScratch = true;
#endif
struct Scratch {
  AlignedMemory memory;
  int64_t size = 0;

  void* of(int64_t bytes) {
    if (size < bytes || !kKeepScratch) {
      memory = aligned_memory(bytes);
      size = bytes;
    }
    return memory.get();
  }
};
thread_local Scratch thread_scratch, thread_shared_scratch;

// Calls from inside it are calls from inside a job.
void run_alone(Job job, void* context) {
  const bool outer = inside_job;
  inside_job = true;
  job(context, 0, 1);
  inside_job = outer;
}

}  // namespace

void* scratch(int64_t bytes) { return thread_scratch.of(bytes); }
void* shared_scratch(int64_t bytes) { return thread_shared_scratch.of(bytes); }

int default_num_threads() {
  if (const char* forced = std::getenv("ANTIPHON_CPU_THREADS")) {
    const int count = std::atoi(forced);
    if (count >= 1 && count <= kMaxThreads) return count;
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::min(CPU_COUNT(&set), kMaxThreads);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return std::clamp(static_cast<int>(count), 1, kMaxThreads);
}

int num_threads() { return get_shared().wanted.load(); }

void set_num_threads(int count) {
  if (count < 1 || count > kMaxThreads)
    throw std::invalid_argument("number of threads: expected 1 to " + std::to_string(kMaxThreads));
  get_shared().wanted.store(count);
}

void run_job(Job job, void* context) {
  Shared& s = get_shared();
  const int wanted = s.wanted.load();
  std::unique_lock<std::mutex> lock(s.busy, std::defer_lock);
  if (wanted == 1 || inside_job || !lock.try_lock()) return run_alone(job, context);
  if (!s.pool || s.pool->count() != wanted) {
    s.pool.reset();
    s.pool = std::make_unique<Pool>(wanted);
  }
  s.pool->run(job, context);
}

void job_barrier(int count) {
  if (count > 1) get_shared().pool->barrier();
}

}  // namespace antiphon
