// What a filter reaches from pixels of a grid, as tiles of matrix products.
#pragma once
#include "tiles.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

constexpr int kSide = 5, kTaps = kSide * kSide;                      // of the filter
constexpr int kPhaseSide = 3, kPhaseTaps = kPhaseSide * kPhaseSide;  // of a phase

static inline int64_t blocks_of(int64_t channels) { return ceil_div(channels, kBlock); }

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

static constexpr Bfloat16 kZeros[kBlock] = {};

// Sixteen pixels of a grid over maps, from `first` on, and what they reach: tap (i, j) of a pixel (r, c) is pixel
// (kStride r + i + offset, kStride c + j + offset) of the maps. Outside, and for pixels behind the last, there are
// zeros.
template <int kStride>
class Reach {
 public:
  Reach(const Maps& maps, int64_t batch, int64_t rows, int64_t columns, int64_t offset, int64_t first) : maps_(maps) {
    const int64_t all = batch * rows * columns;
    int64_t image = first / (rows * columns), row = first / columns % rows, column = first % columns;
    for (int i = 0; i < kTileRows; ++i) {
      there_[i] = first + i < all;
      image_[i] = image;
      row_[i] = kStride * row + offset;
      column_[i] = kStride * column + offset;
      if (++column == columns) {
        column = 0;
        if (++row == rows) {
          row = 0;
          ++image;
        }
      }
    }
  }

  // Where each pixel's tap (i, j) begins in a block of channels.
  void reach(int i, int j, int64_t block, const Bfloat16* (&to)[kTileRows]) const {
    const bool second = block >= maps_.blocks[0];
    if (second) block -= maps_.blocks[0];
    for (int p = 0; p < kTileRows; ++p) {
      const int64_t row = row_[p] + i, column = column_[p] + j;
      const bool inside = there_[p] && 0 <= row && row < maps_.rows && 0 <= column && column < maps_.columns;
      const int64_t of_image = image_[p] * maps_.blocks[second] + block;
      to[p] = inside ? maps_.map[second] + (of_image * maps_.pixels() + row * maps_.columns + column) * kBlock : kZeros;
    }
  }

  // A tile of rows: the pixels' tap in two blocks of channels, of which the second may be behind the last.
  void rows(int i, int j, int64_t pair, uint16_t* tile) const {
    for (int half = 0; half < 2; ++half) {
      const int64_t block = 2 * pair + half;
      const Bfloat16* from[kTileRows];
      if (block < maps_.all_blocks()) reach(i, j, block, from);
      for (int p = 0; p < kTileRows; ++p) {
        Halves channels = {};
        if (block < maps_.all_blocks()) read(channels, from[p]);
        write(tile + p * kTileDepth + half * kBlock, channels);
      }
    }
  }

 private:
  const Maps& maps_;
  bool there_[kTileRows];
  int64_t image_[kTileRows], row_[kTileRows], column_[kTileRows];
};

// What sixteen pixels of a coarse grid reach in fine planes: for each channel and tap, k = 25 channel + tap, a vector
// of the pixels.
class PlanePatches {
 public:
  PlanePatches(const CoarseAndFine& maps, const float* planes)
      : maps_(maps), planes_(planes), rows_(2 * maps.rows), columns_(2 * maps.columns) {}

  int64_t size() const { return maps_.fine_channels * kTaps; }

  // Calls body(k, values) for all k, of the pixels from `first` on.
  template <typename Body>
  void for_each(int64_t first, const Body& body) const {
    for (int64_t channel = 0; channel < maps_.fine_channels; ++channel) {
      for (int i = 0; i < kSide; ++i) {
        const int k = static_cast<int>(channel) * kTaps + i * kSide;
        Floats values[kSide];
        maps_.columns % kTileRows == 0 ? neighbours(first, channel, i, values) : pixels(first, channel, i, values);
        for (int j = 0; j < kSide; ++j) body(k + j, values[j]);
      }
    }
  }

 private:
  // Where a pixel's row of taps begins, which may be outside, or null if there is no such row.
  const float* line(int64_t pixel, int64_t channel, int i, int64_t& column) const {
    const int64_t image = pixel / (maps_.rows * maps_.columns);
    const int64_t row = 2 * (pixel / maps_.columns % maps_.rows) + i - maps_.pad;
    column = 2 * (pixel % maps_.columns) - maps_.pad;
    const bool inside = image < maps_.batch && 0 <= row && row < rows_;
    return inside ? planes_ + ((image * maps_.fine_channels + channel) * rows_ + row) * columns_ : nullptr;
  }

  // Of pixels that lie in one row.
  void neighbours(int64_t first, int64_t channel, int i, Floats (&values)[kSide]) const {
    constexpr int64_t kReached = 2 * kTileRows + kSide;
    float reached[kReached] = {};
    int64_t column;
    if (const float* from = line(first, channel, i, column)) {
      const int64_t begin = max<int64_t>(0, -column), end = min(kReached, columns_ - column);
      std::memcpy(reached + begin, from + column + begin, static_cast<size_t>(end - begin) * sizeof(float));
    }
    for (int j = 0; j < kSide; ++j) {
      Floats low, high;
      read(low, reached + j);
      read(high, reached + j + kTileRows);
      values[j] = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    }
  }

  // Of any pixels.
  void pixels(int64_t first, int64_t channel, int i, Floats (&values)[kSide]) const {
    for (int p = 0; p < kTileRows; ++p) {
      int64_t column;
      const float* from = line(first + p, channel, i, column);
      for (int j = 0; j < kSide; ++j) {
        values[j][p] = from && 0 <= column + j && column + j < columns_ ? from[column + j] : 0.0f;
      }
    }
  }

  const CoarseAndFine& maps_;
  const float* planes_;
  int64_t rows_, columns_;
};

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
