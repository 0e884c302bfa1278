// As many multiply-adds as the processor can do, and nothing else: what every other kernel's speed is measured against.
#include "../kernels.h"
#include "parallel.h"
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

// Sums that do not wait for one another: enough for two multiply-adds a cycle of four to six cycles each, and few
// enough to stay in registers at every level.
static constexpr int kChains = 12;

int64_t multiply_adds(int64_t threads, int64_t rounds) {
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const Vec factor = broadcast(0.5f), addend = broadcast(1.0f);  // towards 2, so that no sum grows or vanishes
    for (int64_t thread = begin; thread < end; ++thread) {
      Vec sums[kChains];
      for (int chain = 0; chain < kChains; ++chain) sums[chain] = broadcast(static_cast<float>(chain));
      for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int chain = 0; chain < kChains; ++chain) sums[chain] = sums[chain] * factor + addend;
      }
      Vec total{};
      for (int chain = 0; chain < kChains; ++chain) total += sums[chain];
      [[maybe_unused]] volatile float kept = total[0];  // or the compiler would drop it all
    }
  });
  return 2 * kLanes * kChains * rounds * threads;
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
