#include "parallel.h"
#include "patches.h"

// The gradient of a 5x5 filter of stride 2 between bfloat16 maps, or between such a map and float planes:
//
//     gradient[c, f, k] = sum over images and pixels m of coarse[c, m] fine[f, 2 m + k - pad]
//
// A product of matrices, of which the sum is over pixels: coarse channels by pixels (a), and pixels by what their
// filter reaches (b), of a block of fine channels for each tap, or of all channels' taps in planes. A task lays out
// both for a stretch of pixels after the other, and keeps its sums in a cache. Where there would be few tasks, parts of
// the pixels have tasks of their own, and their sums are added up in order; how many parts there are does not depend on
// the threads.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kStretchTiles = 16;    // tiles of 32 pixels that are laid out at once
constexpr int64_t kMaxCoarseBlocks = 8;  // of a task
constexpr int64_t kMinTasks = 16;
constexpr int64_t kSums = kTileRows * kTileRows;  // of a tile

struct Cut {
  int64_t columns;               // tiles of b of a task: of a tap each, or of 16 taps of planes
  int64_t fine_blocks;           // each has tasks of its own
  int64_t rows, groups, a_task;  // tiles of a, in groups of so many
  int64_t stretches, parts;      // of pixels
  int64_t tasks;

  explicit Cut(const Bfloat16WeightGradient& a) {
    const CoarseAndFine& maps = a.maps;
    columns = a.fine ? kFilterTaps : ceil_div(maps.fine_channels * kFilterTaps, kTileRows);
    fine_blocks = a.fine ? blocks_of(maps.fine_channels) : 1;
    rows = blocks_of(maps.coarse_channels);
    groups = ceil_div(rows, kMaxCoarseBlocks);
    a_task = ceil_div(rows, groups);
    stretches = ceil_div(maps.batch * maps.rows * maps.columns, kStretchTiles * kTileDepth);
    parts = min(stretches, ceil_div(kMinTasks, groups * fine_blocks));
    tasks = groups * fine_blocks * parts;
  }

  int64_t sums() const { return a_task * columns * kSums; }
  int64_t panels() const { return (a_task + columns) * kStretchTiles * kTileSize; }
};

// Scratch memory: sums of each task if there are parts, else of each thread; and then each thread's a and b.
struct Scratch {
  float* sums;
  uint16_t *a, *b;

  Scratch(const Bfloat16WeightGradient& args, const Cut& cut, int64_t task, int64_t thread) {
    auto* const all = static_cast<float*>(args.scratch);
    sums = all + (cut.parts > 1 ? task : thread) * cut.sums();
    const int64_t of_sums = (cut.parts > 1 ? cut.tasks : args.threads) * cut.sums();
    a = reinterpret_cast<uint16_t*>(all + of_sums) + thread * cut.panels();
    b = a + cut.a_task * kStretchTiles * kTileSize;
  }
  static int64_t size(const Bfloat16WeightGradient& args, const Cut& cut) {
    const auto of_sums = (cut.parts > 1 ? cut.tasks : args.threads) * cut.sums() * static_cast<int64_t>(sizeof(float));
    return of_sums + args.threads * cut.panels() * static_cast<int64_t>(sizeof(uint16_t));
  }
};

// Sixteen pixels of a block of channels, in pairs: a row for each pair.
template <typename At>
void pair_pixels(const At& at, Pairs* rows) {
  for (int i = 0; i < kTileRows / 2; ++i) {
    Halves first, second;
    read(first, at(2 * i));
    read(second, at(2 * i + 1));
    pair_up(rows[i], first, second);
  }
}

void store_tile(uint16_t* tile, const Pairs (&rows)[kPairs]) {
  for (int i = 0; i < kPairs; ++i) write(tile + i * kTileDepth, rows[i]);
}

class Task {
 public:
  Task(const Bfloat16WeightGradient& a, const Cut& cut, int64_t task, int64_t thread)
      : a_(a),
        cut_(cut),
        part_(task % cut.parts),
        fine_block_(task / cut.parts % cut.fine_blocks),
        first_row_(task / cut.parts / cut.fine_blocks * cut.a_task),
        rows_(min(cut.a_task, cut.rows - first_row_)),
        scratch_(a, cut, task, thread) {}

  void sum() const {
    const Tiles unit;
    const int64_t begin = cut_.stretches * part_ / cut_.parts, end = cut_.stretches * (part_ + 1) / cut_.parts;
    for (int64_t stretch = begin; stretch < end; ++stretch) {
      const int64_t first = stretch * kStretchTiles * kTileDepth;
      const int64_t depth = min(kStretchTiles, ceil_div(pixels() - first, kTileDepth));
      for (int64_t k = 0; k < depth; ++k) lay_out(first + k * kTileDepth, k);
      constexpr int kAll[] = {0};
      for (int64_t column = 0; column < cut_.columns; column += 2) {
        const int columns = column + 1 < cut_.columns ? 2 : 1;
        for (int64_t row = 0; row < rows_; row += 2) {
          const int rows = row + 1 < rows_ ? 2 : 1;
          unit.multiply({.a = {a_tile(row, 0), a_tile(row + 1, 0)},
                         .b = {b_tile(column, 0), b_tile(column + 1, 0)},
                         .runs = kAll,
                         .run_count = 1,
                         .run = depth,
                         .to = {{sums_of(row, column), sums_of(row, column + 1)},
                                {sums_of(row + 1, column), sums_of(row + 1, column + 1)}},
                         .add = stretch > begin},
                        rows, columns);
        }
      }
    }
  }

  // One coarse channel's sums of all parts, of which this is the first, to the gradient.
  void finish_channel(int64_t row, int64_t lane) const {
    const CoarseAndFine& maps = a_.maps;
    const int64_t channel = channel_at(maps.coarse_channels, (first_row_ + row) * kBlock + lane);
    if (channel < 0) return;
    float sums[kFilterTaps][kTileRows];
    for (int64_t column = 0; column < cut_.columns; ++column) {
      Floats sum = {};
      for (int64_t part = 0; part < cut_.parts; ++part) {
        Floats of_part;
        read(of_part, sums_of(row, column) + part * cut_.sums() + lane * kTileRows);
        sum = part == 0 ? of_part : sum + of_part;
      }
      if (a_.fine) {
        write(sums[column], sum);
      } else {
        const int64_t all = maps.fine_channels * kFilterTaps, at = column * kTileRows;
        std::memcpy(a_.gradient + channel * all + at, &sum,
                    static_cast<size_t>(min<int64_t>(kTileRows, all - at)) * sizeof(float));
      }
    }
    if (!a_.fine) return;
    float* to = a_.gradient + (channel * maps.fine_channels + fine_block_ * kBlock) * kFilterTaps;
    for (int64_t fine = 0; fine < min<int64_t>(kBlock, maps.fine_channels - fine_block_ * kBlock); ++fine) {
      for (int tap = 0; tap < kFilterTaps; ++tap) *to++ = sums[tap][fine];
    }
  }

  int64_t rows() const { return rows_; }

 private:
  int64_t pixels() const { return a_.maps.batch * a_.maps.rows * a_.maps.columns; }
  uint16_t* a_tile(int64_t row, int64_t k) const { return scratch_.a + (row * kStretchTiles + k) * kTileSize; }
  uint16_t* b_tile(int64_t column, int64_t k) const { return scratch_.b + (column * kStretchTiles + k) * kTileSize; }
  float* sums_of(int64_t row, int64_t column) const { return scratch_.sums + (row * cut_.columns + column) * kSums; }

  // Pixels first ... first + 31, as tile k of the stretch.
  void lay_out(int64_t first, int64_t k) const {
    const CoarseAndFine& maps = a_.maps;
    const Maps coarse = coarse_maps(maps, a_.coarse);
    const Pixels grid[2] = {{maps, first}, {maps, first + kTileRows}};
    for (int64_t row = 0; row < rows_; ++row) {
      Pairs rows[kPairs];
      for (int half = 0; half < 2; ++half) {
        const Reach<1, 1> reach(coarse, grid[half], 0);
        reach.for_each_tap(first_row_ + row,
                           [&](int, const auto& at) { pair_pixels(at, rows + half * kTileRows / 2); });
      }
      transpose(rows);
      store_tile(a_tile(row, k), rows);
    }
    if (!a_.fine) return lay_out_planes(grid, k);
    const Maps fine = fine_map(maps, a_.fine);
    for (int half = 0; half < 2; ++half) {
      const Reach<2, kFilterSide> reach(fine, grid[half], -maps.pad);
      reach.for_each_tap(fine_block_, [&](int tap, const auto& at) {
        Pairs rows[kTileRows / 2];
        pair_pixels(at, rows);
        for (int i = 0; i < kTileRows / 2; ++i) {
          write(b_tile(tap, k) + (half * kTileRows / 2 + i) * kTileDepth, rows[i]);
        }
      });
    }
  }

  void lay_out_planes(const Pixels (&grid)[2], int64_t k) const {
    const PlanePatches patches(a_.maps, a_.planes);
    for (int half = 0; half < 2; ++half) {
      patches.for_each(grid[half], [&](int64_t column, const Floats& values) {
        Pairs bits;
        round_to_bfloat16(bits, values);
        // a row for each column yet
        write(b_tile(column / kTileRows, k) + column % kTileRows * kTileDepth + half * kTileRows,
              __builtin_convertvector(bits, Halves));
      });
    }
    for (int64_t column = 0; column < cut_.columns; ++column) {
      Pairs rows[kPairs];
      for (int i = 0; i < kPairs; ++i) {
        const bool there = column * kTileRows + i < patches.size();
        rows[i] = Pairs{};
        if (there) read(rows[i], b_tile(column, k) + i * kTileDepth);
      }
      transpose(rows);
      store_tile(b_tile(column, k), rows);
    }
  }

  const Bfloat16WeightGradient& a_;
  const Cut& cut_;
  int64_t part_, fine_block_, first_row_, rows_;
  Scratch scratch_;
};

}  // namespace

int64_t bfloat16_weight_gradient_scratch_size(const Bfloat16WeightGradient& a) { return Scratch::size(a, Cut(a)); }

void bfloat16_weight_gradient(const Bfloat16WeightGradient& a) {
  const Cut cut(a);
  const auto finish = [&](const Task& task) {
    for (int64_t row = 0; row < task.rows(); ++row) {
      for (int64_t lane = 0; lane < kBlock; ++lane) task.finish_channel(row, lane);
    }
  };
  parallel_tasks(cut.tasks, a.threads, [&](int64_t number, int64_t thread) {
    const Task task(a, cut, number, thread);
    task.sum();
    if (cut.parts == 1) finish(task);
  });
  if (cut.parts == 1) return;
  parallel_tasks(cut.tasks / cut.parts, a.threads,
                 [&](int64_t number, int64_t thread) { finish(Task(a, cut, number * cut.parts, thread)); });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
