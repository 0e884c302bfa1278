#include "../kernels.h"
#include "gemm.h"
#include "parallel.h"
#include "polyphase.h"

// The gradient of a 5x5 filter of stride 2, from the two maps that it lies between: the coarse one, and the fine one of
// twice its size.
//
//     gradient[c, f, k] = sum over images and pixels m of coarse[c, m] fine[f, 2 m + k - pad]
//
// For a strided convolution the coarse map is the gradient of its output, for a transposed one it is the input.
//
// Each phase of the fine map has its own taps, at most 3x3, and each of them is a correlation of the phase with the
// coarse map: a minimal filter whose taps are tiles of R x C coarse pixels and whose outputs are the filter's taps (see
// winograd.h). Both maps' tiles are transformed to (R + 2) x (C + 2) points; at each point the gradient of all pairs of
// channels is a matrix product [coarse channels, tiles] x [tiles, fine channels], with tiles to sum over; and only the
// sums are transformed back. With 4x4 tiles, that is 121 multiplications for a tile instead of 400.
//
// Tiles are taken in chunks, whose transforms (u and v) stay in the caches, and so do the sums (m) of small layers.
// Large layers have few tiles, hence one chunk: there a task makes the sums of some coarse channels alone, and
// transforms them back before it goes on. Bound by the multiply-adds.
//
// Sums are taken in the order of the tiles, however the work is shared.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kChunkFloats = 1 << 19;           // of u and v
constexpr int64_t kMinChunk = 64, kMaxChunk = 512;  // tiles
constexpr int64_t kTaskRows = 32;                   // coarse channels of a task
constexpr int64_t kLargeSums = 1 << 19;             // floats that do not stay in a cache

int64_t coarse_blocks(const WeightGradient& a) { return blocks_of(a.coarse_channels); }

// Distances in the scratch memory. An odd number of cache lines spreads tiles over all cache sets.
template <int R, int C>
struct GradientLayout {
  static constexpr int kCount = kPoints<R> * kPoints<C>;
  int64_t coarse, fine;  // channels with padding
  int64_t tiles;         // of a chunk
  bool apart;            // each task has sums of its own, of kTaskRows coarse channels
  int64_t u_tile, u_point, v_tile, v_point, v_start, m_start, m_size;
  int64_t m_point[kCount];  // where a point's sums begin

  GradientLayout(const WeightGradient& a, const Points<R, C>& points)
      : coarse(coarse_blocks(a) * kBlock), fine(blocks_of(a.fine_channels) * kBlock) {
    u_tile = odd_lines(coarse);
    v_tile = odd_lines(4 * fine);
    const int64_t wanted = min(max(kChunkFloats / (kCount * (u_tile + v_tile)), kMinChunk), kMaxChunk);
    const int64_t all = tiles_of<R, C>({a.batch, a.rows, a.columns});
    tiles = ceil_div(all, ceil_div(all, wanted));
    u_point = odd_lines(u_tile * tiles);
    v_point = odd_lines(v_tile * tiles);
    v_start = u_point * kCount;
    m_start = v_start + v_point * kCount;
    place_sums(points, coarse);
    apart = tiles >= all && m_size >= kLargeSums;
    if (apart) place_sums(points, kTaskRows);
  }

  int64_t size(int64_t threads) const { return m_start + (apart ? threads : 1) * m_size; }

 private:
  void place_sums(const Points<R, C>& points, int64_t rows) {
    m_size = 0;
    for (int at = 0; at < kCount; ++at) {
      m_point[at] = m_size;
      m_size += points.phases[at] * rows * fine + kBetweenPoints;
    }
  }
};

// One block of coarse channels of a run of tiles, to all points.
template <int R, int C>
void transform_coarse(const WeightGradient& a, const GradientLayout<R, C>& layout, const Run& run, int64_t block) {
  const int64_t first_blocks = blocks_of(a.coarse_channels[0]);
  const bool second = block >= first_blocks;
  const int64_t block_of_image = run.image * blocks_of(a.coarse_channels[second]) + block - second * first_blocks;
  const float* image = a.coarse[second] + block_of_image * a.rows * a.columns * kBlock;
  for (int part = 0; part < kParts; ++part) {
    for (int64_t t = 0; t < run.count; ++t) {
      const int64_t top = run.tile_row * R, left = (run.tile_column + t) * C;
      const int64_t rows = min<int64_t>(R, a.rows - top), columns = min<int64_t>(C, a.columns - left);
      Vec half[C][kPoints<R>];
      for (int j = 0; j < C; ++j) {
        Vec y[R];
        for (int i = 0; i < R; ++i) {
          const bool inside = i < rows && j < columns;
          y[i] = inside ? load(image + ((top + i) * a.columns + left + j) * kBlock + part * kLanes) : Vec{};
        }
        gradient_transform<R>(y, 1, half[j], 1);
      }
      float* to = a.scratch + (run.at + t) * layout.u_tile + block * kBlock + part * kLanes;
      for (int i = 0; i < kPoints<R>; ++i) {
        Vec points[kPoints<C>];
        gradient_transform<C>(&half[0][i], kPoints<R>, points, 1);
        for (int j = 0; j < kPoints<C>; ++j) store(to + (i * kPoints<C> + j) * layout.u_point, points[j]);
      }
    }
  }
}

// One block of fine channels of a run of tiles, all phases, to the points that each of them reaches.
template <int R, int C>
void transform_fine(const WeightGradient& a, const Points<R, C>& points, const GradientLayout<R, C>& layout,
                    const Run& run, int64_t block) {
  const float* image =
      a.fine + (run.image * blocks_of(a.fine_channels) + block) * a.fine_rows * a.fine_columns * kBlock;
  for (int64_t t = 0; t < run.count; t += kStrip) {
    for (int phase = 0; phase < 4; ++phase) {
      for (int part = 0; part < kParts; ++part) {
        float* to[Points<R, C>::kCount];
        for (int at = 0; at < points.kCount; ++at) {
          const int slot = points.slot[phase][at];
          to[at] = slot < 0 ? nullptr
                            : a.scratch + layout.v_start + at * layout.v_point + (run.at + t) * layout.v_tile +
                                  slot * layout.fine + block * kBlock + part * kLanes;
        }
        transform_strip<R, C, 2>(a.fine_rows, a.fine_columns, Reader<false>({}, 0), image + part * kLanes,
                                 run.tile_row * R - 1, (run.tile_column + t) * C - 1,
                                 min<int64_t>(kStrip, run.count - t), phase / 2, phase % 2, to, layout.v_tile);
      }
    }
  }
}

// The products of one chunk at one point, of some rows of coarse channels, to sums that begin with the first of them;
// added to those of the chunks before.
template <int R, int C>
void multiply(const WeightGradient& a, const Points<R, C>& points, const GradientLayout<R, C>& layout, int at,
              int64_t first_row, int64_t rows, int64_t tiles, bool add, float* m) {
  const int vectors = static_cast<int>(points.phases[at] * layout.fine / kLanes);
  const int64_t m_stride = points.phases[at] * layout.fine, groups = ceil_div(rows, kMaxRows);
  const float* u = a.scratch + at * layout.u_point + first_row;
  const float* v = a.scratch + layout.v_start + at * layout.v_point;
  m += layout.m_point[at];
  for (int vector = 0; vector < vectors; vector += 2) {
    const OuterPanel* panels = vector + 1 < vectors ? (add ? outer_panels<2, true> : outer_panels<2, false>)
                                                    : (add ? outer_panels<1, true> : outer_panels<1, false>);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = rows * group / groups, end = rows * (group + 1) / groups;
      panels[end - begin - 1](u + begin, layout.u_tile, v + vector * kLanes, layout.v_tile, tiles,
                              m + begin * m_stride + vector * kLanes, m_stride);
    }
  }
}

// The sums of one coarse channel, back to taps; `row` is where they lie in m.
template <int R, int C>
void transform_sums(const WeightGradient& a, const Points<R, C>& points, const FilterTaps& filter_taps,
                    const GradientLayout<R, C>& layout, int64_t channel, int64_t row, const float* sums_of_rows) {
  for (int64_t first = 0; first < a.fine_channels; first += kLanes) {
    Vec sums[kTaps * kTaps] = {};
    for (int phase = 0; phase < 4; ++phase) {
      Vec half[3][kPoints<C>], taps[3][3];
      for (int j = 0; j < kPoints<C>; ++j) {
        Vec m[kPoints<R>], w[3];
        for (int i = 0; i < kPoints<R>; ++i) {
          const int at = i * kPoints<C> + j, slot = points.slot[phase][at];
          const float* from =
              sums_of_rows + layout.m_point[at] + (row * points.phases[at] + slot) * layout.fine + first;
          m[i] = slot < 0 ? Vec{} : load(from);
        }
        tap_transform<R>(m, 1, w, 1);
        for (int t = 0; t < 3; ++t) half[t][j] = w[t];
      }
      for (int t = 0; t < 3; ++t) tap_transform<C>(half[t], 1, taps[t], 1);
      for (int t = 0; t < 9; ++t) {
        const FilterTaps::Sum& sum = filter_taps.of[phase][t];
        for (int i = 0; i < sum.count; ++i) sums[sum.taps[i]] += taps[t / 3][t % 3];
      }
    }
    float lanes[kTaps * kTaps][kLanes];
    for (int k = 0; k < kTaps * kTaps; ++k) store(lanes[k], sums[k]);
    float* to = a.gradient + (channel * a.fine_channels + first) * kTaps * kTaps;
    for (int64_t lane = 0; lane < min<int64_t>(kLanes, a.fine_channels - first); ++lane) {
      for (int k = 0; k < kTaps * kTaps; ++k) *to++ = lanes[k][lane];
    }
  }
}

template <int R, int C>
void run(const WeightGradient& a) {
  const Points<R, C> points(a.phases);
  const FilterTaps filter_taps(a.phases);
  const GradientLayout<R, C> layout(a, points);
  const Grid grid{a.batch, a.rows, a.columns};
  const int64_t first_fine = coarse_blocks(a), blocks = first_fine + blocks_of(a.fine_channels);
  const int64_t all = tiles_of<R, C>(grid);
  constexpr int64_t kTilesATask = 2 * kStrip;
  float* const m = a.scratch + layout.m_start;
  for (int64_t first = 0; first < all; first += layout.tiles) {
    const int64_t tiles = min(layout.tiles, all - first);
    parallel_tasks(ceil_div(tiles, kTilesATask) * blocks, a.threads, [&](int64_t task, int64_t) {
      const int64_t begin = task / blocks * kTilesATask, block = task % blocks;
      for_each_run<R, C>(grid, first + begin, min(kTilesATask, tiles - begin), [&](Run tile_run) {
        tile_run.at += begin;
        if (block < first_fine) {
          transform_coarse(a, layout, tile_run, block);
        } else {
          transform_fine(a, points, layout, tile_run, block - first_fine);
        }
      });
    });
    if (layout.apart) break;
    const int64_t row_tasks = ceil_div(layout.coarse, kTaskRows);
    parallel_tasks(points.kCount * row_tasks, a.threads, [&](int64_t task, int64_t) {
      const int at = static_cast<int>(task / row_tasks);
      const int64_t row = task % row_tasks * kTaskRows;
      multiply(a, points, layout, at, row, min(kTaskRows, layout.coarse - row), tiles, first > 0,
               m + row * points.phases[at] * layout.fine);
    });
  }
  if (layout.apart) {
    parallel_tasks(ceil_div(layout.coarse, kTaskRows), a.threads, [&](int64_t task, int64_t thread) {
      float* const own = m + thread * layout.m_size;
      const int64_t begin = task * kTaskRows, rows = min(kTaskRows, layout.coarse - begin);
      for (int at = 0; at < points.kCount; ++at) multiply(a, points, layout, at, begin, rows, all, false, own);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t channel = channel_at(a.coarse_channels, begin + row);
        if (channel >= 0) transform_sums(a, points, filter_taps, layout, channel, row, own);
      }
    });
    return;
  }
  parallel_tasks(layout.coarse, a.threads, [&](int64_t row, int64_t) {
    const int64_t channel = channel_at(a.coarse_channels, row);
    if (channel >= 0) transform_sums(a, points, filter_taps, layout, channel, row, m);
  });
}

}  // namespace

int64_t weight_gradient_scratch_size(const WeightGradient& args) {
  return with_tile(args.tile_rows, args.tile_columns, [&]<int R, int C>() {
    return GradientLayout<R, C>(args, Points<R, C>(args.phases)).size(args.threads);
  });
}

void weight_gradient(const WeightGradient& args) {
  with_tile(args.tile_rows, args.tile_columns, [&]<int R, int C>() { run<R, C>(args); });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
