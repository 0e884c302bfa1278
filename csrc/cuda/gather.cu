#include "device.cuh"
#include "weight_gradient.h"

namespace pyunetsep::cuda {
namespace {

constexpr int kGatherThreads = 256;

__global__ void gather_kernel(const Gathering a) {
  for (int64_t i = first_item(); i < kTaps * a.coarse_channels * a.fine_channels; i += item_stride()) {
    const int64_t f = i % a.fine_channels, c = i / a.fine_channels % a.coarse_channels,
                  tap = i / a.fine_channels / a.coarse_channels;
    const float* from = a.sums + (tap * a.coarse + c) * a.fine + f;
    float sum = 0.0f;
    for (int64_t split = 0; split < a.splits; ++split) sum += from[split * kTaps * a.coarse * a.fine];
    a.gradient[(c * a.fine_channels + f) * kTaps + tap] = sum;
  }
}

}  // namespace

void gather(const Gathering& gathering, Queue queue) {
  const int64_t sums = kTaps * gathering.coarse_channels * gathering.fine_channels;
  CUDA_LAUNCH(gather_kernel, blocks_for(sums, kGatherThreads, 4096), kGatherThreads, 0, queue, gathering);
}

}  // namespace pyunetsep::cuda
