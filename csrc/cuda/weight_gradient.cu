#include <algorithm>
#include <bit>

#include "weight_gradient.h"

#include "reading.cuh"

// The gradient of a 5x5 filter of stride 2 between a coarse map and a fine one of twice its size:
//
//     gradient[c, f, k] = sum over images and pixels m of coarse[c, m] fine[f, 2 m + k - zeros before]
//
// For each tap a matrix product [coarse channels, pixels] x [pixels, fine channels], on tensor cores for 16-bit
// elements and on the ordinary units for floats.
//
// One block makes all taps of kCoarse x kFine pairs of channels from some tiles of pixels, one warp a row of taps. The
// tile of the coarse map, and the patch of the fine one that its taps reach, lie in shared memory, pixel by pixel, as
// they lie in the maps; the matrices are turned as they are loaded. The patch's columns are split into even and odd
// ones, so that a tap's pixels are neighbours there too. The next tile is on its way meanwhile.
//
// Bytes: both maps once for each block of the other's channels, from the second cache level. Bound by tensor cores and
// shared memory where there are many channels, by memory where there are few.
//
// Blocks that share the pixels leave their sums in global memory, to be gathered.

namespace pyunetsep::cuda {
namespace {

constexpr int kBlockThreads = 32 * kTapRows;
constexpr int kCoarse = 32, kFine = 16;  // channels
static_assert(kChannelUnit % kFine == 0, "fine maps have whole blocks of channels");
constexpr int kTilePixels = 64, kTileImages = 16;

struct Arguments {
  const void* coarse;
  const void* fine;
  Reading coarse_reading, fine_reading;
  int batch, rows, columns, fine_rows, fine_columns, coarse_channels, fine_channels, zeros_before;
  int tile_columns_log2, tile_rows_log2, images, tiles_across, tiles_down, tiles;
  int patch_rows, pitch, row_pixels, tile_bytes, buffer_bytes;  // a buffer is a tile and its patch
  int splits;
  float* sums;  // [splits, 25, coarse channels, fine channels], filled up to whole blocks of both
};

// Where the 16 bytes from channel `channel` of a pixel lie, in an array of chunks of so many pixels.
template <typename T>
__device__ __forceinline__ int place_of_channel(int channel, int pixel, int pixels) {
  constexpr int kChunk = kPixelBytes / sizeof(T);
  return channel / kChunk * pixels * kPixelBytes + piece_offset(pixel, channel % kChunk * sizeof(T) / 16);
}

// Where a tile begins.
struct TilePlace {
  int image, row, column;
  __device__ __forceinline__ TilePlace(const Arguments& a, int tile)
      : image(tile / (a.tiles_across * a.tiles_down) * a.images),
        row(tile / a.tiles_across % a.tiles_down << a.tile_rows_log2),
        column(tile % a.tiles_across << a.tile_columns_log2) {}
};

// The 16-byte pieces of a tile that this thread brings, and of its patch: all of one have the same channels of the
// block. Calls body(offset in the buffer, image, pixel of it), where the pixel is -1 outside the map and behind its
// channels.
template <typename T>
struct Pieces {
  static constexpr int kPieceChannels = 16 / sizeof(T);
  static constexpr int kCoarsePieces = kCoarse / kPieceChannels, kFinePieces = kFine / kPieceChannels;
  static_assert(kBlockThreads % kCoarsePieces == 0 && kBlockThreads % kFinePieces == 0);
  const int coarse_of_block = threadIdx.x % kCoarsePieces * kPieceChannels;
  const int fine_of_block = threadIdx.x % kFinePieces * kPieceChannels;
  const int coarse_channel = blockIdx.x * kCoarse + coarse_of_block, fine_channel = blockIdx.y * kFine + fine_of_block;

  template <typename Body>
  __device__ __forceinline__ void for_each_of_tile(const Arguments& a, const TilePlace& tile, Body body) const {
    const int columns = 1 << a.tile_columns_log2, rows = 1 << a.tile_rows_log2;
    for (int pixel = threadIdx.x / kCoarsePieces; pixel < a.images * rows * columns;
         pixel += kBlockThreads / kCoarsePieces) {
      const int image = tile.image + (pixel >> (a.tile_columns_log2 + a.tile_rows_log2));
      const int row = tile.row + (pixel >> a.tile_columns_log2 & (rows - 1)),
                column = tile.column + (pixel & (columns - 1));
      const bool inside = image < a.batch && row < a.rows && column < a.columns && coarse_channel < a.coarse_channels;
      body(place_of_channel<T>(coarse_of_block, pixel, kTilePixels), image, inside ? row * a.columns + column : -1);
    }
  }

  template <typename Body>
  __device__ __forceinline__ void for_each_of_patch(const Arguments& a, const TilePlace& tile, Body body) const {
    const int columns = (2 << a.tile_columns_log2) + 3;
    for (int pixel = threadIdx.x / kFinePieces; pixel < a.images * a.patch_rows * columns;
         pixel += kBlockThreads / kFinePieces) {
      const int x = pixel % columns, y = pixel / columns % a.patch_rows, image = pixel / columns / a.patch_rows;
      const int row = 2 * tile.row - a.zeros_before + y, column = 2 * tile.column - a.zeros_before + x;
      const bool inside =
          tile.image + image < a.batch && 0 <= row && row < a.fine_rows && 0 <= column && column < a.fine_columns;
      const int place = (image * a.patch_rows + y) * a.row_pixels + x % 2 * a.pitch + x / 2;
      body(a.tile_bytes + place_of_channel<T>(fine_of_block, place, a.images * a.patch_rows * a.row_pixels),
           tile.image + image, inside ? row * a.fine_columns + column : -1);
    }
  }
};

// Brings a tile and its patch; what lies outside the maps, or behind their channels, is zero.
template <typename T>
__device__ __forceinline__ void load_tile(const Arguments& a, const Pieces<T>& pieces, int tile,
                                          unsigned char* buffer) {
  const TilePlace at(a, tile);
  const T* const coarse = static_cast<const T*>(a.coarse) + pieces.coarse_channel;
  const int64_t coarse_pixels = int64_t{a.rows} * a.columns;
  pieces.for_each_of_tile(a, at, [&](int offset, int image, int pixel) {
    const T* const from = coarse + (image * coarse_pixels + pixel) * a.coarse_channels;
    copy_async16(buffer + offset, pixel < 0 ? a.coarse : from, pixel >= 0);
  });
  const T* const fine = static_cast<const T*>(a.fine) + pieces.fine_channel;
  const int64_t fine_pixels = int64_t{a.fine_rows} * a.fine_columns;
  pieces.for_each_of_patch(a, at, [&](int offset, int image, int pixel) {
    const T* const from = fine + (image * fine_pixels + pixel) * a.fine_channels;
    copy_async16(buffer + offset, pixel < 0 ? a.fine : from, pixel >= 0);
  });
}

// The pieces that this thread has brought become what is read in their place. The parameters are loaded for each tile:
// in between, the sums need the registers.
template <typename T>
__device__ __forceinline__ void read_tile(const Arguments& a, const Pieces<T>& pieces, int tile,
                                          unsigned char* buffer) {
  const TilePlace at(a, tile);
  const auto reading_of_map = [&](const Reading& reading, int channel, uint32_t pixels) {
    return [&reading, buffer, pixels, reader = PieceReader<T>(reading, channel)](int offset, int image, int pixel) {
      if (pixel < 0) return;
      T* const x = reinterpret_cast<T*>(buffer + offset);
      reader.read_in_place(reading, {image, static_cast<uint32_t>(pixel), pixels}, x);
    };
  };
  if (a.coarse_reading.weight && pieces.coarse_channel < a.coarse_channels) {
    const auto pixels = static_cast<uint32_t>(a.rows * a.columns);
    pieces.for_each_of_tile(a, at, reading_of_map(a.coarse_reading, pieces.coarse_channel, pixels));
  }
  if (a.fine_reading.weight) {
    const auto pixels = static_cast<uint32_t>(a.fine_rows * a.fine_columns);
    pieces.for_each_of_patch(a, at, reading_of_map(a.fine_reading, pieces.fine_channel, pixels));
  }
}

// The place in the patch of tap (0, 0) of the tile's pixel.
__device__ __forceinline__ int patch_place(const Arguments& a, int pixel) {
  const int image = pixel >> (a.tile_columns_log2 + a.tile_rows_log2);
  const int row = pixel >> a.tile_columns_log2 & ((1 << a.tile_rows_log2) - 1);
  const int column = pixel & ((1 << a.tile_columns_log2) - 1);
  return (min(image, a.images - 1) * a.patch_rows + 2 * row) * a.row_pixels + column;
}

// One warp's sums: its row of taps, of all the block's pairs of channels.
template <typename T>
struct Sums {
  // on tensor cores [column of taps][16 coarse][8 fine][as multiply_add has it]
  float of[kTapColumns][kCoarse / 16][kFine / 8][4] = {};

  __device__ __forceinline__ void add(const Arguments& a, int pixels, const unsigned char* buffer) {
    const int lane = threadIdx.x % 32, tap_row = threadIdx.x / 32;
    const unsigned char* const patch = buffer + a.tile_bytes;
    for (int first = 0; first < pixels; first += 16) {
      uint32_t x[kCoarse / 16][4];
      const int coarse_pixel = first + lane / 16 * 8 + lane % 8;
#pragma unroll
      for (int i = 0; i < kCoarse / 16; ++i) {
        load_turned_matrices(x[i], buffer + place_of_channel<T>(16 * i + lane / 8 % 2 * 8, coarse_pixel, kTilePixels));
      }
      const int place = patch_place(a, first + lane / 8 % 2 * 8 + lane % 8) + tap_row * a.row_pixels;
#pragma unroll
      for (int k = 0; k < kTapColumns; ++k) {
        uint32_t y[4];
        load_turned_matrices(y, patch + piece_offset(place + k % 2 * a.pitch + k / 2, lane / 16));
#pragma unroll
        for (int i = 0; i < kCoarse / 16; ++i) {
          multiply_add<T>(of[k][i][0], x[i], y[0], y[1]);
          multiply_add<T>(of[k][i][1], x[i], y[2], y[3]);
        }
      }
    }
  }

  // Calls body(column of taps, coarse channel, fine channel, sum).
  template <typename Body>
  __device__ __forceinline__ void for_each(Body body) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kTapColumns; ++k) {
#pragma unroll
      for (int i = 0; i < kCoarse / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kFine / 8; ++j) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            body(k, 16 * i + n / 2 * 8 + lane / 4, 8 * j + lane % 4 * 2 + n % 2, of[k][i][j][n]);
          }
        }
      }
    }
  }
};

// Of floats: a lane has four coarse channels by four fine ones.
template <>
struct Sums<float> {
  float of[kTapColumns][4][4] = {};

  __device__ __forceinline__ void add(const Arguments& a, int pixels, const unsigned char* buffer) {
    const int lane = threadIdx.x % 32, tap_row = threadIdx.x / 32;
    const int patch_pixels = a.images * a.patch_rows * a.row_pixels;
    const unsigned char* const patch = buffer + a.tile_bytes;
    for (int pixel = 0; pixel < pixels; ++pixel) {
      float x[4];
      load_channels<float>(buffer + place_of_channel<float>(lane / 4 * 4, pixel, kTilePixels), x);
      const int place = patch_place(a, pixel) + tap_row * a.row_pixels;
#pragma unroll
      for (int k = 0; k < kTapColumns; ++k) {
        float y[4];
        const int at = place + k % 2 * a.pitch + k / 2;
        load_channels<float>(patch + place_of_channel<float>(lane % 4 * 4, at, patch_pixels), y);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) of[k][i][j] += x[i] * y[j];
        }
      }
    }
  }

  template <typename Body>
  __device__ __forceinline__ void for_each(Body body) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kTapColumns; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) body(k, lane / 4 * 4 + i, lane % 4 * 4 + j, of[k][i][j]);
      }
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 2) weight_gradient_kernel(const Arguments a) {
  SHARED_MEMORY(shared);
  const int first = a.tiles * static_cast<int>(blockIdx.z) / a.splits;
  const int last = a.tiles * (static_cast<int>(blockIdx.z) + 1) / a.splits;
  const int pixels = a.images << (a.tile_rows_log2 + a.tile_columns_log2);
  // a tile of fewer pixels than a step of the matrix product has: the others stay zero
  for (int i = threadIdx.x * 16; i < 2 * a.buffer_bytes; i += kBlockThreads * 16) {
    if (pixels % 16) store16(shared + i, make_uint4(0, 0, 0, 0));
  }
  __syncthreads();
  const Pieces<T> pieces;
  Sums<T> sums;
  load_tile<T>(a, pieces, first, shared);
  commit_copies();
  for (int tile = first; tile < last; ++tile) {
    unsigned char* const buffer = shared + (tile - first) % 2 * a.buffer_bytes;
    if (tile + 1 < last) load_tile<T>(a, pieces, tile + 1, shared + (tile + 1 - first) % 2 * a.buffer_bytes);
    commit_copies();
    wait_copies<1>();  // this tile is there, if brought by this thread ...
    read_tile<T>(a, pieces, tile, buffer);
    __syncthreads();  // ... or by another
    sums.add(a, pixels, buffer);
    __syncthreads();  // all have done with the buffer that is loaded next
  }
  const int64_t fine = int64_t{gridDim.y} * kFine, coarse = int64_t{gridDim.x} * kCoarse;
  const int tap_row = threadIdx.x / 32;
  sums.for_each([&](int tap_column, int c, int f, float sum) {
    const int64_t tap = int64_t{blockIdx.z} * kTaps + tap_row * kTapColumns + tap_column;
    a.sums[(tap * coarse + blockIdx.x * kCoarse + c) * fine + blockIdx.y * kFine + f] = sum;
  });
}

int log2_up(int64_t size) { return std::bit_width(static_cast<uint64_t>(size - 1)); }

int patch_rows(const Arguments& a) { return (2 << a.tile_rows_log2) + 3; }
int tile_bytes(Element element) { return kTilePixels * kCoarse * static_cast<int>(size_of(element)); }
int buffer_bytes(const Arguments& a, Element element) {
  const int patch_pixels = a.images * patch_rows(a) * 2 * ((1 << a.tile_columns_log2) + 2);
  return tile_bytes(element) + patch_pixels * kFine * static_cast<int>(size_of(element));
}

Arguments arguments_of(const WeightGradientRun& run, const DeviceFacts& facts) {
  Arguments a{};
  a.coarse = run.coarse;
  a.fine = run.fine;
  a.coarse_reading = run.coarse_reading;
  a.fine_reading = run.fine_reading;
  a.batch = static_cast<int>(run.batch);
  a.rows = static_cast<int>(run.rows);
  a.columns = static_cast<int>(run.columns);
  a.fine_rows = 2 * a.rows;
  a.fine_columns = 2 * a.columns;
  a.coarse_channels = static_cast<int>(padded_channels(run.coarse_channels));
  a.fine_channels = static_cast<int>(padded_channels(run.fine_channels));
  a.zeros_before = zeros_before(run.alignment);
  const int pixels = log2_up(kTilePixels), all_columns = log2_up(a.columns), all_rows = log2_up(a.rows);
  a.tile_columns_log2 = std::min(3, all_columns);
  a.tile_rows_log2 = std::min(pixels - a.tile_columns_log2, all_rows);
  a.tile_columns_log2 = std::min(pixels - a.tile_rows_log2, all_columns);
  a.images = std::min(1 << (pixels - a.tile_rows_log2 - a.tile_columns_log2), kTileImages);
  while (a.images / 2 >= run.batch) a.images /= 2;
  while (a.images > 1 && 2 * buffer_bytes(a, run.element) > facts.shared_bytes) a.images /= 2;
  const int tile_rows = 1 << a.tile_rows_log2, tile_columns = 1 << a.tile_columns_log2;
  a.tiles_across = static_cast<int>(divided_up(a.columns, tile_columns));
  a.tiles_down = static_cast<int>(divided_up(a.rows, tile_rows));
  a.tiles = a.tiles_across * a.tiles_down * static_cast<int>(divided_up(run.batch, a.images));
  a.patch_rows = patch_rows(a);
  a.pitch = tile_columns + 2;
  a.row_pixels = 2 * a.pitch;
  a.tile_bytes = tile_bytes(run.element);
  a.buffer_bytes = buffer_bytes(a, run.element);
  const int64_t blocks = divided_up(a.coarse_channels, kCoarse) * divided_up(a.fine_channels, kFine);
  a.splits = static_cast<int>(std::clamp<int64_t>(divided_up(2 * facts.multiprocessors, blocks), 1, a.tiles));
  return a;
}

dim3 grid_of(const Arguments& a) {
  return {static_cast<unsigned>(divided_up(a.coarse_channels, kCoarse)),
          static_cast<unsigned>(divided_up(a.fine_channels, kFine)), static_cast<unsigned>(a.splits)};
}

}  // namespace

int64_t weight_gradient_bytes(const WeightGradientRun& run, const DeviceFacts& facts) {
  const dim3 grid = grid_of(arguments_of(run, facts));
  return int64_t{grid.z} * kTaps * grid.x * kCoarse * grid.y * kFine * static_cast<int64_t>(sizeof(float));
}

void weight_gradient(const WeightGradientRun& run, const DeviceFacts& facts, Queue queue) {
  Arguments a = arguments_of(run, facts);
  a.sums = run.partial_sums;
  const dim3 grid = grid_of(a);
  with_element(run.element, [&]<typename T>(std::type_identity<T>) {
    CUDA_LAUNCH((weight_gradient_kernel<T>), grid, kBlockThreads, 2 * a.buffer_bytes, queue, a);
  });
  gather({run.partial_sums, a.splits, int64_t{grid.x} * kCoarse, int64_t{grid.y} * kFine, run.coarse_channels,
          run.fine_channels, run.gradient},
         queue);
}

}  // namespace pyunetsep::cuda
