#include "statistics.cuh"

// A block joins parts of 16 channels, a thread every 32nd part of one: the mean first and then the distances from it,
// in double precision and always in the same order.

namespace pyunetsep::cuda {
namespace {

// Joins parts to as many stretches as there are rows of blocks, behind the parts; or all to the map's statistics.
__global__ void __launch_bounds__(kJoinThreads)
    join_kernel(const PartStatistics from, int64_t first_part, int64_t parts, bool to_stretches, StatisticsRun to) {
  SHARED_MEMORY(shared);
  auto* const sums = reinterpret_cast<double*>(shared);  // [kJoinRows, kJoinChannels]
  const int64_t channel = int64_t{blockIdx.x} * kJoinChannels + threadIdx.x % kJoinChannels;
  const int64_t first = first_part + parts * blockIdx.y / gridDim.y + threadIdx.x / kJoinChannels;
  const int64_t last = first_part + parts * (blockIdx.y + 1) / gridDim.y;
  const auto moments = [&](int64_t part) {
    const uint2 two = load8(from.moments + (part * from.channels + channel) * 2);
    return Moments{__uint_as_float(two.x), __uint_as_float(two.y)};
  };
  double count = 0, sum = 0;
  for (int64_t part = first; part < last; part += kJoinRows) {
    count += from.counts[part];
    sum += static_cast<double>(from.counts[part]) * moments(part).mean;
  }
  count = sum_of_rows(count, sums);
  const double mean = sum_of_rows(sum, sums) / count;
  double squares = 0;
  for (int64_t part = first; part < last; part += kJoinRows) {
    const Moments of_part = moments(part);
    const double distance = of_part.mean - mean;
    squares += of_part.squares + from.counts[part] * distance * distance;
  }
  squares = sum_of_rows(squares, sums);
  if (threadIdx.x >= kJoinChannels) return;
  if (to_stretches) {
    const int64_t stretch = from.parts + blockIdx.y;
    const Moments joined{static_cast<float>(mean), static_cast<float>(squares)};
    store_moments(from.moments, stretch, from.channels, channel, joined);
    if (channel == 0) from.counts[stretch] = static_cast<float>(count);
  } else {
    to.mean[channel] = static_cast<float>(mean);
    to.variance[channel] = static_cast<float>(squares / count);
  }
}

}  // namespace

void join_statistics(const PartStatistics& from, const StatisticsRun& to, Queue queue) {
  const auto blocks = static_cast<unsigned>(from.channels / kJoinChannels);
  const int64_t stretches = Stretches(from.parts).count;
  if (stretches > 0) {
    const dim3 grid(blocks, static_cast<unsigned>(stretches));
    CUDA_LAUNCH(join_kernel, grid, kJoinThreads, kJoinBytes, queue, from, int64_t{0}, from.parts, true, to);
  }
  CUDA_LAUNCH(join_kernel, blocks, kJoinThreads, kJoinBytes, queue, from, stretches > 0 ? from.parts : 0,
              stretches > 0 ? stretches : from.parts, false, to);
}

}  // namespace pyunetsep::cuda
