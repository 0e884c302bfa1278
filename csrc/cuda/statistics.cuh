// Statistics in one pass, that do not lose small deviations from a large mean: those of a few values are taken from
// their own mean, and then joined as Chan, Golub and LeVeque do.
#pragma once
#include "device.cuh"
#include "statistics.h"

namespace pyunetsep::cuda {

// Mean and squared distances from it.
struct Moments {
  float mean, squares;
};

// Leaves a channel's among those of its part, see PartStatistics.
__device__ __forceinline__ void store_moments(float* moments, int64_t part, int64_t channels, int64_t channel,
                                              const Moments& x) {
  store8(moments + (part * channels + channel) * 2, make_uint2(__float_as_uint(x.mean), __float_as_uint(x.squares)));
}

// How the moments of so many values are joined by those of others.
struct Joining {
  float share, weight;
  __device__ __forceinline__ Joining(float count, float others)
      : share(others / fmaxf(count + others, 1.0f)), weight(count * share) {}

  __device__ __forceinline__ void operator()(Moments& to, const Moments& other) const {
    const float distance = other.mean - to.mean;
    to.mean += distance * share;
    to.squares += other.squares + distance * distance * weight;
  }
};

// How kernels cut the joining of blocks' sums: a thread takes every kJoinRows-th part of one of the block's channels.
constexpr int kJoinChannels = static_cast<int>(kChannelUnit), kJoinRows = 32, kJoinThreads = kJoinChannels * kJoinRows;
constexpr int kJoinBytes = kJoinThreads * static_cast<int>(sizeof(double));  // of shared memory

// The sum of one channel over the block's threads, for each of them.
__device__ __forceinline__ double sum_of_rows(double own, double* sums) {
  __syncthreads();  // all have read what was there
  sums[threadIdx.x] = own;
  __syncthreads();
  double sum = 0;
  for (int row = 0; row < kJoinRows; ++row) sum += sums[row * kJoinChannels + threadIdx.x % kJoinChannels];
  return sum;
}

}  // namespace pyunetsep::cuda
