#include <algorithm>

#include "reading.cuh"
#include "weight_gradient.h"

// The weight gradient of the network's first and last convolution, whose fine map is a few planes of floats.
//
// A block makes all taps of 16 coarse channels and one plane, from some tiles of 8 x 32 pixels: a warp has a row of
// taps, a lane four of the channels and a row of the tile, along which it walks with five columns of the plane in
// registers: 20 sums for three loads. Tile and patch lie in shared memory, so pitched that a warp's lanes read
// different banks; the patch's columns are split into even and odd ones. Bound by shared memory and multiply-adds;
// bytes: the coarse map once a plane.

namespace pyunetsep::cuda {
namespace {

constexpr int kBlockThreads = 32 * kTapRows;
constexpr int kTileRows = 8, kTileColumns = 32;
constexpr int kChannels = static_cast<int>(kChannelUnit), kLaneChannels = 4;
constexpr int kQuads = kChannels / kLaneChannels;
constexpr int kPatchRows = 2 * kTileRows + 3, kPatchColumns = 2 * kTileColumns + 3, kPitch = kTileColumns + 3;
constexpr int kPatchFloats = kPatchRows * 2 * kPitch;
static_assert(32 / kQuads == kTileRows);

struct Arguments {
  const void* coarse;
  const float* fine;
  Reading reading;  // of the coarse map
  int batch, rows, columns, coarse_channels, planes, zeros_before;
  int tiles_across, tiles_down, tiles, splits;
  float* sums;  // [splits, 25, coarse channels, planes]
};

// One row of the coarse tile, and a pixel more: rows begin in different banks.
template <typename T>
constexpr int kTileRowBytes = (kTileColumns + 1) * kChannels * static_cast<int>(sizeof(T));
template <typename T>
constexpr int kSharedBytes = kTileRows * kTileRowBytes<T> + kPatchFloats * static_cast<int>(sizeof(float));
constexpr int kSumsBytes = kTileRows * kTaps * kChannels * static_cast<int>(sizeof(float));

template <typename T>
__global__ void __launch_bounds__(kBlockThreads) plane_weight_gradient_kernel(const Arguments a) {
  SHARED_MEMORY(shared);
  float* const patch = reinterpret_cast<float*>(shared + kTileRows * kTileRowBytes<T>);  // [kPatchRows, 2, kPitch]
  constexpr int kPieces = kChannels * static_cast<int>(sizeof(T)) / 16;                  // of a pixel
  const int first_channel = blockIdx.x * kChannels, plane = blockIdx.y;
  const int lane = threadIdx.x % 32, tap_row = threadIdx.x / 32, quad = lane % kQuads, row = lane / kQuads;
  const int first = static_cast<int>(int64_t{a.tiles} * blockIdx.z / a.splits);
  const int last = static_cast<int>(int64_t{a.tiles} * (blockIdx.z + 1) / a.splits);
  static_assert(kBlockThreads % kPieces == 0);  // so all of a thread's pieces have the same channels
  PieceReader<T> reader;
  if (a.reading.weight) {
    reader = PieceReader<T>(a.reading, first_channel + threadIdx.x % kPieces * static_cast<int>(16 / sizeof(T)));
  }
  float sums[kTapColumns][kLaneChannels] = {};
  for (int tile = first; tile < last; ++tile) {
    const int image = tile / (a.tiles_across * a.tiles_down);
    const int first_row = tile / a.tiles_across % a.tiles_down * kTileRows;
    const int first_column = tile % a.tiles_across * kTileColumns;
    __syncthreads();  // all have done with the tile before
    for (int i = threadIdx.x; i < kTileRows * kTileColumns * kPieces; i += kBlockThreads) {
      const int piece = i % kPieces, x = i / kPieces % kTileColumns, y = i / kPieces / kTileColumns;
      const int in_row = first_row + y, in_column = first_column + x;
      const bool inside = in_row < a.rows && in_column < a.columns;
      const int64_t pixel = (int64_t{image} * a.rows + in_row) * a.columns + in_column;
      const auto* const from = reinterpret_cast<const unsigned char*>(static_cast<const T*>(a.coarse) +
                                                                      pixel * a.coarse_channels + first_channel);
      auto* const to = shared + y * kTileRowBytes<T> + (x * kPieces + piece) * 16;
      store16(to, inside ? load16(from + piece * 16) : make_uint4(0, 0, 0, 0));
      if (inside && a.reading.weight) {
        const PixelPlace at{image, static_cast<uint32_t>(in_row * a.columns + in_column),
                            static_cast<uint32_t>(a.rows * a.columns)};
        reader.read_in_place(a.reading, at, reinterpret_cast<T*>(to));
      }
    }
    const float* const source = a.fine + (int64_t{image} * a.planes + plane) * 4 * a.rows * a.columns;
    for (int i = threadIdx.x; i < kPatchRows * kPatchColumns; i += kBlockThreads) {
      const int y = i / kPatchColumns, x = i % kPatchColumns;
      const int in_row = 2 * first_row - a.zeros_before + y, in_column = 2 * first_column - a.zeros_before + x;
      const bool inside = 0 <= in_row && in_row < 2 * a.rows && 0 <= in_column && in_column < 2 * a.columns;
      patch[(y * 2 + x % 2) * kPitch + x / 2] = inside ? source[int64_t{in_row} * 2 * a.columns + in_column] : 0.0f;
    }
    __syncthreads();
    const float* const even = patch + (2 * row + tap_row) * 2 * kPitch;
    const float* const odd = even + kPitch;
    float fine[kTapColumns] = {0.0f, 0.0f, even[0], odd[0], even[1]};
    for (int column = 0; column < kTileColumns; ++column) {
      fine[0] = fine[2], fine[1] = fine[3], fine[2] = fine[4];
      fine[3] = odd[column + 1], fine[4] = even[column + 2];
      float coarse[kLaneChannels];
      load_channels<T>(
          shared + row * kTileRowBytes<T> + (column * kChannels + quad * kLaneChannels) * static_cast<int>(sizeof(T)),
          coarse);
#pragma unroll
      for (int k = 0; k < kTapColumns; ++k) {
#pragma unroll
        for (int c = 0; c < kLaneChannels; ++c) sums[k][c] += coarse[c] * fine[k];
      }
    }
  }
  __syncthreads();
  float* const of_rows = reinterpret_cast<float*>(shared);  // [kTileRows, 25, kChannels]
#pragma unroll
  for (int k = 0; k < kTapColumns; ++k) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      of_rows[(row * kTaps + tap_row * kTapColumns + k) * kChannels + quad * kLaneChannels + c] = sums[k][c];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTaps * kChannels; i += kBlockThreads) {
    float sum = 0.0f;
    for (int y = 0; y < kTileRows; ++y) sum += of_rows[y * kTaps * kChannels + i];
    const int tap = i / kChannels, channel = first_channel + i % kChannels;
    a.sums[((int64_t{blockIdx.z} * kTaps + tap) * a.coarse_channels + channel) * a.planes + plane] = sum;
  }
}

Arguments arguments_of(const WeightGradientRun& run, const DeviceFacts& facts) {
  Arguments a{};
  a.coarse = run.coarse;
  a.fine = static_cast<const float*>(run.fine);
  a.reading = run.coarse_reading;
  a.batch = static_cast<int>(run.batch);
  a.rows = static_cast<int>(run.rows);
  a.columns = static_cast<int>(run.columns);
  a.coarse_channels = static_cast<int>(padded_channels(run.coarse_channels));
  a.planes = static_cast<int>(run.fine_channels);
  a.zeros_before = zeros_before(run.alignment);
  a.tiles_across = static_cast<int>(divided_up(a.columns, kTileColumns));
  a.tiles_down = static_cast<int>(divided_up(a.rows, kTileRows));
  a.tiles = a.tiles_across * a.tiles_down * a.batch;
  const int64_t blocks = int64_t{a.coarse_channels} / kChannels * a.planes;
  a.splits = static_cast<int>(std::clamp<int64_t>(divided_up(4 * facts.multiprocessors, blocks), 1, a.tiles));
  a.sums = run.partial_sums;
  return a;
}

}  // namespace

int64_t plane_weight_gradient_bytes(const WeightGradientRun& run, const DeviceFacts& facts) {
  const Arguments a = arguments_of(run, facts);
  return int64_t{a.splits} * kTaps * a.coarse_channels * a.planes * static_cast<int64_t>(sizeof(float));
}

void plane_weight_gradient(const WeightGradientRun& run, const DeviceFacts& facts, Queue queue) {
  const Arguments a = arguments_of(run, facts);
  const dim3 grid(static_cast<unsigned>(a.coarse_channels / kChannels), static_cast<unsigned>(a.planes),
                  static_cast<unsigned>(a.splits));
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    CUDA_LAUNCH((plane_weight_gradient_kernel<T>), grid, kBlockThreads, std::max(kSharedBytes<T>, kSumsBytes), queue,
                a);
  });
  gather(
      {run.partial_sums, a.splits, a.coarse_channels, a.planes, run.coarse_channels, run.fine_channels, run.gradient},
      queue);
}

}  // namespace pyunetsep::cuda
