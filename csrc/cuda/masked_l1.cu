#include "device.cuh"
#include "unet.h"

// The training's loss, mean |mask magnitude - target|, and its gradient, each one pass over the planes, without the
// differences and signs in between. Bound by memory. Sums are joined in the same order each time: within a thread, then
// the threads of a block, then the blocks, in double precision.

namespace pyunetsep::cuda {
namespace {

constexpr int kLossThreads = 256;
constexpr int64_t kMaxBlocks = 1024;

// The sum over the block's threads, for the first of them.
__device__ __forceinline__ double sum_of_block(double own, double* sums) {
  sums[threadIdx.x] = own;
  for (unsigned half = kLossThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[0];
}

__global__ void __launch_bounds__(kLossThreads) loss_kernel(const MaskedL1Run a) {
  SHARED_MEMORY(shared);
  float sum = 0.0f;
  for (int64_t i = first_item(); i < a.size; i += item_stride()) sum += fabsf(a.mask[i] * a.magnitude[i] - a.target[i]);
  const double all = sum_of_block(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) a.parts[blockIdx.x] = all;
}

__global__ void __launch_bounds__(kLossThreads) join_loss_kernel(const MaskedL1Run a, int64_t parts) {
  SHARED_MEMORY(shared);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kLossThreads) sum += a.parts[i];
  const double all = sum_of_block(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) *a.loss = static_cast<float>(all / static_cast<double>(a.size));
}

__global__ void __launch_bounds__(kLossThreads)
    loss_gradient_kernel(const MaskedL1Run a, const float* of_loss, float* of_mask) {
  const float factor = *of_loss / static_cast<float>(a.size);
  for (int64_t i = first_item(); i < a.size; i += item_stride()) {
    const float magnitude = a.magnitude[i], apart = a.mask[i] * magnitude - a.target[i];
    of_mask[i] = apart > 0.0f ? magnitude * factor : apart < 0.0f ? -magnitude * factor : 0.0f;
  }
}

constexpr int kSumBytes = kLossThreads * static_cast<int>(sizeof(double));

}  // namespace

int64_t masked_l1_parts(int64_t size) { return blocks_for(size, kLossThreads, kMaxBlocks); }

void masked_l1(const MaskedL1Run& run, Queue queue) {
  const int64_t parts = masked_l1_parts(run.size);
  CUDA_LAUNCH(loss_kernel, static_cast<unsigned>(parts), kLossThreads, kSumBytes, queue, run);
  CUDA_LAUNCH(join_loss_kernel, 1, kLossThreads, kSumBytes, queue, run, parts);
}

void masked_l1_gradient(const MaskedL1Run& run, const float* of_loss, float* of_mask, Queue queue) {
  CUDA_LAUNCH(loss_gradient_kernel, blocks_for(run.size, kLossThreads, 1 << 16), kLossThreads, 0, queue, run, of_loss,
              of_mask);
}

}  // namespace pyunetsep::cuda
