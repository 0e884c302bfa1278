#include "parallel.h"
#include "patches.h"

// The strided and the transposed convolution of bfloat16 maps: products of matrices, pixels by what their filter
// reaches and that by channels.
//
// What a few tiles of pixels reach is laid out (a) as tiles, one for each tap and pair of blocks of channels, and so
// are the weights (b), for each block of channels that is made. A transposed convolution makes each of its four phases
// from the pixels' 3x3 neighbours, of which every phase takes its taps. Bound by what is not the product: laying out,
// and reading weights from memory where there are many.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kPanelTiles = 1024;  // of a, which should stay in the second cache level
constexpr int64_t kMaxRowTiles = 16;   // of pixels

// How the work is cut: tasks make some tiles of pixels for some blocks of channels.
struct Cut {
  int64_t tiles;                 // of pixels
  int64_t row_tiles, row_tasks;  // of a task; how many there are
  int64_t groups;                // of blocks of channels
  int64_t depth, panel;          // tiles of a: of a tile of pixels, and of a task

  Cut(const CoarseAndFine& maps, int64_t depth, int64_t blocks, int64_t threads)
      : tiles(ceil_div(maps.batch * maps.rows * maps.columns, kTileRows)), depth(depth) {
    row_tiles = min(min(max<int64_t>(2, kPanelTiles / depth / 2 * 2), kMaxRowTiles), tiles);
    row_tasks = ceil_div(tiles, row_tiles);
    groups = min(blocks, ceil_div(4 * threads, row_tasks));
    panel = row_tiles * depth;
  }
};

// Scratch memory: b, then each thread's a.
int64_t scratch_size(int64_t b_tiles, const Cut& cut, int64_t threads) {
  return (b_tiles + threads * cut.panel) * kTileSize * static_cast<int64_t>(sizeof(uint16_t));
}

// Some tiles of pixels, laid out, that some blocks of channels are made of.
struct Panel {
  const uint16_t* a;
  int64_t depth, tiles;
  Pixels grid[kMaxRowTiles];
  int64_t first_block, last_block;

  // Calls store(block, pixels, sums) for each block and tile of pixels. The tiles of b for a block are b_depth, and
  // meet those of a's runs.
  template <typename Store>
  void multiply(const uint16_t* b, int64_t b_depth, const int* runs, int64_t run_count, const Store& store) const {
    const Tiles unit;
    for (int64_t block = first_block; block < last_block; block += 2) {
      const int columns = block + 1 < last_block ? 2 : 1;
      for (int64_t tile = 0; tile < tiles; tile += 2) {
        const int rows = tile + 1 < tiles ? 2 : 1;
        alignas(64) float sums[2][2][kTileRows * kBlock];
        const uint16_t* const from[2] = {a + tile * depth * kTileSize, b + block * b_depth * kTileSize};
        unit.multiply({.a = {from[0], from[0] + depth * kTileSize},
                       .b = {from[1], from[1] + b_depth * kTileSize},
                       .runs = runs,
                       .run_count = run_count,
                       .run = b_depth / run_count,
                       .to = {{sums[0][0], sums[0][1]}, {sums[1][0], sums[1][1]}},
                       .add = false},
                      rows, columns);
        for (int m = 0; m < rows; ++m) {
          for (int n = 0; n < columns; ++n) store(block + n, grid[tile + m], sums[m][n]);
        }
      }
    }
  }
};

// Calls lay_out(pixels, tiles of a) for the pixels of each task, and make(panel) for what comes of it.
template <typename LayOut, typename Make>
void for_each_panel(const CoarseAndFine& maps, const Cut& cut, int64_t blocks, uint16_t* panels, int64_t threads,
                    const LayOut& lay_out, const Make& make) {
  parallel_tasks(cut.row_tasks * cut.groups, threads, [&](int64_t task, int64_t thread) {
    uint16_t* const a = panels + thread * cut.panel * kTileSize;
    const int64_t first_tile = task / cut.groups * cut.row_tiles, group = task % cut.groups;
    Panel panel{.a = a,
                .depth = cut.depth,
                .tiles = min(cut.row_tiles, cut.tiles - first_tile),
                .grid = {},
                .first_block = blocks * group / cut.groups,
                .last_block = blocks * (group + 1) / cut.groups};
    for (int64_t tile = 0; tile < panel.tiles; ++tile) {
      panel.grid[tile] = Pixels(maps, (first_tile + tile) * kTileRows);
      lay_out(panel.grid[tile], a + tile * cut.depth * kTileSize);
    }
    make(panel);
  });
}

// Of a block of channels; 0 behind the last.
class Bias {
 public:
  Bias(const float* bias, int64_t block, int64_t channels) : values_{} {
    for (int64_t c = block * kBlock; bias && c < min((block + 1) * kBlock, channels); ++c)
      values_[c % kBlock] = bias[c];
  }
  void add(Floats& sums) const { sums += values_; }

 private:
  Floats values_;
};

void store_channels(Bfloat16* to, const Floats& sums) {
  Pairs bits;
  round_to_bfloat16(bits, sums);
  write(to, __builtin_convertvector(bits, Halves));
}

// A filter's taps in two vectors, which overlap.
constexpr int kHalves[] = {0, kFilterTaps - kPairs};

// ---- strided

int64_t depth_of(const Bfloat16Convolution& a) {
  const int64_t fine = a.maps.fine_channels;
  return a.fine ? kFilterTaps * block_pairs(blocks_of(fine)) : ceil_div(fine * kFilterTaps, kTileDepth);
}

Cut cut_of(const Bfloat16Convolution& a) {
  const CoarseAndFine& maps = a.maps;
  return {maps, depth_of(a), blocks_of(maps.coarse_channels[0]), a.threads};
}

// One block of output channels: from [out, in, 5, 5], in tiles of a tap of 32 input channels.
void pack_block(const Bfloat16Convolution& a, int64_t block, int64_t pair, uint16_t* b) {
  const int64_t in = a.maps.fine_channels, out = a.maps.coarse_channels[0], pairs = block_pairs(blocks_of(in));
  uint32_t packed[kBlock][kPairs * kFilterTaps];  // of each output: pairs of inputs, taps
  for (int n = 0; n < kBlock; ++n) {
    for (int i = 0; i < kPairs; ++i) {
      const int64_t channel = pair * kTileDepth + 2 * i, row = block * kBlock + n;
      float taps[2][kFilterTaps] = {};
      for (int64_t c = channel; c < min(channel + 2, in) && row < out; ++c) {
        std::memcpy(taps[c - channel], a.weight + (row * in + c) * kFilterTaps, sizeof taps[0]);
      }
      for (const int first : kHalves) {
        Floats one, other;
        Pairs both;
        read(one, taps[0] + first);
        read(other, taps[1] + first);
        pair_up(both, one, other);
        write(packed[n] + i * kFilterTaps + first, both);
      }
    }
  }
  for (int k = 0; k < kPairs * kFilterTaps; k += kPairs) {
    Pairs rows[kBlock];
    for (int n = 0; n < kBlock; ++n) read(rows[n], packed[n] + k);
    transpose(rows);
    for (int j = 0; j < kPairs; ++j) {
      const int i = (k + j) / kFilterTaps, tap = (k + j) % kFilterTaps;
      write(b + (tap * pairs + pair) * kTileSize + i * kTileDepth, rows[j]);
    }
  }
}

// The same of planes: their taps are neighbours of the sum.
void pack_planes(const Bfloat16Convolution& a, int64_t block, int64_t depth, uint16_t* b) {
  const int64_t in = a.maps.fine_channels * kFilterTaps, out = a.maps.coarse_channels[0];
  for (int64_t pair = 0; pair < depth * kPairs; ++pair) {
    Floats values[2] = {};
    for (int64_t n = 0; n < min<int64_t>(kBlock, out - block * kBlock); ++n) {
      for (int i = 0; i < 2 && 2 * pair + i < in; ++i) {
        values[i][n] = a.weight[(block * kBlock + n) * in + 2 * pair + i];
      }
    }
    Pairs both;
    pair_up(both, values[0], values[1]);
    write(b + pair * kTileDepth, both);
  }
}

// What sixteen pixels reach, as tiles.
void lay_out(const Bfloat16Convolution& a, const Pixels& grid, uint16_t* to) {
  const CoarseAndFine& maps = a.maps;
  if (a.fine) {
    const Maps fine = fine_map(maps, a.fine);
    const Reach<2, kFilterSide> reach(fine, grid, -maps.pad);
    lay_out_rows(reach, fine.blocks[0], to);
    return;
  }
  const PlanePatches patches(maps, a.planes);
  Floats before = {};
  Pairs rows[kPairs] = {};
  const auto take = [&](int64_t k, const Floats& values) {
    if (k % 2 == 0) {
      before = values;
      return;
    }
    pair_up(rows[k % kTileDepth / 2], before, values);
    if (k % kTileDepth != kTileDepth - 1) return;
    transpose(rows);
    for (int p = 0; p < kTileRows; ++p) write(to + p * kTileDepth, rows[p]);
    to += kTileSize;
  };
  patches.for_each(grid, take);
  for (int64_t k = patches.size(); k % kTileDepth; ++k) take(k, Floats{});
}

void store_block(const Bfloat16Convolution& a, int64_t block, const Pixels& grid, const float* sums) {
  const CoarseAndFine& maps = a.maps;
  const int64_t blocks = blocks_of(maps.coarse_channels[0]);
  const Bias bias(a.bias, block, maps.coarse_channels[0]);
  for (int p = 0; p < grid.count; ++p) {
    const int64_t row = (grid.image[p] * blocks + block) * maps.rows + grid.row[p];
    Floats of_pixel;
    read(of_pixel, sums + p * kBlock);
    bias.add(of_pixel);
    store_channels(a.coarse + (row * maps.columns + grid.column[p]) * kBlock, of_pixel);
  }
}

// ---- transposed

// The taps of each phase of the output.
struct PhaseTaps {
  int count[4] = {};
  int place[4][kPhaseTaps];  // among the pixel's 3x3 neighbours
  int phase_of[kFilterTaps], number_of[kFilterTaps];

  explicit PhaseTaps(const Phases& phases) {
    for (int phase = 0; phase < 4; ++phase) {
      for (int at = 0; at < kPhaseTaps; ++at) {
        const int rows = phases.taps[phase / 2][at / kPhaseSide], columns = phases.taps[phase % 2][at % kPhaseSide];
        if (!rows || !columns) continue;
        const int tap = __builtin_ctz(rows) * kFilterSide + __builtin_ctz(columns);
        phase_of[tap] = phase;
        number_of[tap] = count[phase];
        place[phase][count[phase]++] = at;
      }
    }
  }
};

// Tiles of b before a block of channels of a phase.
int64_t b_start(const PhaseTaps& taps, int64_t pairs, int64_t blocks, int phase, int64_t block) {
  int64_t before = 0;
  for (int p = 0; p < phase; ++p) before += taps.count[p] * blocks;
  return (before + taps.count[phase] * block) * pairs;
}

Cut cut_of(const Bfloat16Upconvolution& a) {
  const CoarseAndFine& maps = a.maps;
  return {maps, kPhaseTaps * block_pairs(blocks_of(maps.coarse_channels)), blocks_of(maps.fine_channels), a.threads};
}

// One block of output channels: from [in, out, 5, 5], in tiles of a tap of 32 input channels.
void pack_block(const Bfloat16Upconvolution& a, const PhaseTaps& taps, int64_t block, int64_t pair, uint16_t* b) {
  const int64_t out = a.maps.fine_channels, pairs = block_pairs(blocks_of(a.maps.coarse_channels));
  uint16_t* tiles[kFilterTaps];
  for (int tap = 0; tap < kFilterTaps; ++tap) {
    const int64_t start = b_start(taps, pairs, blocks_of(out), taps.phase_of[tap], block);
    tiles[tap] = b + (start + taps.number_of[tap] * pairs + pair) * kTileSize;
  }
  const auto outs = static_cast<size_t>(min<int64_t>(kBlock, out - block * kBlock));
  for (int i = 0; i < kPairs; ++i) {
    float filters[2][kBlock * kFilterTaps] = {};
    for (int j = 0; j < 2; ++j) {
      const int64_t channel = channel_at(a.maps.coarse_channels, pair * kTileDepth + 2 * i + j);
      const float* const from = a.weight + (channel * out + block * kBlock) * kFilterTaps;
      if (channel >= 0) std::memcpy(filters[j], from, outs * kFilterTaps * sizeof(float));
    }
    for (const int first : kHalves) {
      Pairs rows[kBlock];
      for (int n = 0; n < kBlock; ++n) {
        Floats one, other;
        read(one, filters[0] + n * kFilterTaps + first);
        read(other, filters[1] + n * kFilterTaps + first);
        pair_up(rows[n], one, other);
      }
      transpose(rows);
      for (int tap = 0; tap < kPairs; ++tap) write(tiles[first + tap] + i * kTileDepth, rows[tap]);
    }
  }
}

void store_block(const Bfloat16Upconvolution& a, int phase, int64_t block, const Pixels& grid, const float* sums) {
  const CoarseAndFine& maps = a.maps;
  const int64_t blocks = blocks_of(maps.fine_channels), rows = 2 * maps.rows, columns = 2 * maps.columns;
  const Bias bias(a.bias, block, maps.fine_channels);
  for (int p = 0; p < grid.count; ++p) {
    const int64_t row = 2 * grid.row[p] + phase / 2, column = 2 * grid.column[p] + phase % 2;
    Floats of_pixel;
    read(of_pixel, sums + p * kBlock);
    bias.add(of_pixel);
    if (a.fine) {
      store_channels(a.fine + (((grid.image[p] * blocks + block) * rows + row) * columns + column) * kBlock, of_pixel);
    } else {
      for (int64_t c = 0; c < maps.fine_channels; ++c) {
        a.planes[((grid.image[p] * maps.fine_channels + c) * rows + row) * columns + column] = of_pixel[c];
      }
    }
  }
}

}  // namespace

int64_t bfloat16_convolution_scratch_size(const Bfloat16Convolution& a) {
  return scratch_size(blocks_of(a.maps.coarse_channels[0]) * depth_of(a), cut_of(a), a.threads);
}

void bfloat16_convolution(const Bfloat16Convolution& a) {
  const int64_t depth = depth_of(a), blocks = blocks_of(a.maps.coarse_channels[0]);
  const int64_t pairs = a.fine ? block_pairs(blocks_of(a.maps.fine_channels)) : 1;
  auto* const b = static_cast<uint16_t*>(a.scratch);
  parallel_tasks(blocks * pairs, a.threads, [&](int64_t task, int64_t) {
    uint16_t* const to = b + task / pairs * depth * kTileSize;
    a.fine ? pack_block(a, task / pairs, task % pairs, to) : pack_planes(a, task, depth, to);
  });
  for_each_panel(
      a.maps, cut_of(a), blocks, b + blocks * depth * kTileSize, a.threads,
      [&](const Pixels& grid, uint16_t* tiles) { lay_out(a, grid, tiles); },
      [&](const Panel& panel) {
        constexpr int kAll[] = {0};
        panel.multiply(b, depth, kAll, 1, [&](int64_t block, const Pixels& grid, const float* sums) {
          store_block(a, block, grid, sums);
        });
      });
}

int64_t bfloat16_upconvolution_scratch_size(const Bfloat16Upconvolution& a) {
  const int64_t pairs = block_pairs(blocks_of(a.maps.coarse_channels));
  return scratch_size(blocks_of(a.maps.fine_channels) * pairs * kFilterTaps, cut_of(a), a.threads);
}

void bfloat16_upconvolution(const Bfloat16Upconvolution& a) {
  const int64_t pairs = block_pairs(blocks_of(a.maps.coarse_channels)), blocks = blocks_of(a.maps.fine_channels);
  const PhaseTaps taps(a.maps.phases);
  auto* const b = static_cast<uint16_t*>(a.scratch);
  parallel_tasks(blocks * pairs, a.threads,
                 [&](int64_t task, int64_t) { pack_block(a, taps, task / pairs, task % pairs, b); });
  const Maps coarse = coarse_maps(a.maps, a.coarse);
  for_each_panel(
      a.maps, cut_of(a), blocks, b + blocks * pairs * kFilterTaps * kTileSize, a.threads,
      [&](const Pixels& grid, uint16_t* tiles) {
        lay_out_rows(Reach<1, kPhaseSide>(coarse, grid, -1), coarse.all_blocks(), tiles);
      },
      [&](const Panel& panel) {
        for (int phase = 0; phase < 4; ++phase) {
          const uint16_t* const of_phase = b + b_start(taps, pairs, blocks, phase, 0) * kTileSize;
          panel.multiply(
              of_phase, taps.count[phase] * pairs, taps.place[phase], taps.count[phase],
              [&](int64_t block, const Pixels& grid, const float* sums) { store_block(a, phase, block, grid, sums); });
        }
      });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
