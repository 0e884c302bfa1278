// The convolutions between maps: an implicit matrix product of pixels by channels, on tensor cores for 16-bit elements
// and on the ordinary units for floats.
//
// One block makes a tile of pixels (of some images) for a run of output channels, four warps sharing both. The patch of
// the input that the tile's taps reach lies in shared memory, 32 bytes of channels (a chunk) at a time, so that it is
// read once for all taps; the next chunk is on its way meanwhile. The weights stream through a ring of stages, a few
// taps each, packed in the order in which lanes read them. Lane 4 g + t owns pixels g and g + 8 of each 16, and the
// channels from 2 kChannelTiles t on: neighbours in memory, thanks to the order in which they are packed.
//
// Bytes: the patch once a block of channels, the weights once a tile of pixels (from the second cache level), the
// output once. Bound by tensor cores and shared memory where there are many channels, by memory where there are few.
//
// Where pixels and channels make too few blocks for the device, several blocks share the chunks of a sum. Each leaves
// its part in global memory, and the last to arrive adds them all up, always in the same order.
#pragma once
#include <utility>

#include "reading.cuh"
#include "statistics.cuh"
#include "tiling.h"

namespace pyunetsep::cuda {

template <Grid kGrid, int kTap>
constexpr Place kPlaceOf = place_of(kGrid, kTap);

template <typename T_, Grid kGrid_, int kWarpColumns_, int kPixelTiles_, int kChannelTiles_>
struct Kind {
  using T = T_;
  static constexpr Grid kGrid = kGrid_;
  static constexpr bool kTensorCores = sizeof(T) == 2;
  static constexpr Shape kShape{kGrid_, kWarpColumns_, kPixelTiles_, kChannelTiles_};
  static constexpr int kWarpColumns = kWarpColumns_, kPixelTiles = kPixelTiles_, kChannelTiles = kChannelTiles_;
  static constexpr int kPhases = kGrid == Grid::transposed ? 4 : 1;
  static constexpr int kTaps = kShape.taps(), kTapsAStep = kShape.taps_a_step(), kSteps = kTaps / kTapsAStep;
  static constexpr int kChunkChannels = kPixelBytes / sizeof(T);
  static constexpr int kChannels = kShape.channels(), kTapBytes = kPixelBytes * kChannels;
  static constexpr int kStageBytes = kShape.stage_bytes();
  static constexpr int kLaneChannels = 2 * kChannelTiles;
  static constexpr int kPixels = kTensorCores ? kPixelTiles : 2 * kPixelTiles;  // whose places a lane knows
  static_assert(kTaps % kTapsAStep == 0 && kSteps >= kStages - 1);
};

template <int... kIndices, typename Body>
__device__ __forceinline__ void unrolled(std::integer_sequence<int, kIndices...>, Body body) {
  (body(std::integral_constant<int, kIndices>{}), ...);
}
template <int kCount, typename Body>
__device__ __forceinline__ void unrolled(Body body) {
  unrolled(std::make_integer_sequence<int, kCount>{}, body);
}

// The patch's 16-byte pieces that this thread brings: two a pixel. Rows go to warps, pieces of a row to lanes, so that
// a thread's pieces are all first or all second halves. Calls body(offset in shared memory, image, pixel of it), where
// the pixel is -1 outside the map.
template <typename K, typename Body>
__device__ __forceinline__ void for_each_piece(const ConvolutionArguments& a, const PatchPlace& at, Body body) {
  const int lane = threadIdx.x % 32, half = lane % 2;
  int image = 0, y = threadIdx.x / 32;
  for (int row = threadIdx.x / 32; row < a.images * a.patch_rows; row += kWarps, y += kWarps) {
    while (y >= a.patch_rows) {
      y -= a.patch_rows;
      ++image;
    }
    const int in_row = at.first_row + y;
    const bool row_inside = at.image + image < a.batch && 0 <= in_row && in_row < a.in_rows;
    for (int x = lane / 2; x < a.patch_columns; x += 16) {
      const int in_column = at.first_column + x;
      const bool inside = row_inside && 0 <= in_column && in_column < a.in_columns;
      const int column = K::kGrid == Grid::strided ? x % 2 * a.pitch + x / 2 : x;
      body(piece_offset(row * a.row_pixels + column, half), at.image + image,
           inside ? in_row * a.in_columns + in_column : -1);
    }
  }
}

// The pieces that this thread has brought, of a source's channels from one on, become what is read in their place.
// Outside the map zeros stay.
template <typename K>
__device__ __forceinline__ void read_patch(const ConvolutionArguments& a, const PatchPlace& at, int source, int channel,
                                           int network, unsigned char* patch) {
  using T = typename K::T;
  const Reading& reading = a.reading[source];
  const int of_pieces = channel + threadIdx.x % 2 * static_cast<int>(16 / sizeof(T));
  const PieceReader<T> reader(reading, of_pieces, network * a.reading_stride[source]);
  const auto pixels = static_cast<uint32_t>(a.in_rows * a.in_columns);
  for_each_piece<K>(a, at, [&](int offset, int image, int pixel) {
    if (pixel < 0) return;
    T* const x = reinterpret_cast<T*>(patch + offset);
    reader.read_in_place(reading, {image, static_cast<uint32_t>(pixel), pixels}, x, a.largest);
  });
}

// What a lane has to do with the tile's pixels.
template <typename K>
struct Accumulators {
  // [phase][16 pixels][8 channels][pixel g: two channels, pixel g + 8: two channels]
  float sums[K::kPhases][K::kPixelTiles][K::kChannelTiles][4];

  __device__ __forceinline__ void clear() {
    for_each([](float& sum) { sum = 0.0f; });
  }
  // Adds the other's sums, and leaves zeros there.
  __device__ __forceinline__ void take(Accumulators& other) {
    for_each(
        [&](float& sum, float& part) {
          sum += part;
          part = 0.0f;
        },
        other);
  }
  template <typename Body, typename... Others>
  __device__ __forceinline__ void for_each(Body body, Others&... others) {
#pragma unroll
    for (int phase = 0; phase < K::kPhases; ++phase) {
#pragma unroll
      for (int i = 0; i < K::kPixelTiles; ++i) {
#pragma unroll
        for (int j = 0; j < K::kChannelTiles; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) body(sums[phase][i][j][k], others.sums[phase][i][j][k]...);
        }
      }
    }
  }
};

// Adds a step's taps. On tensor cores `pixels` are those of the lane's rows of the 16x16 matrices that it helps to
// load, one for each 16 pixels; without, those that it owns, two for each.
template <typename K, int kStep>
__device__ __forceinline__ void add_taps(const ConvolutionArguments& a, const unsigned char* patch,
                                         const unsigned char* weights, const int (&pixels)[K::kPixels],
                                         Accumulators<K>& to) {
  const int lane = threadIdx.x % 32, warp_column = threadIdx.x / 32 % K::kWarpColumns;
  uint32_t loaded[K::kTensorCores ? K::kPixelTiles : 1][4];
  unrolled<K::kTapsAStep>([&](auto index) {
    constexpr int kTap = kStep * K::kTapsAStep + decltype(index)::value;
    constexpr Place kPlace = kPlaceOf<K::kGrid, kTap>, kBefore = kPlaceOf<K::kGrid, (kTap == 0 ? 0 : kTap - 1)>;
    [[maybe_unused]] constexpr bool kMoved =
        decltype(index)::value == 0 || kPlace.row != kBefore.row || kPlace.column != kBefore.column;
    const int moved = a.first_place + kPlace.row * a.row_step + kPlace.column * a.column_step;
    const unsigned char* tap = weights + decltype(index)::value * K::kTapBytes;
    if constexpr (K::kTensorCores) {
      if constexpr (kMoved) {
#pragma unroll
        for (int i = 0; i < K::kPixelTiles; ++i) {
          load_matrices(loaded[i], patch + piece_offset(pixels[i] + moved, lane / 16));
        }
      }
      uint32_t b[K::kChannelTiles][2];
      tap += warp_column * 256 * K::kChannelTiles;
      if constexpr (K::kChannelTiles == 1) {
        const uint2 pair = load8(tap + lane * 8);
        b[0][0] = pair.x, b[0][1] = pair.y;
      } else {
#pragma unroll
        for (int j = 0; j < K::kChannelTiles; j += 2) {
          const uint4 four = load16(tap + j / 2 * 512 + lane * 16);
          b[j][0] = four.x, b[j][1] = four.y, b[j + 1][0] = four.z, b[j + 1][1] = four.w;
        }
      }
#pragma unroll
      for (int i = 0; i < K::kPixelTiles; ++i) {
#pragma unroll
        for (int j = 0; j < K::kChannelTiles; ++j) {
          multiply_add<typename K::T>(to.sums[kPlace.phase][i][j], loaded[i], b[j][0], b[j][1]);
        }
      }
    } else {
      const float* const columns =
          reinterpret_cast<const float*>(tap) + warp_column * 8 * K::kChannelTiles + lane % 4 * K::kLaneChannels;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x[2 * K::kPixelTiles][4];
#pragma unroll
        for (int p = 0; p < 2 * K::kPixelTiles; ++p) {
          load_channels<float>(patch + piece_offset(pixels[p] + moved, half), x[p]);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float w[K::kLaneChannels];
          load_floats(columns + (4 * half + k) * K::kChannels, w);
#pragma unroll
          for (int p = 0; p < 2 * K::kPixelTiles; ++p) {
#pragma unroll
            for (int j = 0; j < K::kLaneChannels; ++j) {
              to.sums[kPlace.phase][p / 2][j / 2][p % 2 * 2 + j % 2] += x[p][k] * w[j];
            }
          }
        }
      }
    }
  });
}

// Leaves this block's part of the sums, and in the last block to come gathers all. Returns whether it is this one.
template <typename K>
__device__ __forceinline__ bool gather_parts(const ConvolutionArguments& a, int network, int split,
                                             unsigned char* shared, Accumulators<K>& to) {
  constexpr int kSums = K::kPhases * K::kPixelTiles * K::kChannelTiles * 4;
  const int64_t tile = (int64_t{network} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  float* const parts = a.partial_sums + tile * a.splits * kSums * kThreads + threadIdx.x;
  float* mine = parts + int64_t{split} * kSums * kThreads;
  to.for_each([&](float& sum) {
    *mine = sum;
    mine += kThreads;
  });
  __threadfence();
  __syncthreads();  // all have left their parts, and have done with the shared memory
  auto* const is_last = reinterpret_cast<uint32_t*>(shared);
  if (threadIdx.x == 0) {
    const uint32_t before = atomicAdd(a.arrivals + tile, 1u);
    *is_last = before == static_cast<uint32_t>(a.splits) - 1;
    if (*is_last) a.arrivals[tile] = 0;
  }
  __syncthreads();
  if (!*is_last) return false;
  __threadfence();
  to.clear();
  const float* part = parts;
  for (int s = 0; s < a.splits; ++s) {
    to.for_each([&](float& sum) {
      sum += load_fresh(part);
      part += kThreads;
    });
  }
  return true;
}

// What is done to the sums of a lane's channels, which are a run of `kCount`.
template <int kCount>
struct Finish {
  float bias[kCount], scale[kCount], shift[kCount], slope;

  __device__ __forceinline__ Finish(const ConvolutionArguments& a, int network, int channel) : slope(a.slope) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = network * a.parameter_stride + channel + i;
      bias[i] = a.bias[at];
      scale[i] = a.scale ? a.scale[at] : 1.0f;
      shift[i] = a.scale ? a.shift[at] : 0.0f;
    }
  }
  __device__ __forceinline__ float operator()(float sum, int i) const {
    const float z = sum + bias[i];
    return (z > 0.0f ? z : z * slope) * scale[i] + shift[i];
  }
};

struct Pixel {
  int image, row, column;
  bool inside;
};

// Pixel m of the tile, on the grid.
__device__ __forceinline__ Pixel pixel_of(const ConvolutionArguments& a, const TilePlace& tile, int m) {
  const int columns = 1 << a.tile_columns_log2, rows = 1 << a.tile_rows_log2;
  const int image = tile.image + (m >> (a.tile_columns_log2 + a.tile_rows_log2));
  const int row = tile.row + (m >> a.tile_columns_log2 & (rows - 1)), column = tile.column + (m & (columns - 1));
  const bool inside = image < min(tile.image + a.images, a.batch) && row < a.grid_rows && column < a.grid_columns;
  return {image, row, column, inside};
}

// Leaves the statistics of what the tile stores in each channel: lanes join theirs, and then warps.
template <typename K>
__device__ __forceinline__ void leave_moments(const ConvolutionArguments& a, const TilePlace& tile,
                                              unsigned char* shared, const Accumulators<K>& from) {
  constexpr int kWarpRows = kWarps / K::kWarpColumns, kRounds = 3;  // of the eight lanes that have the same channels
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_row = warp / K::kWarpColumns;
  auto* const of_warps = reinterpret_cast<Moments*>(shared);                           // [kWarpRows, kChannels]
  auto* const counts = reinterpret_cast<float*>(of_warps + kWarpRows * K::kChannels);  // [kWarpRows]
  const int first = warp % K::kWarpColumns * 8 * K::kChannelTiles + lane % 4 * K::kLaneChannels;
  const int channel = blockIdx.y * K::kChannels + first;

  bool inside[K::kPixelTiles][2];
  float count = 0.0f;
#pragma unroll
  for (int i = 0; i < K::kPixelTiles; ++i) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      inside[i][side] = pixel_of(a, tile, (warp_row * K::kPixelTiles + i) * 16 + lane / 4 + side * 8).inside;
      if (inside[i][side]) count += K::kPhases;
    }
  }
  const float share = 1.0f / fmaxf(count, 1.0f);
  float before[kRounds], others[kRounds];  // values that are joined in each round
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    before[round] = count;
    others[round] = __shfl_xor_sync(0xffffffff, count, 4 << round);
    count += others[round];
  }

  __syncthreads();  // all have done with the shared memory
#pragma unroll
  for (int k = 0; k < K::kLaneChannels; ++k) {
    const Finish<1> finish(a, 0, channel < a.out_channels ? channel + k : 0);
    const auto for_each_value = [&](auto body) {
#pragma unroll
      for (int phase = 0; phase < K::kPhases; ++phase) {
#pragma unroll
        for (int i = 0; i < K::kPixelTiles; ++i) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const float x = rounded<typename K::T>(finish(from.sums[phase][i][k / 2][side * 2 + k % 2], 0));
            if (inside[i][side]) body(activated(x, a.inner_slope));
          }
        }
      }
    };
    Moments own{};
    for_each_value([&](float x) { own.mean += x; });
    own.mean *= share;
    for_each_value([&](float x) { own.squares += (x - own.mean) * (x - own.mean); });
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Moments other{__shfl_xor_sync(0xffffffff, own.mean, 4 << round),
                          __shfl_xor_sync(0xffffffff, own.squares, 4 << round)};
      Joining(before[round], others[round])(own, other);
    }
    if (lane < 4) of_warps[warp_row * K::kChannels + first + k] = own;
    __syncwarp();  // one channel after the other: side by side they would need registers that are not there
  }
  if (lane == 0) counts[warp_row] = count;
  __syncthreads();
  if (threadIdx.x < K::kChannels) {
    Moments all = of_warps[threadIdx.x];
    float before_all = counts[0];
    for (int row = 1; row < kWarpRows; ++row) {
      Joining(before_all, counts[row])(all, of_warps[row * K::kChannels + threadIdx.x]);
      before_all += counts[row];
    }
    const int of_map = blockIdx.y * K::kChannels + threadIdx.x;
    if (of_map < a.out_channels) store_moments(a.moments, blockIdx.x, a.out_channels, of_map, all);
    if (of_map == 0) a.counts[blockIdx.x] = before_all;
  }
}

template <typename K>
__device__ __forceinline__ void store_map(const ConvolutionArguments& a, const TilePlace& tile, int network,
                                          Accumulators<K>& from) {
  using T = typename K::T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int channel = blockIdx.y * K::kChannels + warp % K::kWarpColumns * 8 * K::kChannelTiles + lane % 4 * K::kLaneChannels;
  int dense_phase = 0;
  if constexpr (K::kGrid == Grid::dense) {  // the channels of one phase behind those of another
    dense_phase = channel / a.out_channels;
    channel -= dense_phase * a.out_channels;
    static_assert(4 * kChannelUnit % K::kChannels == 0);  // so no block has channels behind the last phase's
  } else if (channel >= a.out_channels) {
    return;
  }
  const Finish<K::kLaneChannels> finish(a, network, channel);
  const int upsampled = K::kGrid == Grid::strided ? 1 : 2;
  const int out_columns = upsampled * a.grid_columns;
  T* const target = static_cast<T*>(a.target) +
                    int64_t{network} * a.batch * upsampled * a.grid_rows * out_columns * a.out_channels + channel;
#pragma unroll
  for (int i = 0; i < K::kPixelTiles; ++i) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const Pixel pixel = pixel_of(a, tile, (warp / K::kWarpColumns * K::kPixelTiles + i) * 16 + lane / 4 + side * 8);
      if (!pixel.inside) continue;
#pragma unroll
      for (int phase = 0; phase < K::kPhases; ++phase) {
        float x[K::kLaneChannels];
#pragma unroll
        for (int k = 0; k < K::kLaneChannels; ++k) x[k] = finish(from.sums[phase][i][k / 2][side * 2 + k % 2], k);
        int row = pixel.row, column = pixel.column;
        if constexpr (K::kGrid == Grid::transposed) {
          row = 2 * row + (phase / 2 ^ a.mirrored);
          column = 2 * column + (phase % 2 ^ a.mirrored);
        } else if constexpr (K::kGrid == Grid::dense) {
          row = 2 * row + dense_phase / 2;
          column = 2 * column + dense_phase % 2;
        }
        const int64_t at = (int64_t{pixel.image} * upsampled * a.grid_rows + row) * out_columns + column;
        store_channels(target + at * a.out_channels, x, a.largest);
      }
    }
  }
}

// Planes: channel 4 o + phase of the sums is output o, and a lane has the two phases of a row, which are neighbours.
template <typename K>
__device__ __forceinline__ void store_planes(const ConvolutionArguments& a, const TilePlace& tile, int network,
                                             Accumulators<K>& from) {
  static_assert(K::kGrid == Grid::dense && K::kChannelTiles == 1);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int output = blockIdx.y * 2 + lane % 4 / 2, phase_row = lane % 2;
  if (output >= a.out_channels) return;
  const Finish<1> finish(a, network, output);
#pragma unroll
  for (int i = 0; i < K::kPixelTiles; ++i) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const Pixel pixel = pixel_of(a, tile, (warp * K::kPixelTiles + i) * 16 + lane / 4 + side * 8);
      if (!pixel.inside) continue;
      float x[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) x[k] = finish(from.sums[0][i][0][side * 2 + k], 0);
      store_outputs(a.output, network, pixel.image, output, 2 * pixel.row + phase_row, 2 * pixel.column, x);
    }
  }
}

template <typename K, bool kPlanes>
__global__ void __launch_bounds__(kThreads, 2) convolution_kernel(const ConvolutionArguments a) {
  SHARED_MEMORY(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int network = blockIdx.z / a.splits, split = blockIdx.z % a.splits;
  const int tile_columns = 1 << a.tile_columns_log2, tile_rows = 1 << a.tile_rows_log2;
  const TilePlace tile{static_cast<int>(blockIdx.x / (a.tiles_across * a.tiles_down)) * a.images,
                       static_cast<int>(blockIdx.x / a.tiles_across % a.tiles_down) * tile_rows,
                       static_cast<int>(blockIdx.x % a.tiles_across) * tile_columns};
  const int chunks = a.source_chunks[0] + a.source_chunks[1];
  const int first_chunk = chunks * split / a.splits, last_chunk = chunks * (split + 1) / a.splits;
  unsigned char* const stages = shared + a.patch_bytes * a.patch_buffers;

  constexpr int kReach = K::kGrid == Grid::strided ? 2 : 1;
  const auto place = [&](int source) {
    return PatchPlace{tile.image, tile.row * kReach - a.zeros_before, tile.column * kReach - a.zeros_before,
                      a.source_chunks[source] * kPixelBytes};
  };
  const auto load_patch = [&](int chunk, unsigned char* patch) {
    const int source = chunk < a.source_chunks[0] ? 0 : 1;
    const PatchPlace at = place(source);
    const unsigned char* from = static_cast<const unsigned char*>(a.source[source]) +
                                int64_t{network} * a.batch * a.in_rows * a.in_columns * at.pixel_bytes +
                                (source == 0 ? chunk : chunk - a.source_chunks[0]) * kPixelBytes;
    const int64_t pixels = int64_t{a.in_rows} * a.in_columns;
    for_each_piece<K>(a, at, [&](int offset, int image, int pixel) {
      const int64_t piece = (image * pixels + pixel) * at.pixel_bytes + threadIdx.x % 2 * 16;
      copy_async16(patch + offset, pixel < 0 ? from : from + piece, pixel >= 0);
    });
  };

  int steps_left = (last_chunk - first_chunk) * K::kSteps;  // whose weights are not on their way yet
  const unsigned char* next_weights = static_cast<const unsigned char*>(a.packed) + int64_t{network} * a.packed_stride +
                                      (int64_t{blockIdx.y} * chunks + first_chunk) * K::kSteps * K::kStageBytes;
  const auto load_weights = [&](int stage) {
    if (steps_left-- <= 0) return;
    for (int i = threadIdx.x * 16; i < K::kStageBytes; i += kThreads * 16) {
      copy_async16(stages + stage * K::kStageBytes + i, next_weights + i, true);
    }
    next_weights += K::kStageBytes;
  };

  int pixels[K::kPixels];
#pragma unroll
  for (int i = 0; i < K::kPixels; ++i) {
    int m = warp / K::kWarpColumns * K::kPixelTiles * 16;
    m += K::kTensorCores ? i * 16 + lane % 16 : i / 2 * 16 + i % 2 * 8 + lane / 4;
    const int image = min(m >> (a.tile_columns_log2 + a.tile_rows_log2), a.images - 1);  // there may be fewer
    const int row = m >> a.tile_columns_log2 & (tile_rows - 1);
    pixels[i] = (image * a.patch_rows + row * kReach) * a.row_pixels + (m & (tile_columns - 1));
  }

  Accumulators<K> sums;
  sums.clear();
  // Floats are summed up chunk by chunk: one long sum would round as often at its full size.
  Accumulators<K> part;
  part.clear();
  Accumulators<K>& of_chunk = K::kTensorCores ? sums : part;
  load_patch(first_chunk, shared);
  load_weights(0);
  commit_copies();
  load_weights(1);
  commit_copies();
  int stage = 0;
  for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
    unsigned char* const patch = shared + (chunk - first_chunk) % 2 * a.patch_bytes;
    unrolled<K::kSteps>([&](auto step) {
      wait_copies<1>();  // what this step needs is there, if brought by this thread ...
      if constexpr (decltype(step)::value == 0) {
        const int source = chunk < a.source_chunks[0] ? 0 : 1;
        const int channel = (source == 0 ? chunk : chunk - a.source_chunks[0]) * K::kChunkChannels;
        if (a.reading[source].weight) read_patch<K>(a, place(source), source, channel, network, patch);
      }
      __syncthreads();  // ... or by another; and all have done with the stage and the patch that are loaded next
      load_weights(stage == 0 ? 2 : stage - 1);
      if (decltype(step)::value == 0 && chunk + 1 < last_chunk) {
        load_patch(chunk + 1, shared + (chunk + 1 - first_chunk) % 2 * a.patch_bytes);
      }
      commit_copies();
      add_taps<K, decltype(step)::value>(a, patch, stages + stage * K::kStageBytes, pixels, of_chunk);
      stage = stage == 2 ? 0 : stage + 1;
    });
    if constexpr (!K::kTensorCores) sums.take(part);
  }
  if (a.splits > 1 && !gather_parts<K>(a, network, split, shared, sums)) return;
  if constexpr (kPlanes) {
    store_planes<K>(a, tile, network, sums);
  } else {
    if constexpr (K::kGrid != Grid::dense) {
      if (a.moments) leave_moments<K>(a, tile, shared, sums);
    }
    store_map<K>(a, tile, network, sums);
  }
}

template <typename K, bool kPlanes = false>
void launch_convolution(const ConvolutionLaunch& launch, Queue queue) {
  const dim3 grid(launch.tiles, launch.channel_blocks, launch.networks * launch.arguments.splits);
  CUDA_LAUNCH((convolution_kernel<K, kPlanes>), grid, kThreads, launch.shared_bytes, queue, launch.arguments);
}

}  // namespace pyunetsep::cuda
