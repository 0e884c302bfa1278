// What a filter reaches from pixels of a grid, as tiles of matrix products.
#pragma once
#include "channels.h"
#include "tiles.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

constexpr int kFilterSide = 5, kFilterTaps = kFilterSide * kFilterSide;
constexpr int kPhaseSide = 3, kPhaseTaps = kPhaseSide * kPhaseSide;  // of a phase of a transposed convolution

// Tiles' depth of so many blocks of channels: two blocks each.
static inline int64_t block_pairs(int64_t blocks) { return ceil_div(blocks, 2); }

// One or two maps of the same size, the one's blocks behind the other's.
struct Maps {
  const Bfloat16* map[2];
  int64_t blocks[2];
  int64_t rows, columns;

  int64_t all_blocks() const { return blocks[0] + blocks[1]; }
  int64_t pixels() const { return rows * columns; }
};

static inline Maps coarse_maps(const CoarseAndFine& maps, const Bfloat16* const (&coarse)[2]) {
  return {{coarse[0], coarse[1]},
          {blocks_of(maps.coarse_channels[0]), blocks_of(maps.coarse_channels[1])},
          maps.rows,
          maps.columns};
}
static inline Maps fine_map(const CoarseAndFine& maps, const Bfloat16* fine) {
  return {{fine, nullptr}, {blocks_of(maps.fine_channels), 0}, 2 * maps.rows, 2 * maps.columns};
}

static constexpr Bfloat16 kZeros[kBlock] = {};

// Up to sixteen neighbouring pixels of a grid, row by row and image by image.
struct Pixels {
  int64_t count, columns;
  int64_t image[kTileRows], row[kTileRows], column[kTileRows];  // past the last, they count on

  Pixels() = default;
  Pixels(const CoarseAndFine& maps, int64_t first)
      : count(max<int64_t>(0, min<int64_t>(kTileRows, maps.batch * maps.rows * maps.columns - first))),
        columns(maps.columns) {
    image[0] = first / (maps.rows * columns);
    row[0] = first / columns % maps.rows;
    column[0] = first % columns;
    for (int p = 1; p < kTileRows; ++p) {
      const bool next_row = column[p - 1] + 1 == columns, next_image = next_row && row[p - 1] + 1 == maps.rows;
      image[p] = image[p - 1] + next_image;
      row[p] = next_image ? 0 : row[p - 1] + next_row;
      column[p] = next_row ? 0 : column[p - 1] + 1;
    }
  }

  bool in_one_row() const { return columns % kTileRows == 0; }  // if they begin at a multiple of their number
};

// What pixels of a grid reach in maps: tap (i, j), of kTapsASide x kTapsASide, of a pixel (r, c) is the maps' pixel
// (kStride r + offset + i, kStride c + offset + j). Outside, and for pixels that there are not, there are zeros.
template <int kStride, int kTapsASide>
class Reach {
 public:
  Reach(const Maps& maps, const Pixels& grid, int64_t offset) : maps_(maps), grid_(grid), offset_(offset) {}

  // Calls body(tap, at) for each tap, where at(p) points to the channels of the block that pixel p reaches.
  template <typename Body>
  void for_each_tap(int64_t block, const Body& body) const {
    const bool second = block >= maps_.blocks[0];
    if (second) block -= maps_.blocks[0];
    const auto image = [&](int p) {
      return maps_.map[second] + (grid_.image[p] * maps_.blocks[second] + block) * maps_.pixels() * kBlock;
    };
    grid_.in_one_row() ? neighbours(image(0), body) : pixels(image, body);
  }

 private:
  // Of pixels in one row: what they reach is laid out once, with its margins.
  template <typename Body>
  void neighbours(const Bfloat16* image, const Body& body) const {
    constexpr int kColumns = kStride * (kTileRows - 1) + kTapsASide;
    alignas(64) Bfloat16 reached[kTapsASide][kColumns][kBlock];
    for (int i = 0; i < kTapsASide; ++i) {
      const int64_t row = kStride * grid_.row[0] + offset_ + i, left = kStride * grid_.column[0] + offset_;
      const bool inside = grid_.count > 0 && 0 <= row && row < maps_.rows;
      const int64_t begin = inside ? max<int64_t>(0, -left) : kColumns;
      const int64_t end = inside ? min<int64_t>(kColumns, maps_.columns - left) : kColumns;
      const Bfloat16* from = image + (row * maps_.columns + left) * kBlock;
      for (int64_t j = 0; j < kColumns; ++j) {
        Halves channels = {};
        if (begin <= j && j < end) read(channels, from + j * kBlock);
        write(reached[i][j], channels);
      }
    }
    for (int tap = 0; tap < kTapsASide * kTapsASide; ++tap) {
      const Bfloat16* first = reached[tap / kTapsASide][tap % kTapsASide];
      body(tap, [&](int p) { return first + p * kStride * kBlock; });
    }
  }

  // Of any pixels.
  template <typename Image, typename Body>
  void pixels(const Image& image, const Body& body) const {
    for (int tap = 0; tap < kTapsASide * kTapsASide; ++tap) {
      const Bfloat16* from[kTileRows];
      for (int p = 0; p < kTileRows; ++p) {
        const int64_t row = kStride * grid_.row[p] + offset_ + tap / kTapsASide;
        const int64_t column = kStride * grid_.column[p] + offset_ + tap % kTapsASide;
        const bool inside = p < grid_.count && 0 <= row && row < maps_.rows && 0 <= column && column < maps_.columns;
        from[p] = inside ? image(p) + (row * maps_.columns + column) * kBlock : kZeros;
      }
      body(tap, [&](int p) { return from[p]; });
    }
  }

  const Maps& maps_;
  const Pixels& grid_;
  int64_t offset_;
};

// What sixteen pixels reach as tiles of rows, [taps, pairs of blocks]; an odd block's other half is 0.
template <int kStride, int kTapsASide>
static inline void lay_out_rows(const Reach<kStride, kTapsASide>& reach, int64_t blocks, uint16_t* tiles) {
  const int64_t pairs = block_pairs(blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    const bool alone = block % 2 == 0 && block + 1 == blocks;
    reach.for_each_tap(block, [&](int tap, const auto& at) {
      uint16_t* const to = tiles + (tap * pairs + block / 2) * kTileSize + block % 2 * kBlock;
      for (int p = 0; p < kTileRows; ++p) {
        Halves channels;
        read(channels, at(p));
        write(to + p * kTileDepth, channels);
        if (alone) write(to + p * kTileDepth + kBlock, Halves{});
      }
    });
  }
}

// What pixels of a coarse grid reach in fine planes: for each channel and tap, k = 25 channel + tap, a vector
// of the pixels.
class PlanePatches {
 public:
  PlanePatches(const CoarseAndFine& maps, const float* planes)
      : maps_(maps), planes_(planes), rows_(2 * maps.rows), columns_(2 * maps.columns) {}

  int64_t size() const { return maps_.fine_channels * kFilterTaps; }

  // Calls body(k, values) for all k.
  template <typename Body>
  void for_each(const Pixels& grid, const Body& body) const {
    for (int64_t channel = 0; channel < maps_.fine_channels; ++channel) {
      for (int i = 0; i < kFilterSide; ++i) {
        const int k = static_cast<int>(channel) * kFilterTaps + i * kFilterSide;
        Floats values[kFilterSide];
        grid.in_one_row() ? neighbours(grid, channel, i, values) : pixels(grid, channel, i, values);
        for (int j = 0; j < kFilterSide; ++j) body(k + j, values[j]);
      }
    }
  }

 private:
  // Where row i of a pixel's taps begins, which may be outside, or null if there is no such row.
  const float* line(const Pixels& grid, int p, int64_t channel, int i, int64_t& column) const {
    const int64_t row = 2 * grid.row[p] + i - maps_.pad;
    column = 2 * grid.column[p] - maps_.pad;
    const bool inside = p < grid.count && 0 <= row && row < rows_;
    return inside ? planes_ + ((grid.image[p] * maps_.fine_channels + channel) * rows_ + row) * columns_ : nullptr;
  }

  // Of pixels in one row.
  void neighbours(const Pixels& grid, int64_t channel, int i, Floats (&values)[kFilterSide]) const {
    constexpr int64_t kReached = 2 * kTileRows + kFilterSide;
    float reached[kReached] = {};
    int64_t column;
    if (const float* from = line(grid, 0, channel, i, column)) {
      const int64_t begin = max<int64_t>(0, -column), end = min(kReached, columns_ - column);
      for (int64_t j = begin; j < end; ++j) reached[j] = from[column + j];
    }
    for (int j = 0; j < kFilterSide; ++j) {
      Floats low, high;
      read(low, reached + j);
      read(high, reached + j + kTileRows);
      values[j] = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    }
  }

  // Of any pixels.
  void pixels(const Pixels& grid, int64_t channel, int i, Floats (&values)[kFilterSide]) const {
    for (int p = 0; p < kTileRows; ++p) {
      int64_t column;
      const float* from = line(grid, p, channel, i, column);
      for (int j = 0; j < kFilterSide; ++j) {
        values[j][p] = from && 0 <= column + j && column + j < columns_ ? from[column + j] : 0.0f;
      }
    }
  }

  const CoarseAndFine& maps_;
  const float* planes_;
  int64_t rows_, columns_;
};

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
