// The CPU kernels' threads, from ATen's pool. A file of its own because the loop is inline in ATen's header and this is
// the only code that has to be compiled with OpenMP.
#include <ATen/Parallel.h>

#include "cpu/parallel.h"

namespace pyunetsep::cpu {

void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFunction body) {
  at::parallel_for(begin, end, grain, body);
}

}  // namespace pyunetsep::cpu
