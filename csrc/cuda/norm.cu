#include <algorithm>

#include "channels.cuh"

// Batch norm in training, with the activation and the dropout around it, on maps [pixels, channels]: statistics, what
// becomes of the map, and the way back. Each is one pass over the maps, the way back two. Bound by memory.
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

// A thread's channels of some parameters.
template <typename T>
struct Parameters {
  float of[kCount<T>];
  __device__ __forceinline__ Parameters(const float* values, int channel) { load_floats(values + channel, of); }
};

// What a thread's channels are normalised by.
template <typename T>
struct Norm {
  Parameters<T> mean, bias;
  float inverse_deviation[kCount<T>], scale[kCount<T>];

  __device__ __forceinline__ Norm(const NormRun& a, int channel) : mean(a.mean, channel), bias(a.bias, channel) {
    const Parameters<T> variance(a.variance, channel), weight(a.weight, channel);
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) {
      inverse_deviation[c] = 1.0f / sqrtf(variance.of[c] + a.epsilon);
      scale[c] = weight.of[c] * inverse_deviation[c];
    }
  }
  __device__ __forceinline__ float of(float distance, int c) const { return distance * scale[c] + bias.of[c]; }
};

__device__ __forceinline__ float activated(float x, float slope) { return x > 0.0f ? x : slope * x; }
__device__ __forceinline__ float activation_gradient(float x, float slope) { return x > 0.0f ? 1.0f : slope; }

__device__ __forceinline__ uint32_t mixed(uint32_t number, int shift, uint32_t factor) {
  return (number ^ number >> shift) * factor;
}

// What dropout multiplies an element by; pyunetsep/dropout.py has the same hash.
__device__ __forceinline__ float dropping(const NormRun& a, int64_t pixel, int channel) {
  const int64_t of_image = a.pixels / a.batch, image = pixel / of_image;
  const auto place = static_cast<uint32_t>(channel * of_image + pixel % of_image);
  uint32_t number = mixed(place, 17, 0xed5ad4bbu) + static_cast<uint32_t>(a.dropout.seeds[image]);
  number = mixed(mixed(number, 11, 0xac4c1b51u), 15, 0x31848babu);
  return static_cast<int32_t>(number) >= a.dropout.threshold ? a.dropout.factor : 0.0f;
}

// Mean and squared distances from it, of so many values: joined as Chan, Golub and LeVeque do.
struct Moments {
  float mean, squares;
};
__device__ __forceinline__ void join(Moments& to, float count, const Moments& other, float other_count) {
  const float all = count + other_count, distance = other.mean - to.mean;
  to.mean += distance * (other_count / all);
  to.squares += other.squares + distance * distance * (count * other_count / all);
}

// One block's statistics of its channels: [blocks, channels, mean and squares].
template <typename T>
__global__ void __launch_bounds__(kNormThreads, 2) statistics_kernel(const NormRun a, float* parts) {
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
          if (i < taken) some.mean += activated(values[i][c], a.inner_slope);
        }
        some.mean /= static_cast<float>(taken);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (i >= taken) continue;
          const float distance = activated(values[i][c], a.inner_slope) - some.mean;
          some.squares += distance * distance;
        }
        join(own[c], count, some, static_cast<float>(taken));
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
      if (pixels <= 0) break;
      join(own[c], before, of_threads[c * kNormThreads + lane * at.vectors + threadIdx.x], static_cast<float>(pixels));
      before += static_cast<float>(pixels);
    }
    float* const to = parts + (int64_t{blockIdx.x} * a.channels + at.channel + c) * 2;
    to[0] = own[c].mean;
    to[1] = own[c].squares;
  }
}

// The map's statistics from those of `blocks` blocks, and what follows from them.
__global__ void join_statistics_kernel(const NormRun a, const NormStatisticsRun to, int64_t blocks) {
  for (int64_t channel = first_item(); channel < a.channels; channel += item_stride()) {
    double mean = 0, squares = 0, count = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const auto pixels = static_cast<double>(a.pixels * (block + 1) / blocks - a.pixels * block / blocks);
      const float* from = to.parts + (block * a.channels + channel) * 2;
      const double distance = from[0] - mean, all = count + pixels;
      mean += distance * pixels / all;
      squares += from[1] + distance * distance * count * pixels / all;
      count = all;
    }
    to.mean[channel] = static_cast<float>(mean);
    to.variance[channel] = static_cast<float>(squares / count);
  }
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads) apply_kernel(const NormRun a, void* y) {
  const Place<T> at(a);
  if (!at.works) return;
  const Norm<T> norm(a, at.channel);
  for (int64_t pixel = at.first + at.lane; pixel < at.last; pixel += at.lanes) {
    float x[kCount<T>];
    load_channels<T>(static_cast<const T*>(a.x) + pixel * a.channels + at.channel, x);
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) {
      x[c] = activated(norm.of(activated(x[c], a.inner_slope) - norm.mean.of[c], c), a.slope);
      if (a.dropout.seeds) x[c] *= dropping(a, pixel, at.channel + c);
    }
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
        channel_(channel),
        norm_(a, channel) {}

  __device__ __forceinline__ void operator()(int64_t pixel, float (&of_z)[kCount<T>], float (&normal)[kCount<T>],
                                             float (&inner)[kCount<T>]) const {
    float x[kCount<T>];
    load_channels<T>(x_ + pixel * a_.channels, x);
    load_channels<T>(gradient_ + pixel * stride_, of_z);
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) {
      const float distance = activated(x[c], a_.inner_slope) - norm_.mean.of[c];
      normal[c] = distance * norm_.inverse_deviation[c];
      inner[c] = activation_gradient(x[c], a_.inner_slope);
      of_z[c] *= activation_gradient(norm_.of(distance, c), a_.slope);
      if (a_.dropout.seeds) of_z[c] *= dropping(a_, pixel, channel_ + c);
    }
  }

  __device__ __forceinline__ const Norm<T>& norm() const { return norm_; }

 private:
  const NormRun& a_;
  const T *x_, *gradient_;
  int64_t stride_;
  int channel_;
  Norm<T> norm_;
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

__global__ void join_gradients_kernel(const NormRun a, const NormGradientRun to, int64_t blocks) {
  for (int64_t channel = first_item(); channel < a.channels; channel += item_stride()) {
    double bias = 0, weight = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      bias += to.parts[(block * a.channels + channel) * 2];
      weight += to.parts[(block * a.channels + channel) * 2 + 1];
    }
    to.of_bias[channel] = static_cast<float>(bias);
    to.of_weight[channel] = static_cast<float>(weight);
  }
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads) gradient_kernel(const NormRun a, const NormGradientRun to) {
  const Place<T> at(a);
  if (!at.works) return;
  const Backward<T> backward(a, to, at.channel);
  const Parameters<T> of_bias(to.of_bias, at.channel), of_weight(to.of_weight, at.channel);
  const float share = 1.0f / static_cast<float>(a.pixels);
  for (int64_t pixel = at.first + at.lane; pixel < at.last; pixel += at.lanes) {
    float of_z[kCount<T>], normal[kCount<T>], inner[kCount<T>];
    backward(pixel, of_z, normal, inner);
#pragma unroll
    for (int c = 0; c < kCount<T>; ++c) {
      const float rest = of_z[c] - share * of_bias.of[c] - normal[c] * (share * of_weight.of[c]);
      of_z[c] = backward.norm().scale[c] * rest * inner[c];
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

int64_t norm_parts_floats(const NormRun& run) { return int64_t{grid_of(run, kMaxBlocks).x} * run.channels * 2; }

void norm_statistics(const NormRun& run, const NormStatisticsRun& to, Queue queue) {
  const dim3 grid = grid_of(run, kMaxBlocks);
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    constexpr int kBytes = kCount<T> * kNormThreads * static_cast<int>(sizeof(Moments));
    CUDA_LAUNCH((statistics_kernel<T>), grid, kNormThreads, kBytes, queue, run, to.parts);
  });
  CUDA_LAUNCH(join_statistics_kernel, blocks_for(run.channels, 32, 1024), 32, 0, queue, run, to, int64_t{grid.x});
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
  CUDA_LAUNCH(join_gradients_kernel, blocks_for(run.channels, 32, 1024), 32, 0, queue, run, to, int64_t{grid.x});
}

void norm_gradient(const NormRun& run, const NormGradientRun& to, Queue queue) {
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    CUDA_LAUNCH((gradient_kernel<T>), grid_of(run, 1 << 16), kNormThreads, 0, queue, run, to);
  });
}

}  // namespace pyunetsep::cuda
