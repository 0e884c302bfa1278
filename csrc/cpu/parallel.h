// Threads for the CPU kernels, which know no torch: csrc/parallel.cpp lends them ATen's pool, so that
// torch.set_num_threads holds and two libraries do not fight for the cores.
#pragma once
#include <cstdint>

namespace pyunetsep::cpu {

// A reference to a callable (begin, end) that lives at least as long as the call it is passed to.
class RangeFunction {
 public:
  template <typename F>
  RangeFunction(const F& f)  // NOLINT: implicit, so that a lambda can be passed
      : object_(&f),
        call_([](const void* object, int64_t begin, int64_t end) { (*static_cast<const F*>(object))(begin, end); }) {}

  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int64_t);
};

// Calls body on disjoint ranges that make up [begin, end), none shorter than grain but the last. A kernel's result must
// not depend on where the ranges are cut.
void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFunction body);

// Calls body(task, thread) for each task below tasks, in ascending order of their start, on at most `threads` threads
// numbered from 0. Who is free takes the next one, so a thread that is held up does not hold up the others.
template <typename Body>
static inline void parallel_tasks(int64_t tasks, int64_t threads, const Body& body) {
  int64_t next = 0;
  parallel_for(0, threads < tasks ? threads : tasks, 1, [&](int64_t begin, int64_t) {
    for (int64_t task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks;) body(task, begin);
  });
}

}  // namespace pyunetsep::cpu
