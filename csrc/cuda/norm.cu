#include <algorithm>

#include "reading.cuh"
#include "statistics.cuh"

// Batch norm in training, with the activation and the dropout around it, on maps [pixels, channels]: statistics, what
// becomes of the map, and the way back. Each is one pass over the maps, the way back two. Bound by memory. A network
// takes the way back alone from here: its convolutions leave the statistics and read maps through the norm, which the
// first two, for any map, are the measure of.
//
// A thread owns 16 bytes of neighbouring channels, and takes every `lanes`-th pixel of its block's stretch. Sums are
// joined in the same order each time: within a thread, then the threads of a block, then the blocks, in double
// precision.

namespace pyunetsep::cuda {
namespace {

constexpr int kNormThreads = 256;
constexpr int kGroupVectors = 64;                      // of 16 bytes, that a block works on side by side
constexpr int kAtOnce = 4;                             // pixels whose mean a thread takes before it joins others
constexpr int64_t kMaxBlocks = 1024, kMinPixels = 64;  // of a pass with sums; of a block

template <typename T>
constexpr int kCount = static_cast<int>(16 / sizeof(T));  // channels of a vector

// Where a thread works.
template <typename T>
struct Place {
  int vectors, lanes, lane, channel;
  int64_t first, last;  // pixels of the block
  bool works;

  __device__ __forceinline__ explicit Place(const NormRun& a) {
    const int all = static_cast<int>(a.channels) / kCount<T>, before = blockIdx.y * kGroupVectors;
    vectors = min(kGroupVectors, all - before);
    lanes = kNormThreads / vectors;
    lane = threadIdx.x / vectors;
    works = lane < lanes;
    channel = (before + threadIdx.x % vectors) * kCount<T>;
    first = a.pixels * blockIdx.x / gridDim.x;
    last = a.pixels * (blockIdx.x + 1) / gridDim.x;
  }
};

__device__ __forceinline__ float activation_gradient(float x, float slope) { return x > 0.0f ? 1.0f : slope; }

__device__ __forceinline__ PixelPlace place_of(const NormRun& a, int64_t pixel) {
  const int64_t of_image = a.pixels / a.batch;
  return {static_cast<int>(pixel / of_image), static_cast<uint32_t>(pixel % of_image), static_cast<uint32_t>(of_image)};
}

// One block's statistics of its channels, see PartStatistics.
template <typename T>
__global__ void __launch_bounds__(kNormThreads, 2) statistics_kernel(const NormRun a, float* moments, float* counts) {
  SHARED_MEMORY(shared);
  auto* const of_threads = reinterpret_cast<Moments*>(shared);  // [kCount, threads]
  const Place<T> at(a);
  Moments own[kCount<T>] = {};
  float count = 0.0f;
  if (at.works) {
    const T* const x = static_cast<const T*>(a.x) + at.channel;
    for (int64_t pixel = at.first + at.lane; pixel < at.last; pixel += int64_t{kAtOnce} * at.lanes) {
      float values[kAtOnce][kCount<T>];
      int taken = 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t next = pixel + int64_t{i} * at.lanes;
        if (next >= at.last) continue;
        load_channels<T>(x + next * a.channels, values[i]);
        taken = i + 1;
      }
#pragma unroll
      for (int c = 0; c < kCount<T>; ++c) {
        Moments some{};
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (i < taken) some.mean += activated(values[i][c], a.reading.inner_slope);
        }
        some.mean /= static_cast<float>(taken);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (i >= taken) continue;
          const float distance = activated(values[i][c], a.reading.inner_slope) - some.mean;
          some.squares += distance * distance;
        }
        Joining(count, static_cast<float>(taken))(own[c], some);
      }
      count += static_cast<float>(taken);
    }
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) of_threads[c * kNormThreads + threadIdx.x] = own[c];
  }
  __syncthreads();
  if (at.lane != 0) return;
#pragma unroll
  for (int c = 0; c < kCount<T>; ++c) {
    float before = count;
    for (int lane = 1; lane < at.lanes; ++lane) {
      // pixels of that lane: every lanes-th from first + lane on
      const int64_t pixels = (at.last - at.first - lane + at.lanes - 1) / at.lanes;
      Joining(before, static_cast<float>(pixels))(own[c],
                                                  of_threads[c * kNormThreads + lane * at.vectors + threadIdx.x]);
      before += static_cast<float>(pixels);
    }
    store_moments(moments, blockIdx.x, a.channels, at.channel + c, own[c]);
  }
  if (threadIdx.x == 0 && blockIdx.y == 0) counts[blockIdx.x] = static_cast<float>(at.last - at.first);
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads) apply_kernel(const NormRun a, void* y) {
  const Place<T> at(a);
  if (!at.works) return;
  const PieceReader<T> reader(a.reading, at.channel);
  for (int64_t pixel = at.first + at.lane; pixel < at.last; pixel += at.lanes) {
    float x[kCount<T>];
    load_channels<T>(static_cast<const T*>(a.x) + pixel * a.channels + at.channel, x);
    reader(a.reading, a.reading.dropout.seeds ? place_of(a, pixel) : PixelPlace{}, x);
    store_channels(static_cast<T*>(y) + pixel * a.channels + at.channel, x, INFINITY);
  }
}

// Gradients of z and of p, and p's distance from its mean in deviations: of one pixel of a thread's channels.
template <typename T>
class Backward {
 public:
  __device__ __forceinline__ Backward(const NormRun& a, const NormGradientRun& to, int channel)
      : a_(a),
        x_(static_cast<const T*>(a.x) + channel),
        gradient_(static_cast<const T*>(to.gradient) + channel),
        stride_(to.gradient_stride),
        reader_(a.reading, channel) {}

  __device__ __forceinline__ void operator()(int64_t pixel, float (&of_z)[kCount<T>], float (&normal)[kCount<T>],
                                             float (&inner)[kCount<T>]) const {
    const Reading& reading = a_.reading;
    const PixelPlace at = reading.dropout.seeds ? place_of(a_, pixel) : PixelPlace{};
    float x[kCount<T>];
    load_channels<T>(x_ + pixel * a_.channels, x);
    load_channels<T>(gradient_ + pixel * stride_, of_z);
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) {
      const float distance = reader_.distance(reading, x[c], c);
      normal[c] = distance * reader_.inverse_deviation(c);
      inner[c] = activation_gradient(x[c], reading.inner_slope);
      of_z[c] *= activation_gradient(reader_.normalised(distance, c), reading.slope);
      if (reading.dropout.seeds) of_z[c] *= reader_.kept(reading, at, c);
    }
  }

  __device__ __forceinline__ float scale(int c) const { return reader_.scale(c); }

 private:
  const NormRun& a_;
  const T *x_, *gradient_;
  int64_t stride_;
  PieceReader<T> reader_;
};

// One block's sums for the gradients of its channels: [blocks, channels, bias and weight].
template <typename T>
__global__ void __launch_bounds__(kNormThreads) gradient_sums_kernel(const NormRun a, const NormGradientRun to) {
  SHARED_MEMORY(shared);
  auto* const of_threads = reinterpret_cast<float*>(shared);  // [kCount, 2, threads]
  const Place<T> at(a);
  float sums[kCount<T>][2] = {};
  if (at.works) {
    const Backward<T> backward(a, to, at.channel);
    for (int64_t pixel = at.first + at.lane; pixel < at.last; pixel += at.lanes) {
      float of_z[kCount<T>], normal[kCount<T>], inner[kCount<T>];
      backward(pixel, of_z, normal, inner);
#pragma unroll
      for (int c = 0; c < kCount<T>; ++c) {
        sums[c][0] += of_z[c];
        sums[c][1] += of_z[c] * normal[c];
      }
    }
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) {
      of_threads[2 * c * kNormThreads + threadIdx.x] = sums[c][0];
      of_threads[(2 * c + 1) * kNormThreads + threadIdx.x] = sums[c][1];
    }
  }
  __syncthreads();
  if (at.lane != 0) return;
#pragma unroll
  for (int c = 0; c < kCount<T>; ++c) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = sums[c][i];
      for (int lane = 1; lane < at.lanes; ++lane) {
        sum += of_threads[(2 * c + i) * kNormThreads + lane * at.vectors + threadIdx.x];
      }
      to.parts[(int64_t{blockIdx.x} * a.channels + at.channel + c) * 2 + i] = sum;
    }
  }
}

__global__ void __launch_bounds__(kJoinThreads)
    join_gradients_kernel(const NormRun a, const NormGradientRun to, int64_t blocks) {
  SHARED_MEMORY(shared);
  auto* const sums = reinterpret_cast<double*>(shared);  // [kJoinRows, kJoinChannels]
  const int64_t channel = int64_t{blockIdx.x} * kJoinChannels + threadIdx.x % kJoinChannels;
  double bias = 0, weight = 0;
  for (int64_t block = threadIdx.x / kJoinChannels; block < blocks; block += kJoinRows) {
    bias += to.parts[(block * a.channels + channel) * 2];
    weight += to.parts[(block * a.channels + channel) * 2 + 1];
  }
  bias = sum_of_rows(bias, sums);
  weight = sum_of_rows(weight, sums);
  if (threadIdx.x >= kJoinChannels) return;
  to.of_bias[channel] = static_cast<float>(bias);
  to.of_weight[channel] = static_cast<float>(weight);
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads) gradient_kernel(const NormRun a, const NormGradientRun to) {
  const Place<T> at(a);
  if (!at.works) return;
  const Backward<T> backward(a, to, at.channel);
  float of_bias[kCount<T>], of_weight[kCount<T>];
  load_floats(to.of_bias + at.channel, of_bias);
  load_floats(to.of_weight + at.channel, of_weight);
  const float share = 1.0f / static_cast<float>(a.pixels);
  for (int64_t pixel = at.first + at.lane; pixel < at.last; pixel += at.lanes) {
    float of_z[kCount<T>], normal[kCount<T>], inner[kCount<T>];
    backward(pixel, of_z, normal, inner);
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) {
      const float rest = of_z[c] - share * of_bias[c] - normal[c] * (share * of_weight[c]);
      of_z[c] = backward.scale(c) * rest * inner[c];
    }
    store_channels(static_cast<T*>(to.of_x) + pixel * a.channels + at.channel, of_z, INFINITY);
  }
}

dim3 grid_of(const NormRun& run, int64_t most) {
  const int64_t vectors = run.channels * size_of(run.element) / 16;
  return {static_cast<unsigned>(std::clamp<int64_t>(run.pixels / kMinPixels, 1, most)),
          static_cast<unsigned>(divided_up(vectors, kGroupVectors))};
}

}  // namespace

int64_t norm_parts_floats(const NormRun& run) {
  return PartStatistics::floats(grid_of(run, kMaxBlocks).x, run.channels);
}

void norm_statistics(const NormRun& run, const StatisticsRun& to, Queue queue) {
  const dim3 grid = grid_of(run, kMaxBlocks);
  const PartStatistics parts(to.parts, grid.x, run.channels);
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    constexpr int kBytes = kCount<T> * kNormThreads * static_cast<int>(sizeof(Moments));
    CUDA_LAUNCH((statistics_kernel<T>), grid, kNormThreads, kBytes, queue, run, parts.moments, parts.counts);
  });
  join_statistics(parts, to, queue);
}

void norm_apply(const NormRun& run, void* y, Queue queue) {
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    CUDA_LAUNCH((apply_kernel<T>), grid_of(run, 1 << 16), kNormThreads, 0, queue, run, y);
  });
}

void norm_sums(const NormRun& run, const NormGradientRun& to, Queue queue) {
  const dim3 grid = grid_of(run, kMaxBlocks);
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    constexpr int kBytes = 2 * kCount<T> * kNormThreads * static_cast<int>(sizeof(float));
    CUDA_LAUNCH((gradient_sums_kernel<T>), grid, kNormThreads, kBytes, queue, run, to);
  });
  CUDA_LAUNCH(join_gradients_kernel, static_cast<unsigned>(run.channels / kJoinChannels), kJoinThreads, kJoinBytes,
              queue, run, to, int64_t{grid.x});
}

void norm_gradient(const NormRun& run, const NormGradientRun& to, Queue queue) {
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    CUDA_LAUNCH((gradient_kernel<T>), grid_of(run, 1 << 16), kNormThreads, 0, queue, run, to);
  });
}

}  // namespace pyunetsep::cuda
