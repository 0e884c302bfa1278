// How a convolution is cut into blocks: what its host half (convolution.cpp) decides and its kernels are told.
#pragma once
#include <cstdint>

#include "elements.h"
#include "unet.h"

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

namespace pyunetsep::cuda {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kPixelBytes = 32;  // of channels that are in shared memory at once: a chunk
constexpr int kStages = 3;       // of weights

// A strided convolution's pixels are its outputs. A transposed one's are its inputs, each with sums for four phases. A
// dense one has 3x3 taps, and its phases are channels: the upsampling by repetition, and the one to planes.
enum class Grid { strided, transposed, dense };

// A block's share: four warps, kWarps / warp_columns of them along the pixels, of pixel_tiles * 16 pixels and
// channel_tiles * 8 channels each.
struct Shape {
  Grid grid;
  int warp_columns, pixel_tiles, channel_tiles;

  constexpr int pixels() const { return kWarps / warp_columns * pixel_tiles * 16; }
  HOST_DEVICE constexpr int channels() const { return warp_columns * channel_tiles * 8; }
  HOST_DEVICE constexpr int taps() const { return grid == Grid::dense ? 9 : 25; }
  constexpr int taps_a_step() const { return grid == Grid::dense ? 3 : 5; }
  constexpr int stage_bytes() const { return taps_a_step() * kPixelBytes * channels(); }
  constexpr int sums() const { return pixels() * channels() * (grid == Grid::transposed ? 4 : 1); }
  constexpr bool operator==(const Shape&) const = default;
};

// Where a tap reads, in steps of the patch from the pixel's own place, and for which phase.
struct Place {
  int row, column, phase;
};

// A strided convolution's patch has its columns split into even and odd ones, so that its pixels are neighbours there
// too.
constexpr Place place_of(Grid grid, int tap) {
  if (grid == Grid::strided) return {tap / 5 * 2 + tap % 5 % 2, tap % 5 / 2, 0};
  if (grid == Grid::dense) return {tap / 3, tap % 3, 0};
  int found = -1;
  for (int i = 0; i < 36; ++i) {  // sorted by place: its pixels are loaded once for all phases
    const int row = i / 12, column = i / 4 % 3, phase = i % 4;
    if ((phase / 2 == 0 || row > 0) && (phase % 2 == 0 || column > 0) && ++found == tap) return {row, column, phase};
  }
  return {};
}

// A factor's channel, of those of a block, and place in its chunk of the input's channels.
struct Slot {
  int channel, k;
};

// Whose factor lies at such a byte of a tap's packed weights: they lie in the order in which lanes hold the matrices of
// multiply_add, so that each reads 16 bytes at once; a lane's channels are neighbours in the output.
HOST_DEVICE constexpr Slot slot_at(const Shape& shape, Element element, int byte) {
  if (element == Element::single) return {byte / 4 % shape.channels(), byte / 4 / shape.channels()};
  const int of_warp = 256 * shape.channel_tiles;
  const int warp = byte / of_warp, place = byte % of_warp;
  const bool single_tile = shape.channel_tiles == 1;
  const int lane = single_tile ? place / 8 : place % 512 / 16;
  const int tile = single_tile ? 0 : place / 512 * 2 + place % 16 / 8;
  const int owner = lane / 8, half = byte % 8;
  return {warp * 8 * shape.channel_tiles + owner * 2 * shape.channel_tiles + tile * 2 + lane / 4 % 2,
          half / 4 * 8 + lane % 4 * 2 + half % 4 / 2};
}

// How weights are packed that lie on the device.
struct Packing {
  const float* weight;
  int64_t out_stride, in_stride;
  Shape shape;
  Element element;
  bool planes;
  int in_channels[2], source_chunks[2], out_channels, blocks;
  int8_t of_filter[25][4];  // the tap of the filter that is the kernel's, and of planes the phase's; or -1
  void* packed;
};
void launch_packing(const Packing& packing, Queue queue);

struct ConvolutionArguments {
  const void* source[2];
  int source_chunks[2];
  int batch, in_rows, in_columns, grid_rows, grid_columns;
  const void* packed;
  int64_t packed_stride;  // bytes, from one network to the next

  // The tile, of 2^... columns and rows, and of so many images; tiles of the grid; the patch that its taps reach.
  int tile_columns_log2, tile_rows_log2, images;
  int tiles_across, tiles_down;
  int zeros_before;                        // first row and column of the patch, before those of the tile
  int patch_rows, patch_columns;           // that are loaded
  int pitch;                               // places a row, or half a row where its columns are split
  int row_pixels;                          // places a row
  int patch_bytes, patch_buffers;          // 2 where the next chunk is loaded meanwhile
  int first_place, row_step, column_step;  // a tap's place is first + row * row_step + column * column_step
  int mirrored;                            // phases and taps run backwards

  Reading reading[2];
  int reading_stride[2];  // floats, from one network to the next
  const float* bias;
  const float* scale;
  const float* shift;
  float slope;
  float largest;  // value of a half
  int parameter_stride;
  void* target;
  int out_channels;  // of the target: padded, or planes
  Output output;

  float* moments;  // [tiles, out_channels, mean and squares] of what is stored, and [tiles] how many values; or null
  float* counts;
  float inner_slope;

  int splits;  // blocks that share the chunks of a sum
  float* partial_sums;
  uint32_t* arrivals;
};

struct ConvolutionLaunch {
  ConvolutionArguments arguments;
  Shape shape;
  Element element;
  unsigned tiles, channel_blocks, networks;
  int shared_bytes;
};

// Of a tile on the grid.
struct TilePlace {
  int image, row, column;
};

// Of a tile's patch in a source: its first row and column may lie outside.
struct PatchPlace {
  int image, first_row, first_column, pixel_bytes;
};

// One a grid, in files of their own.
void launch_strided(const ConvolutionLaunch& launch, Queue queue);
void launch_transposed(const ConvolutionLaunch& launch, Queue queue);
void launch_dense(const ConvolutionLaunch& launch, Queue queue);

}  // namespace pyunetsep::cuda
