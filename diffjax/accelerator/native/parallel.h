// Work shared out over XLA's own thread pool.
//
// oneDNN's OpenMP team would compete with that pool for the same cores, and a team waits for its
// slowest member at the end of every call. So a batch is cut into pieces instead, and every piece
// runs on one thread of the pool.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace diffjax {

// Keeps OpenMP, and so oneDNN, to the calling thread, and leaves the setting as it was found: the
// thread may be Python's own, where other libraries count on it.
class SingleThreaded {
 public:
  SingleThreaded() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThreaded() { omp_set_num_threads(before_); }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  int before_;
};

// Memory that a thread keeps between calls and that grows to the most it was asked for.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  template <typename T>
  T* get(size_t count) {
    size_t bytes = count * sizeof(T);
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(4096, size_);
      if (!data_) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Calls body(i) for i = 0..count-1, on the caller's thread and on as many of the pool's as are
// free, and returns when all are done; throws what the first failed call threw. The caller takes
// pieces like everybody else, so a pool whose threads all wait here can't lock up.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    std::mutex lock;
    std::exception_ptr error;
  };
  auto shared = std::make_shared<Shared>();
  // A thread that comes after the last piece was taken touches `shared` alone: body may be gone.
  auto work = [shared, count, &body] {
    SingleThreaded guard;
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; ++mine) {
      try {
        body(i);
      } catch (...) {
        std::lock_guard hold(shared->lock);
        if (!shared->error) shared->error = std::current_exception();
      }
    }
    if (mine && shared->done.fetch_add(mine) + mine == count) shared->done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  for (int64_t done; (done = shared->done.load()) < count;) shared->done.wait(done);
  if (shared->error) std::rethrow_exception(shared->error);
}

// The first of `count` arrays becomes the sum of all.
inline void add_up(xla::ffi::ThreadPool& pool, float* arrays, int64_t size, int64_t count) {
  const int64_t block = 1 << 15;
  parallel_for(pool, (size + block - 1) / block, [&](int64_t b) {
    const int64_t begin = b * block, end = std::min(begin + block, size);
    for (int64_t i = 1; i < count; ++i) {
      const float* __restrict more = arrays + i * size;
      float* __restrict sum = arrays;
      for (int64_t j = begin; j < end; ++j) sum[j] += more[j];
    }
  });
}

// run() with what it throws as the status that XLA reports.
template <typename Run>
xla::ffi::Error guarded(const Run& run) {
  try {
    run();
    return xla::ffi::Error::Success();
  } catch (const std::exception& error) {
    return xla::ffi::Error::Internal(std::string("diffjax accelerator: ") + error.what());
  }
}

}  // namespace diffjax
