#include "../kernels.h"
#include "device.cuh"

// One thread makes the masks of all stems at one point; neighbouring threads touch neighbouring points of each stem.
// Two passes over the stems, the second from the first cache level (a multiprocessor's 2048 threads hold 8 KB a stem).
// Bytes: stems (+ 1 with a mixture) reads and stems writes a point, from memory once. Bound by memory for powers 1 and
// 2 (which need no pow).

namespace pyunetsep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;  // several waves on the largest devices, and the set-up is shared by many points

enum class Power { kOne, kTwo, kAny };

template <Power kPower, typename T>
__device__ __forceinline__ T weight(T x, T power) {
  if constexpr (kPower == Power::kOne) return x;
  if constexpr (kPower == Power::kTwo) return x * x;
  return pow(x, power);
}

template <Power kPower, typename T>
__global__ void __launch_bounds__(kThreads) ratio_mask_kernel(const RatioMask<T> a) {
  const T share = a.epsilon / static_cast<T>(a.stems + (a.mixture ? 1 : 0));
  for (int64_t i = first_item(); i < a.points; i += item_stride()) {
    T total = 0, magnitude = 0;
    for (int64_t s = 0; s < a.stems; ++s) {
      const T stem = a.magnitudes[s * a.points + i];
      total += weight<kPower>(stem, a.power);
      magnitude += stem;
    }
    if (a.mixture) {
      const T rest = a.mixture[i] - magnitude;
      total += weight<kPower>(rest < 0 ? T(0) : rest, a.power);
    }
    total += a.epsilon;
    for (int64_t s = 0; s < a.stems; ++s) {
      const int64_t at = s * a.points + i;
      a.masks[at] = (weight<kPower>(a.magnitudes[at], a.power) + share) / total;
    }
  }
}

template <typename T>
void ratio_mask_any(const RatioMask<T>& a, Queue queue) {
  const auto kernel = a.power == 1   ? ratio_mask_kernel<Power::kOne, T>
                      : a.power == 2 ? ratio_mask_kernel<Power::kTwo, T>
                                     : ratio_mask_kernel<Power::kAny, T>;
  CUDA_LAUNCH(kernel, blocks_for(a.points, kThreads, kMaxBlocks), kThreads, 0, queue, a);
}

}  // namespace

void ratio_mask(const RatioMask<float>& args, Queue queue) { ratio_mask_any(args, queue); }
void ratio_mask(const RatioMask<double>& args, Queue queue) { ratio_mask_any(args, queue); }

}  // namespace pyunetsep::cuda
