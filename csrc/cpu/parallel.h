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

}  // namespace pyunetsep::cpu
