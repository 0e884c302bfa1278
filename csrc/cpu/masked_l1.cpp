#include "../kernels.h"
#include "parallel.h"
#include "simd.h"

// The training's loss, mean |mask magnitude - target|, and its gradient: each one pass over the planes, without the
// differences and signs in between. Bound by memory.
//
// A task takes a stretch; its sum is of floats, and those of the stretches are added up in double precision, in their
// order, so the loss does not depend on how the work is shared.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kStretch = 8192;  // elements, a multiple of any vector's
constexpr int kAtOnce = 4;          // sums that need not wait for each other

// Calls body(at, lanes) for the vectors of a stretch; the last may have fewer elements.
template <typename Body>
void for_each_vector(const MaskedL1& a, int64_t stretch, const Body& body) {
  const int64_t end = min(a.size, (stretch + 1) * kStretch);
  for (int64_t at = stretch * kStretch; at < end; at += kLanes) body(at, min<int64_t>(kLanes, end - at));
}

}  // namespace

int64_t masked_l1_scratch_size(int64_t size) { return ceil_div(size, kStretch); }

double masked_l1(const MaskedL1& a) {
  const int64_t stretches = masked_l1_scratch_size(a.size);
  parallel_tasks(stretches, a.threads, [&](int64_t stretch, int64_t) {
    Vec sums[kAtOnce] = {};
    for_each_vector(a, stretch, [&](int64_t at, int64_t lanes) {
      const Vec apart =
          load_some(a.mask + at, lanes) * load_some(a.magnitude + at, lanes) - load_some(a.target + at, lanes);
      sums[at / kLanes % kAtOnce] += max(apart, -apart);
    });
    a.scratch[stretch] = 0;
    for (const Vec& sum : sums) {
      for (int lane = 0; lane < kLanes; ++lane) a.scratch[stretch] += static_cast<double>(sum[lane]);
    }
  });
  double sum = 0;
  for (int64_t stretch = 0; stretch < stretches; ++stretch) sum += a.scratch[stretch];
  return sum / static_cast<double>(a.size);
}

void masked_l1_gradient(const MaskedL1& a, float factor, float* of_mask) {
  parallel_tasks(masked_l1_scratch_size(a.size), a.threads, [&](int64_t stretch, int64_t) {
    for_each_vector(a, stretch, [&](int64_t at, int64_t lanes) {
      const Vec magnitude = load_some(a.magnitude + at, lanes);
      const Vec apart = load_some(a.mask + at, lanes) * magnitude - load_some(a.target + at, lanes);
      const Vec size = magnitude * factor;
      const Vec gradient = apart > Vec{} ? size : apart < Vec{} ? -size : Vec{};
      if (lanes == kLanes) return store(of_mask + at, gradient);
      for (int64_t i = 0; i < lanes; ++i) of_mask[at + i] = gradient[i];
    });
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
