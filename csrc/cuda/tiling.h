// How a convolution is cut into blocks: what its host half (convolution.cpp) decides and its kernels are told.
#pragma once
#include <cstdint>

#include "elements.h"
#include "unet.h"

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
  constexpr int channels() const { return warp_columns * channel_tiles * 8; }
  constexpr int taps() const { return grid == Grid::dense ? 9 : 25; }
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

  const float* read_scale;
  const float* read_shift;
  float read_slope;
  int read_stride;
  const float* bias;
  const float* scale;
  const float* shift;
  float slope;
  int parameter_stride;
  void* target;
  int out_channels;  // of the target: padded, or planes
  Output output;

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
