#include <algorithm>
#include <stdexcept>

#include "reading.cuh"
#include "statistics.cuh"

// One block makes 8 x 32 pixels of an image's output for 16 channels; one thread two of the pixels, four rows apart, so
// that each weight from shared memory serves twice. The input's patch lies in shared memory, one channel at a time, its
// columns split into even and odd ones: neighbouring pixels read neighbouring words. Bytes: the patch in floats, once a
// run of 16 channels and network (from the second cache level but for the first), and the output. Bound by memory for
// 16-bit elements if there is one input channel, else by multiply-adds.

namespace pyunetsep::cuda {
namespace {

constexpr int kColumns = 32, kRows = 8, kPixelRows = 2;  // of a tile; a thread's pixels
constexpr int kPatchRows = 2 * kRows + 3, kPatchColumns = 2 * kColumns + 3, kPitch = kColumns + 2;
constexpr int kTaps = 25, kChannels = static_cast<int>(kChannelUnit);

constexpr int kPixels = kRows * kColumns, kLoadedFloats = kPatchRows * 2 * kPitch + kTaps * kChannels;
constexpr int kGroups = kThreads / kChannels, kPixelPitch = kChannels + 1;  // neighbours lie in different banks
constexpr int kStatisticsFloats = kPixels * kPixelPitch + kThreads * 3;

// Where a block leaves its statistics, see PartStatistics.
struct Parts {
  float* moments;  // null: it does not
  float* counts;
  float inner_slope;
};

// Leaves the statistics of the tile's values, which threads have put into shared memory. A thread takes each eighth
// pixel of one channel.
__device__ __forceinline__ void leave_moments(const Parts& parts, int rows, int columns, int channel, int channels,
                                              float* values) {
  auto* const of_threads = reinterpret_cast<Moments*>(values + kPixels * kPixelPitch);
  auto* const counts = reinterpret_cast<float*>(of_threads + kThreads);
  const int k = threadIdx.x % kChannels, group = threadIdx.x / kChannels;
  const auto for_each_value = [&](auto body) {
    for (int pixel = group; pixel < kPixels; pixel += kGroups) {
      if (pixel / kColumns < rows && pixel % kColumns < columns) body(values[pixel * kPixelPitch + k]);
    }
  };
  Moments own{};
  float count = 0.0f;
  for_each_value([&](float x) { own.mean += x, ++count; });
  own.mean /= fmaxf(count, 1.0f);
  for_each_value([&](float x) { own.squares += (x - own.mean) * (x - own.mean); });
  of_threads[threadIdx.x] = own;
  counts[threadIdx.x] = count;
  __syncthreads();
  if (group != 0) return;
  for (int other = 1; other < kGroups; ++other) {
    Joining(count, counts[other * kChannels + k])(own, of_threads[other * kChannels + k]);
    count += counts[other * kChannels + k];
  }
  store_moments(parts.moments, blockIdx.x, channels, channel + k, own);
  if (channel + k == 0) parts.counts[blockIdx.x] = count;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    input_convolution_kernel(const InputConvolutionRun a, int tiles_across, int tiles_down, int pad,
                             int parameter_stride, float largest, const Parts parts) {
  SHARED_MEMORY(shared);
  float* const patch = reinterpret_cast<float*>(shared);   // [kPatchRows, 2, kPitch]
  float* const weights = patch + kPatchRows * 2 * kPitch;  // [kTaps, kChannels]
  const int channel_blocks = static_cast<int>(a.out_channels) / kChannels;
  const int network = blockIdx.y / channel_blocks, channel_block = blockIdx.y % channel_blocks;
  const int image = blockIdx.x / (tiles_across * tiles_down);
  const int first_row = blockIdx.x / tiles_across % tiles_down * kRows;
  const int first_column = blockIdx.x % tiles_across * kColumns;
  const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;  // of the tile; and row + 4

  if (a.arrivals && blockIdx.x == 0 && blockIdx.y == 0) {
    for (int i = threadIdx.x; i < kMaxArrivals; i += kThreads) a.arrivals[i] = 0;
  }

  float sums[kPixelRows][kChannels] = {};
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    __syncthreads();
    for (int i = threadIdx.x; i < kPatchRows * kPatchColumns; i += kThreads) {
      const int y = i / kPatchColumns, x = i % kPatchColumns;
      const int64_t in_row = 2 * first_row - pad + y, in_column = 2 * first_column - pad + x;
      const bool inside = 0 <= in_row && in_row < a.rows && 0 <= in_column && in_column < a.columns;
      patch[(y * 2 + x % 2) * kPitch + x / 2] =
          inside ? a.source[image * a.batch_stride + channel * a.channel_stride + in_row * a.row_stride + in_column]
                 : 0.0f;
    }
    const float* const from =
        a.weight + ((int64_t{network} * channel_blocks + channel_block) * a.channels + channel) * kTaps * kChannels;
    for (int i = threadIdx.x; i < kTaps * kChannels; i += kThreads) weights[i] = from[i];
    __syncthreads();
#pragma unroll
    for (int ky = 0; ky < 5; ++ky) {
#pragma unroll
      for (int kx = 0; kx < 5; ++kx) {
        float w[kChannels];
        load_floats(weights + (ky * 5 + kx) * kChannels, w);
#pragma unroll
        for (int p = 0; p < kPixelRows; ++p) {
          const int y = 2 * (row + p * kRows / kPixelRows) + ky;
          const float x = patch[(y * 2 + kx % 2) * kPitch + column + kx / 2];
#pragma unroll
          for (int k = 0; k < kChannels; ++k) sums[p][k] += x * w[k];
        }
      }
    }
  }

  const int channel = channel_block * kChannels;
  if (parts.moments) {
    __syncthreads();                                         // all have done with the patch
    float* const values = reinterpret_cast<float*>(shared);  // [kPixels, kPixelPitch]
#pragma unroll
    for (int p = 0; p < kPixelRows; ++p) {
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        values[((row + p * kRows / kPixelRows) * kColumns + column) * kPixelPitch + k] =
            activated(rounded<T>(sums[p][k] + a.bias[channel + k]), parts.inner_slope);
      }
    }
    __syncthreads();
    leave_moments(parts, static_cast<int>(a.out_rows) - first_row, static_cast<int>(a.out_columns) - first_column,
                  channel, static_cast<int>(a.out_channels), values);
  }
#pragma unroll
  for (int p = 0; p < kPixelRows; ++p) {
    const int out_row = first_row + row + p * kRows / kPixelRows, out_column = first_column + column;
    if (out_row >= a.out_rows || out_column >= a.out_columns) continue;
    const int64_t pixel = ((int64_t{network} * a.batch + image) * a.out_rows + out_row) * a.out_columns + out_column;
    T* const target = static_cast<T*>(a.target) + pixel * a.out_channels + channel;
#pragma unroll
    for (int first = 0; first < kChannels; first += 8) {
      float x[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float z = sums[p][first + k] + a.bias[network * parameter_stride + channel + first + k];
        x[k] = z > 0.0f ? z : z * a.slope;
      }
      store_channels(target + first, x, largest);
    }
  }
}

int64_t tiles_of(const InputConvolutionRun& run) {
  return divided_up(run.out_columns, kColumns) * divided_up(run.out_rows, kRows) * run.batch;
}

}  // namespace

int64_t input_statistics_floats(const InputConvolutionRun& run) {
  return PartStatistics::floats(tiles_of(run), padded_channels(run.out_channels));
}

void input_convolution(const InputConvolutionRun& run, Queue queue) {
  const int across = static_cast<int>(divided_up(run.out_columns, kColumns));
  const int down = static_cast<int>(divided_up(run.out_rows, kRows));
  InputConvolutionRun padded = run;
  padded.out_channels = padded_channels(run.out_channels);
  const int64_t tiles = tiles_of(run);
  Parts parts{};
  if (run.statistics.mean) {
    if (run.networks != 1 || run.slope != 1.0f)
      throw std::invalid_argument("statistics are those of one network in training");
    const PartStatistics of_tiles(run.statistics.parts, tiles, padded.out_channels);
    parts = {of_tiles.moments, of_tiles.counts, run.statistics.inner_slope};
  }
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(run.networks * padded.out_channels / kChannels));
  const int floats = parts.moments ? std::max(kLoadedFloats, kStatisticsFloats) : kLoadedFloats;
  const int parameter_stride = static_cast<int>(round_up(run.out_channels, kParameterUnit));
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    CUDA_LAUNCH(input_convolution_kernel<T>, grid, kThreads, floats * static_cast<int>(sizeof(float)), queue, padded,
                across, down, zeros_before(run.alignment), parameter_stride, run.overflows ? INFINITY : kLargestHalf,
                parts);
  });
  if (parts.moments) {
    join_statistics({run.statistics.parts, tiles, padded.out_channels}, run.statistics, queue);
  }
}

}  // namespace pyunetsep::cuda
