// What the polyphase convolution and its weight gradient have in common: which points of a tile each phase reaches, the
// walk over tiles, and the way of a map's tiles to those points.
#pragma once
#include "../kernels.h"
#include "channels.h"
#include "simd.h"
#include "winograd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

constexpr int kParts = kBlock / kLanes;  // vectors a block of channels
constexpr int kTaps = 5;

// Floats between what belongs to one point and to the next, which begin in other cache sets so: they are met in turn.
constexpr int64_t kBetweenPoints = 16;

// Floats in an odd number of cache lines: rows so far apart spread over all cache sets.
static inline int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

// Points of a dimension that a phase's filter reaches: all, or all but the first or the last.
struct PointRange {
  int first, last;
};

template <int M>
static inline PointRange points_of(const uint8_t (&taps)[3]) {
  return {taps[0] ? 0 : 1, taps[2] ? kPoints<M> - 1 : kPoints<M> - 2};
}

// Which phases there are at each point of a tile, and where.
template <int R, int C>
struct Points {
  static constexpr int kCount = kPoints<R> * kPoints<C>;
  int8_t phases[kCount] = {};  // how many
  int8_t slot[4][kCount];      // the phase's number among them; -1: none

  explicit Points(const Phases& phase) {
    for (int p = 0; p < 4; ++p) {
      const PointRange rows = points_of<R>(phase.taps[p / 2]), columns = points_of<C>(phase.taps[p % 2]);
      for (int at = 0; at < kCount; ++at) {
        const int row = at / kPoints<C>, column = at % kPoints<C>;
        const bool there = rows.first <= row && row <= rows.last && columns.first <= column && column <= columns.last;
        slot[p][at] = there ? phases[at]++ : -1;
      }
    }
  }
};

// Which taps of the filter add up to each of a phase's.
struct FilterTaps {
  struct Sum {
    int8_t count = 0, taps[9] = {};
  };
  Sum of[4][9];  // [phase][3x3]

  explicit FilterTaps(const Phases& phases) {
    for (int p = 0; p < 4; ++p) {
      for (int t = 0; t < 9; ++t) {
        Sum& sum = of[p][t];
        for (int k = 0; k < kTaps * kTaps; ++k) {
          const bool reads = phases.taps[p / 2][t / 3] >> (k / kTaps) & 1;
          if (reads && phases.taps[p % 2][t % 3] >> (k % kTaps) & 1) sum.taps[sum.count++] = static_cast<int8_t>(k);
        }
      }
    }
  }
};

// A run of neighbouring tiles in one row of tiles.
struct Run {
  int64_t image, tile_row, tile_column, count;
  int64_t at;  // of its first tile, in the task
};

// A grid of outputs, or of one phase of them.
struct Grid {
  int64_t batch, rows, columns;
};

template <int R, int C>
static inline int64_t tiles_of(const Grid& grid) {
  return grid.batch * ceil_div(grid.rows, R) * ceil_div(grid.columns, C);
}

// Calls body(run) for the tiles first ... first + count.
template <int R, int C, typename Body>
static inline void for_each_run(const Grid& grid, int64_t first, int64_t count, Body body) {
  const int64_t tile_rows = ceil_div(grid.rows, R), tile_columns = ceil_div(grid.columns, C);
  for (int64_t at = 0; at < count;) {
    const int64_t tile = first + at, column = tile % tile_columns, row = tile / tile_columns;
    const Run run{row / tile_rows, row % tile_rows, column, min(tile_columns - column, count - at), at};
    body(run);
    at += run.count;
  }
}

// A strip of neighbouring tiles is transformed at once: all its columns, then each tile's rows of these. Neighbours
// share two columns, which are transformed once, and what waits in between stays in the first cache level.
constexpr int kStrip = 8;  // tiles

// What a vector of channels is read through: see Reading. Without one, as it is.
template <bool Activated>
struct Reader {
  Vec scale, shift, slope;

  Reader(const Reading& reading, int64_t channel) {
    if constexpr (Activated) {
      scale = load(reading.scale + channel);
      shift = load(reading.shift + channel);
      slope = broadcast(reading.slope);
    }
  }

  Vec operator()(const float* from) const {
    Vec x = load(from);
    if constexpr (Activated) {
      x = x * scale + shift;
      x = max(slope * x, x);
    }
    return x;
  }
};

// One vector of channels of one input phase, of a strip of tiles that begins at grid column `left`, to all points.
// Outside of the map is 0, whatever it is read through.
template <int R, int C, int Stride, bool Activated>
static inline void transform_strip(int64_t in_rows, int64_t in_columns, const Reader<Activated>& reader,
                                   const float* image, int64_t top, int64_t left, int64_t tiles, int row_phase,
                                   int column_phase, float* const* to, int64_t v_tile) {
  const int64_t first_column = Stride * left + column_phase, columns = tiles * C + 2;
  const float* rows[kPoints<R>];
  bool inside[kPoints<R>];
  for (int i = 0; i < kPoints<R>; ++i) {
    const int64_t row = Stride * (top + i) + row_phase;
    inside[i] = 0 <= row && row < in_rows;
    rows[i] = image + ((inside[i] ? row : 0) * in_columns + first_column) * kBlock;
  }
  Vec strip[kStrip * C + 2][kPoints<R>];
  const int64_t begin = first_column < 0 ? ceil_div(-first_column, Stride) : 0;
  const int64_t end = min(columns, max<int64_t>(begin, ceil_div(in_columns - first_column, Stride)));
  for (int64_t j = 0; j < begin; ++j) {
    for (int i = 0; i < kPoints<R>; ++i) strip[j][i] = Vec{};
  }
  for (int64_t j = begin; j < end; ++j) {
    Vec x[kPoints<R>];
    for (int i = 0; i < kPoints<R>; ++i) {
      x[i] = inside[i] ? reader(rows[i] + j * Stride * kBlock) : Vec{};
      __builtin_prefetch(rows[i] + (j + kStrip * C) * Stride * kBlock);
    }
    input_transform<R>(x, 1, strip[j], 1);
  }
  for (int64_t j = end; j < columns; ++j) {
    for (int i = 0; i < kPoints<R>; ++i) strip[j][i] = Vec{};
  }
  for (int64_t t = 0; t < tiles; ++t) {
    for (int i = 0; i < kPoints<R>; ++i) {
      Vec points[kPoints<C>];
      input_transform<C>(&strip[t * C][i], kPoints<R>, points, 1);
      float* const* row = to + i * kPoints<C>;
      if (!row[1]) continue;  // this phase does not reach the row
      if (row[0]) store(row[0] + t * v_tile, points[0]);
      for (int j = 1; j < kPoints<C> - 1; ++j) store(row[j] + t * v_tile, points[j]);
      if (row[kPoints<C> - 1]) store(row[kPoints<C> - 1] + t * v_tile, points[kPoints<C> - 1]);
    }
  }
}

// Calls body.operator()<R, C>() for a tile that there is.
template <typename Body>
static inline auto with_tile(int rows, int columns, Body body) {
  switch (10 * rows + columns) {
    case 44:
      return body.template operator()<4, 4>();
    case 42:
      return body.template operator()<4, 2>();
    case 24:
      return body.template operator()<2, 4>();
    case 22:
      return body.template operator()<2, 2>();
    default:
      return body.template operator()<1, 1>();
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
