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

constexpr int64_t kPanelTiles = 1024, kMaxRowTiles = 16;  // of a, that should stay in the second cache level
constexpr int64_t kBytes = kTileSize * sizeof(uint16_t);

// How the work is cut: tasks make some tiles of pixels for some blocks of channels.
struct Cut {
  int64_t tiles;                 // of pixels
  int64_t row_tiles, row_tasks;  // of a task; how many there are
  int64_t groups;                // of blocks of channels
  int64_t panel;                 // tiles of a

  Cut(const CoarseAndFine& maps, int64_t depth, int64_t blocks, int64_t threads)
      : tiles(ceil_div(maps.batch * maps.rows * maps.columns, kTileRows)) {
    row_tiles = min(min(max<int64_t>(2, kPanelTiles / depth / 2 * 2), kMaxRowTiles), tiles);
    row_tasks = ceil_div(tiles, row_tiles);
    groups = min(blocks, ceil_div(4 * threads, row_tasks));
    panel = row_tiles * depth;
  }
  int64_t tasks() const { return row_tasks * groups; }
};

// Scratch memory: b, then each thread's a.
struct Scratch {
  uint16_t *b, *a;

  Scratch(void* scratch, int64_t b_tiles, const Cut& cut, int64_t thread)
      : b(static_cast<uint16_t*>(scratch)), a(b + (b_tiles + thread * cut.panel) * kTileSize) {}
  static int64_t size(int64_t b_tiles, const Cut& cut, int64_t threads) {
    return (b_tiles + threads * cut.panel) * kBytes;
  }
};

// Sums of a block of channels, and their bias.
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

// Sums of up to two tiles of pixels and two blocks of channels.
struct Sums {
  alignas(64) float of[2][2][kTileRows * kBlock];

  // Depths: tiles from one tile of pixels to the next, and from one block of channels to the next.
  TileProduct product(const uint16_t* a, int64_t a_depth, const uint16_t* b, int64_t b_depth, const int* runs,
                      int64_t run_count) {
    return {.a = {a, a + a_depth * kTileSize},
            .b = {b, b + b_depth * kTileSize},
            .runs = runs,
            .run_count = run_count,
            .run = b_depth / run_count,
            .to = {{of[0][0], of[0][1]}, {of[1][0], of[1][1]}},
            .add = false};
  }
};

void store_channels(Bfloat16* to, const Floats& sums) {
  Pairs bits;
  round_to_bfloat16(bits, sums);
  write(to, __builtin_convertvector(bits, Halves));
}

// ---- strided

int64_t depth_of(const Bfloat16Convolution& a) {
  const int64_t fine = a.maps.fine_channels;
  return a.fine ? kTaps * block_pairs(blocks_of(fine)) : ceil_div(fine * kTaps, kTileDepth);
}

Cut cut_of(const Bfloat16Convolution& a) {
  const CoarseAndFine& maps = a.maps;
  return {maps, depth_of(a), blocks_of(maps.coarse_channels[0]), a.threads};
}

// One block of output channels: from [out, in, 5, 5], in tiles of a tap of 32 input channels.
void pack_block(const Bfloat16Convolution& a, int64_t block, int64_t pair, uint16_t* b) {
  const int64_t in = a.maps.fine_channels, out = a.maps.coarse_channels[0], pairs = block_pairs(blocks_of(in));
  uint32_t packed[kPairs][kPairs * kTaps];  // of each output: pairs of inputs, taps
  for (int n = 0; n < kPairs; ++n) {
    for (int i = 0; i < kPairs; ++i) {
      const int64_t channel = pair * kTileDepth + 2 * i, row = block * kBlock + n;
      float taps[2][2 * kPairs] = {};
      for (int64_t c = channel; c < min(channel + 2, in) && row < out; ++c) {
        std::memcpy(taps[c - channel], a.weight + (row * in + c) * kTaps, kTaps * sizeof(float));
      }
      for (int k = 0; k < kTaps; k += kTaps - kPairs) {
        Floats first, second;
        Pairs both;
        read(first, taps[0] + k);
        read(second, taps[1] + k);
        pair_up(both, first, second);
        write(packed[n] + i * kTaps + k, both);
        if (k > 0) break;
      }
    }
  }
  for (int k = 0; k < kPairs * kTaps; k += kPairs) {
    Pairs rows[kPairs];
    for (int n = 0; n < kPairs; ++n) read(rows[n], packed[n] + k);
    transpose(rows);
    for (int j = 0; j < kPairs; ++j) {
      const int i = (k + j) / kTaps, tap = (k + j) % kTaps;
      write(b + (tap * pairs + pair) * kTileSize + i * kTileDepth, rows[j]);
    }
  }
}

// The same of planes: their taps are neighbours of the sum.
void pack_planes(const Bfloat16Convolution& a, int64_t block, int64_t depth, uint16_t* b) {
  const int64_t in = a.maps.fine_channels * kTaps, out = a.maps.coarse_channels[0];
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
    const Maps fine{{a.fine, nullptr}, {blocks_of(maps.fine_channels), 0}, 2 * maps.rows, 2 * maps.columns};
    const Reach<2, kSide> reach(fine, grid, -maps.pad);
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
  int phase_of[kTaps], number_of[kTaps];

  explicit PhaseTaps(const Phases& phases) {
    for (int phase = 0; phase < 4; ++phase) {
      for (int at = 0; at < kPhaseTaps; ++at) {
        const int rows = phases.taps[phase / 2][at / kPhaseSide], columns = phases.taps[phase % 2][at % kPhaseSide];
        if (!rows || !columns) continue;
        const int tap = __builtin_ctz(rows) * kSide + __builtin_ctz(columns);
        phase_of[tap] = phase;
        number_of[tap] = count[phase];
        place[phase][count[phase]++] = at;
      }
    }
  }
};

int64_t coarse_blocks(const CoarseAndFine& maps) {
  return blocks_of(maps.coarse_channels[0]) + blocks_of(maps.coarse_channels[1]);
}

// Tiles of b before a block of channels of a phase.
int64_t b_start(const PhaseTaps& taps, int64_t pairs, int64_t blocks, int phase, int64_t block) {
  int64_t before = 0;
  for (int p = 0; p < phase; ++p) before += taps.count[p] * blocks;
  return (before + taps.count[phase] * block) * pairs;
}

Cut cut_of(const Bfloat16Upconvolution& a) {
  const CoarseAndFine& maps = a.maps;
  return {maps, kPhaseTaps * block_pairs(coarse_blocks(maps)), blocks_of(maps.fine_channels), a.threads};
}

// One block of output channels: from [in, out, 5, 5], in tiles of a tap of 32 input channels.
void pack_block(const Bfloat16Upconvolution& a, const PhaseTaps& taps, int64_t block, int64_t pair, uint16_t* b) {
  const int64_t out = a.maps.fine_channels, blocks = blocks_of(out), pairs = block_pairs(coarse_blocks(a.maps));
  const int64_t first_blocks = blocks_of(a.maps.coarse_channels[0]);
  uint16_t* tiles[kTaps];
  for (int tap = 0; tap < kTaps; ++tap) {
    const int64_t start = b_start(taps, pairs, blocks, taps.phase_of[tap], block);
    tiles[tap] = b + (start + taps.number_of[tap] * pairs + pair) * kTileSize;
  }
  const auto outs = static_cast<size_t>(min<int64_t>(kBlock, out - block * kBlock));
  for (int i = 0; i < kPairs; ++i) {
    float filters[2][kBlock * kTaps] = {};
    for (int j = 0; j < 2; ++j) {
      int64_t channel = pair * kTileDepth + 2 * i + j;
      const bool second = channel >= first_blocks * kBlock;
      if (second) channel -= first_blocks * kBlock;
      if (channel >= a.maps.coarse_channels[second]) continue;
      if (second) channel += a.maps.coarse_channels[0];
      std::memcpy(filters[j], a.weight + (channel * out + block * kBlock) * kTaps, outs * kTaps * sizeof(float));
    }
    for (int first = 0; first < kTaps; first += kTaps - kPairs) {
      Pairs rows[kPairs];
      for (int n = 0; n < kPairs; ++n) {
        Floats pair_of[2];
        for (int j = 0; j < 2; ++j) read(pair_of[j], filters[j] + n * kTaps + first);
        pair_up(rows[n], pair_of[0], pair_of[1]);
      }
      transpose(rows);
      for (int tap = 0; tap < kPairs; ++tap) write(tiles[first + tap] + i * kTileDepth, rows[tap]);
      if (first > 0) break;
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
  return Scratch::size(blocks_of(a.maps.coarse_channels[0]) * depth_of(a), cut_of(a), a.threads);
}

void bfloat16_convolution(const Bfloat16Convolution& a) {
  const CoarseAndFine& maps = a.maps;
  const int64_t depth = depth_of(a), blocks = blocks_of(maps.coarse_channels[0]);
  const int64_t pairs = a.fine ? block_pairs(blocks_of(maps.fine_channels)) : 1;
  const Cut cut = cut_of(a);
  uint16_t* const b = Scratch(a.scratch, 0, cut, 0).b;
  parallel_tasks(blocks * pairs, a.threads, [&](int64_t task, int64_t) {
    uint16_t* const to = b + task / pairs * depth * kTileSize;
    a.fine ? pack_block(a, task / pairs, task % pairs, to) : pack_planes(a, task, depth, to);
  });
  parallel_tasks(cut.tasks(), a.threads, [&](int64_t task, int64_t thread) {
    const int64_t first_tile = task / cut.groups * cut.row_tiles, group = task % cut.groups;
    const int64_t tiles = min(cut.row_tiles, cut.tiles - first_tile);
    uint16_t* const panel = Scratch(a.scratch, blocks * depth, cut, thread).a;
    Pixels grid[kMaxRowTiles];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      grid[tile] = Pixels(maps, (first_tile + tile) * kTileRows);
      lay_out(a, grid[tile], panel + tile * depth * kTileSize);
    }
    constexpr int kAll[] = {0};
    const Tiles unit;
    const int64_t end = blocks * (group + 1) / cut.groups;
    for (int64_t block = blocks * group / cut.groups; block < end; block += 2) {
      const int columns = block + 1 < end ? 2 : 1;
      for (int64_t tile = 0; tile < tiles; tile += 2) {
        const int rows = tile + 1 < tiles ? 2 : 1;
        Sums sums;
        unit.multiply(
            sums.product(panel + tile * depth * kTileSize, depth, b + block * depth * kTileSize, depth, kAll, 1), rows,
            columns);
        for (int m = 0; m < rows; ++m) {
          for (int n = 0; n < columns; ++n) store_block(a, block + n, grid[tile + m], sums.of[m][n]);
        }
      }
    }
  });
}

int64_t bfloat16_upconvolution_scratch_size(const Bfloat16Upconvolution& a) {
  const int64_t b_tiles = blocks_of(a.maps.fine_channels) * block_pairs(coarse_blocks(a.maps)) * kTaps;
  return Scratch::size(b_tiles, cut_of(a), a.threads);
}

void bfloat16_upconvolution(const Bfloat16Upconvolution& a) {
  const CoarseAndFine& maps = a.maps;
  const int64_t pairs = block_pairs(coarse_blocks(maps)), depth = kPhaseTaps * pairs;
  const int64_t blocks = blocks_of(maps.fine_channels);
  const PhaseTaps taps(maps.phases);
  const Cut cut = cut_of(a);
  uint16_t* const b = Scratch(a.scratch, 0, cut, 0).b;
  parallel_tasks(blocks * pairs, a.threads,
                 [&](int64_t task, int64_t) { pack_block(a, taps, task / pairs, task % pairs, b); });
  const Maps coarse{{a.coarse[0], a.coarse[1]},
                    {blocks_of(maps.coarse_channels[0]), blocks_of(maps.coarse_channels[1])},
                    maps.rows,
                    maps.columns};
  parallel_tasks(cut.tasks(), a.threads, [&](int64_t task, int64_t thread) {
    const int64_t first_tile = task / cut.groups * cut.row_tiles, group = task % cut.groups;
    const int64_t tiles = min(cut.row_tiles, cut.tiles - first_tile);
    uint16_t* const panel = Scratch(a.scratch, blocks * pairs * kTaps, cut, thread).a;
    Pixels grid[kMaxRowTiles];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      grid[tile] = Pixels(maps, (first_tile + tile) * kTileRows);
      const Reach<1, kPhaseSide> reach(coarse, grid[tile], -1);
      lay_out_rows(reach, coarse.all_blocks(), panel + tile * depth * kTileSize);
    }
    const Tiles unit;
    const int64_t end = blocks * (group + 1) / cut.groups;
    for (int phase = 0; phase < 4; ++phase) {
      for (int64_t block = blocks * group / cut.groups; block < end; block += 2) {
        const int columns = block + 1 < end ? 2 : 1;
        const uint16_t* const weights = b + b_start(taps, pairs, blocks, phase, block) * kTileSize;
        for (int64_t tile = 0; tile < tiles; tile += 2) {
          const int rows = tile + 1 < tiles ? 2 : 1;
          Sums sums;
          unit.multiply(sums.product(panel + tile * depth * kTileSize, depth, weights, taps.count[phase] * pairs,
                                     taps.place[phase], taps.count[phase]),
                        rows, columns);
          for (int m = 0; m < rows; ++m) {
            for (int n = 0; n < columns; ++n) {
              store_block(a, phase, block + n, grid[tile + m], sums.of[m][n]);
            }
          }
        }
      }
    }
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
