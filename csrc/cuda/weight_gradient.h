// What the kernels of weight gradients share: blocks leave sums of some pixels each, and one kernel gathers them,
// always in the same order.
#pragma once
#include "unet.h"

namespace pyunetsep::cuda {

constexpr int kTapRows = 5, kTapColumns = 5, kTaps = kTapRows * kTapColumns;

struct Gathering {
  const float* sums;  // [splits, 25, coarse, fine]
  int64_t splits, coarse, fine;
  int64_t coarse_channels, fine_channels;  // without what fills up
  float* gradient;                         // [coarse_channels, fine_channels, 25]
};
void gather(const Gathering& gathering, Queue queue);

}  // namespace pyunetsep::cuda
