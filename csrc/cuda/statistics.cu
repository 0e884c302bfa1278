#include "statistics.cuh"

// A block joins the parts of 16 channels, a thread every 32nd part of one: the mean first and then the distances from
// it, in double precision and always in the same order.

namespace pyunetsep::cuda {
namespace {

constexpr int kChannels = static_cast<int>(kChannelUnit), kRows = 32, kJoinThreads = kChannels * kRows;

// The sum over the block's threads of one channel, for each of them.
__device__ __forceinline__ double sum_of_rows(double own, double* sums) {
  __syncthreads();  // all have read what was there
  sums[threadIdx.x] = own;
  __syncthreads();
  double sum = 0;
  for (int row = 0; row < kRows; ++row) sum += sums[row * kChannels + threadIdx.x % kChannels];
  return sum;
}

__global__ void __launch_bounds__(kJoinThreads) join_kernel(const PartStatistics from, const StatisticsRun to) {
  SHARED_MEMORY(shared);
  auto* const sums = reinterpret_cast<double*>(shared);  // [kRows, kChannels]
  const int64_t channel = int64_t{blockIdx.x} * kChannels + threadIdx.x % kChannels;
  const auto moments = [&](int64_t part) {
    const uint2 two = load8(from.moments + (part * from.channels + channel) * 2);
    return Moments{__uint_as_float(two.x), __uint_as_float(two.y)};
  };
  double count = 0, sum = 0;
  for (int64_t part = threadIdx.x / kChannels; part < from.parts; part += kRows) {
    count += from.counts[part];
    sum += static_cast<double>(from.counts[part]) * moments(part).mean;
  }
  count = sum_of_rows(count, sums);
  const double mean = sum_of_rows(sum, sums) / count;
  double squares = 0;
  for (int64_t part = threadIdx.x / kChannels; part < from.parts; part += kRows) {
    const Moments of_part = moments(part);
    const double distance = of_part.mean - mean;
    squares += of_part.squares + from.counts[part] * distance * distance;
  }
  squares = sum_of_rows(squares, sums);
  if (threadIdx.x >= kChannels) return;
  to.mean[channel] = static_cast<float>(mean);
  to.variance[channel] = static_cast<float>(squares / count);
}

}  // namespace

void join_statistics(const PartStatistics& from, const StatisticsRun& to, Queue queue) {
  constexpr int kBytes = kJoinThreads * static_cast<int>(sizeof(double));
  CUDA_LAUNCH(join_kernel, static_cast<unsigned>(from.channels / kChannels), kJoinThreads, kBytes, queue, from, to);
}

}  // namespace pyunetsep::cuda
