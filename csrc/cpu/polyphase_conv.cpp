#include <type_traits>
#include <utility>

#include "../kernels.h"
#include "epilogue.h"
#include "gemm.h"
#include "parallel.h"
#include "polyphase.h"

// A 5x5 convolution of stride 2, or its transpose, as polyphase Winograd convolution.
//
// The strided convolution is the sum of four convolutions of stride 1 and at most 3x3 taps, one of each phase of the
// input (even or odd rows, even or odd columns); the transposed one makes each phase of its output by such a
// convolution of the whole input. Each of them is a minimal filter on tiles of R x C outputs (see winograd.h):
// transform (R + 2) x (C + 2) inputs, multiply point by point, transform back. The strided convolution's phases meet in
// one domain, so they are added up before the way back. With 4x4 tiles that is 121 multiplications for 16 outputs
// instead of 400: 36 points, four phases, less those at which a phase's filter has nothing because it has two taps, not
// three.
//
// One task takes a run of tiles and some blocks of output channels. It transforms the tiles (v), multiplies by the
// packed weights, one point after the other, as matrices [tiles, input channels] x [input channels, output channels]
// (m), and transforms back; bias, norm and activation happen in registers on the way out. v and m stay in the second
// cache level, the weights stream through it once a task. Bound by the multiply-adds, at large batches.
//
// Each output is computed by the same operations in the same order, however tiles are spread over tasks and threads.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

// Products that are added up in one go. Sums of such sums lose less to rounding than one long sum: in the paper's
// layers, a half to two thirds of what they lose in sums of 128. That takes a hundredth more time, and sums of 16 six
// times as much.
constexpr int64_t kDepth = 32;

int64_t input_blocks(const Convolution& conv) { return blocks_of(conv.in_channels); }

// ---- packing

// Floats of packed weights of a task, of so many blocks of output channels.
template <int R, int C>
int64_t packed_task_size(const Convolution& conv, const Points<R, C>& points, int64_t blocks) {
  int64_t size = 0;
  for (int at = 0; at < points.kCount; ++at) {
    size += points.phases[at] * input_blocks(conv) * kBlock * blocks * kBlock + kBetweenPoints;
  }
  return size;
}

// Where the filters to one vector of output channels go, in a task's packed weights: those of each point are [depth,
// vectors] in panels of two vectors' columns.
template <int R, int C>
class PackedPlaces {
 public:
  // The vector begins at `first_in_task` of the output channels of a task of so many blocks.
  PackedPlaces(const Convolution& conv, const Points<R, C>& points, int64_t first_in_task, int64_t blocks,
               float* packed) {
    const int64_t depth = input_blocks(conv) * kBlock;
    for (int at = 0; at < points.kCount; ++at) {
      const int phases = points.phases[at];
      const int64_t point_depth = conv.upsampling ? depth : phases * depth;
      const int64_t vectors = (conv.upsampling ? phases * blocks : blocks) * kParts;
      for (int p = 0; p < 4; ++p) {
        const int slot = points.slot[p][at];
        const int64_t first_row = conv.upsampling ? 0 : slot * depth;
        const int64_t vector = (conv.upsampling ? slot * blocks * kParts : 0) + first_in_task / kLanes;
        const int64_t panel = vector / 2, width = min<int64_t>(2, vectors - 2 * panel);
        to_[p][at] =
            slot < 0 ? nullptr : packed + panel * 2 * kLanes * point_depth + (first_row * width + vector % 2) * kLanes;
        step_[p][at] = static_cast<int>(width * kLanes);
      }
      packed += point_depth * vectors * kLanes + kBetweenPoints;
    }
  }

  // Of phase `p` and input channel `k`; null: the phase does not reach the point.
  float* operator()(int p, int at, int64_t k) const { return to_[p][at] ? to_[p][at] + k * step_[p][at] : nullptr; }

 private:
  float* to_[4][Points<R, C>::kCount];
  int step_[4][Points<R, C>::kCount];
};

// What filters are transformed in, a lane an output channel: float for weights that change with every step of training,
// double for those that are packed once.
typedef double DoubleVec __attribute__((vector_size(8 * kLanes)));
inline Vec narrowed(Vec vec) { return vec; }
inline Vec narrowed(DoubleVec vec) { return __builtin_convertvector(vec, Vec); }

// The taps of so many filters, `stride` apart: a filter a lane, zeros in the other lanes.
template <typename Values, typename Weight>
void load_filters(const Weight* weight, int64_t stride, int64_t count, Values (&taps)[kTaps * kTaps]) {
  if constexpr (std::is_same_v<Values, Vec> && std::is_same_v<Weight, float>) {
    if (count == kLanes) {
      for (int first = 0; first < kTaps * kTaps; first += kLanes) {
        const int at = min(first, kTaps * kTaps - kLanes);
        Vec rows[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) rows[lane] = load(weight + lane * stride + at);
        transpose(rows);
        for (int lane = 0; lane < kLanes; ++lane) taps[at + lane] = rows[lane];
      }
      return;
    }
  }
  for (Values& tap : taps) tap = Values{};
  for (int64_t lane = 0; lane < count; ++lane) {
    for (int i = 0; i < kTaps * kTaps; ++i) taps[i][lane] = weight[lane * stride + i];
  }
}

// The filters of input channels first_k to end_k (rows of the task's matrices) to the vector of output channels that
// begins with `first_out`.
template <int R, int C, typename Values, typename Weight>
void pack_filters(const Convolution& conv, const FilterTaps& filter_taps, const Weight* weight, int64_t first_k,
                  int64_t end_k, int64_t first_out, const PackedPlaces<R, C>& places) {
  constexpr int kFilter = kTaps * kTaps;
  const int64_t in_channels = conv.in_channels[0] + conv.in_channels[1];
  const int64_t outs = max<int64_t>(0, min<int64_t>(kLanes, conv.out_channels - first_out));
  for (int64_t k = first_k; k < end_k; ++k) {
    const int64_t place = channel_at(conv.in_channels, k), in = max<int64_t>(place, 0);
    const bool there = place >= 0;
    Values taps[kFilter];
    if (conv.weight_by_input) {
      load_filters(weight + (in * conv.out_channels + first_out) * kFilter, kFilter, there ? outs : 0, taps);
    } else {
      load_filters(weight + (first_out * in_channels + in) * kFilter, in_channels * kFilter, there ? outs : 0, taps);
    }
    for (int p = 0; p < 4; ++p) {
      Values w[9] = {}, half[kPoints<R> * 3], whole[kPoints<R> * kPoints<C>];
      for (int t = 0; t < 9; ++t) {
        const FilterTaps::Sum& sum = filter_taps.of[p][t];
        for (int i = 0; i < sum.count; ++i) w[t] += taps[sum.taps[i]];
      }
      for (int t = 0; t < 3; ++t) filter_transform<R>(w + t, 3, half + t, 3);
      for (int i = 0; i < kPoints<R>; ++i) filter_transform<C>(half + 3 * i, 1, whole + kPoints<C> * i, 1);
      for (int at = 0; at < kPoints<R> * kPoints<C>; ++at) {
        if (float* const to = places(p, at, k)) store(to, narrowed(whole[at]));
      }
    }
  }
}

template <int R, int C, typename Values, typename Weight>
void pack(const Convolution& conv, const Weight* weight, float* packed) {
  const Points<R, C> points(conv.phases);
  const FilterTaps filter_taps(conv.phases);
  const int64_t blocks = blocks_of(conv.out_channels);
  const int64_t task_size = packed_task_size(conv, points, conv.blocks_a_task);
  const int64_t depth = input_blocks(conv) * kBlock;
  constexpr int64_t kRowsATask = 64;
  const int64_t row_tasks = ceil_div(depth, kRowsATask);
  parallel_for(0, blocks * kParts * row_tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first_out = task / row_tasks * kLanes, row = task % row_tasks * kRowsATask;
      const int64_t of_task = first_out / kBlock / conv.blocks_a_task, first_block = of_task * conv.blocks_a_task;
      const PackedPlaces<R, C> places(conv, points, first_out - first_block * kBlock,
                                      min(conv.blocks_a_task, blocks - first_block), packed + of_task * task_size);
      pack_filters<R, C, Values>(conv, filter_taps, weight, row, min(row + kRowsATask, depth), first_out, places);
    }
  });
}

// The weights of one task alone.
template <int R, int C>
void pack_task(const Convolution& conv, const Points<R, C>& points, const FilterTaps& filter_taps, const float* weight,
               int64_t first_block, int64_t blocks, float* packed) {
  const int64_t depth = input_blocks(conv) * kBlock;
  for (int64_t first = 0; first < blocks * kBlock; first += kLanes) {
    const PackedPlaces<R, C> places(conv, points, first, blocks, packed);
    pack_filters<R, C, Vec>(conv, filter_taps, weight, 0, depth, first_block * kBlock + first, places);
  }
}

// ---- running

// Distances in a task's scratch memory. A distance of an odd number of cache lines spreads rows over all cache sets.
template <int R, int C>
struct Layout {
  int64_t v_tile, v_point, m_tile, m_point, v_size, m_size;

  explicit Layout(const Convolution& conv, int64_t tiles) {
    v_tile = odd_lines(input_blocks(conv) * kBlock * (conv.upsampling ? 1 : 4));
    m_tile = odd_lines(conv.blocks_a_task * kBlock * (conv.upsampling ? 4 : 1));
    v_point = odd_lines(v_tile * tiles);
    m_point = odd_lines(m_tile * tiles);
    v_size = v_point * kPoints<R> * kPoints<C>;
    m_size = m_point * kPoints<R> * kPoints<C>;
  }
};

// Of a thread that packs late.
template <int R, int C>
int64_t late_size(const Convolution& conv, const Points<R, C>& points, const Layout<R, C>& layout) {
  return layout.m_size + packed_task_size(conv, points, conv.blocks_a_task);
}

template <int R, int C, bool Upsampling, bool Activated>
void transform_inputs_through(const ConvolutionRun& a, const Points<R, C>& points, const Layout<R, C>& layout,
                              int64_t first, int64_t count, float* v) {
  const Convolution& conv = *a.conv;
  const int64_t blocks[2] = {blocks_of(conv.in_channels[0]), blocks_of(conv.in_channels[1])};
  const int64_t depth = (blocks[0] + blocks[1]) * kBlock, plane = a.in_rows * a.in_columns * kBlock;
  for_each_run<R, C>({a.batch, a.grid_rows, a.grid_columns}, first, count, [&](const Run& run) {
    for (int64_t t = 0; t < run.count; t += kStrip) {
      const int64_t tiles = min<int64_t>(kStrip, run.count - t);
      for (int source = 0; source < 2; ++source) {
        for (int64_t block = 0; block < blocks[source]; ++block) {
          const float* image = a.source[source] + (run.image * blocks[source] + block) * plane;
          for (int phase = 0; phase < (Upsampling ? 1 : 4); ++phase) {
            for (int part = 0; part < kParts; ++part) {
              const int64_t k = (source * blocks[0] + block) * kBlock + part * kLanes;
              float* to[Points<R, C>::kCount];
              for (int at = 0; at < points.kCount; ++at) {
                const int slot = Upsampling ? 0 : points.slot[phase][at];
                to[at] = slot < 0 ? nullptr : v + at * layout.v_point + (run.at + t) * layout.v_tile + slot * depth + k;
              }
              transform_strip<R, C, Upsampling ? 1 : 2>(
                  a.in_rows, a.in_columns, Reader<Activated>(a.reading, k), image + part * kLanes, run.tile_row * R - 1,
                  (run.tile_column + t) * C - 1, tiles, phase / 2, phase % 2, to, layout.v_tile);
            }
          }
        }
      }
    }
  });
}

template <int R, int C, bool Upsampling>
void transform_inputs(const ConvolutionRun& a, const Points<R, C>& points, const Layout<R, C>& layout, int64_t first,
                      int64_t count, float* v) {
  if (!Upsampling && a.reading.scale) {
    transform_inputs_through<R, C, Upsampling, !Upsampling>(a, points, layout, first, count, v);
  } else {
    transform_inputs_through<R, C, Upsampling, false>(a, points, layout, first, count, v);
  }
}

template <int R, int C, bool Upsampling>
void multiply(const ConvolutionRun& a, const Points<R, C>& points, const Layout<R, C>& layout, int64_t count,
              int64_t blocks, const float* packed, const float* v, float* m) {
  const Convolution& conv = *a.conv;
  const int64_t depth = input_blocks(conv) * kBlock;
  const int64_t row_groups = ceil_div(count, kMaxRows);
  for (int at = 0; at < points.kCount; ++at) {
    const int phases = points.phases[at];
    const int64_t point_depth = Upsampling ? depth : phases * depth;
    const int vectors = static_cast<int>(Upsampling ? phases * blocks : blocks) * kParts;
    for (int vector = 0; vector < vectors; vector += 2) {
      const int width = min(2, vectors - vector);
      float* to = m + at * layout.m_point + vector * kLanes;
      for (int64_t k = 0; k < point_depth; k += kDepth) {
        const GemmPanel* panels = width == 2 ? (k ? gemm_panels<2, true> : gemm_panels<2, false>)
                                             : (k ? gemm_panels<1, true> : gemm_panels<1, false>);
        const int64_t depth_now = min(kDepth, point_depth - k);
        for (int64_t group = 0; group < row_groups; ++group) {
          const int64_t begin = count * group / row_groups, end = count * (group + 1) / row_groups;
          panels[end - begin - 1](v + at * layout.v_point + begin * layout.v_tile + k, layout.v_tile,
                                  packed + k * width * kLanes, depth_now, to + begin * layout.m_tile, layout.m_tile);
        }
      }
      packed += point_depth * width * kLanes;
    }
    packed += kBetweenPoints;
  }
}

template <int R, int C, bool Upsampling, bool Raw, bool Before, bool After>
void transform_outputs(const ConvolutionRun& a, const Points<R, C>& points, const Layout<R, C>& layout, int64_t first,
                       int64_t count, int64_t first_block, int64_t blocks, const float* m) {
  constexpr int kStride = Upsampling ? 2 : 1;
  const int64_t out_blocks = blocks_of(a.conv->out_channels);
  const int64_t rows = kStride * a.grid_rows, columns = kStride * a.grid_columns;
  for (int phase = 0; phase < (Upsampling ? 4 : 1); ++phase) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int part = 0; part < kParts; ++part) {
        const Epilogue<Raw, Before, After> epilogue(a.activation, (first_block + block) * kBlock + part * kLanes);
        const float* from[Points<R, C>::kCount];
        for (int at = 0; at < points.kCount; ++at) {
          const int slot = Upsampling ? points.slot[phase][at] : 0;
          from[at] = slot < 0 ? nullptr : m + at * layout.m_point + (slot * blocks + block) * kBlock + part * kLanes;
        }
        for_each_run<R, C>({a.batch, a.grid_rows, a.grid_columns}, first, count, [&](const Run& run) {
          const int64_t plane = (run.image * out_blocks + first_block + block) * rows * columns * kBlock;
          for (int64_t t = 0; t < run.count; ++t) {
            const int64_t tile = (run.at + t) * layout.m_tile;
            Vec half[R][kPoints<C>];
            for (int j = 0; j < kPoints<C>; ++j) {
              Vec x[kPoints<R>], y[R];
              for (int i = 0; i < kPoints<R>; ++i) {
                const float* point = from[i * kPoints<C> + j];
                x[i] = point ? load(point + tile) : Vec{};
              }
              output_transform<R>(x, 1, y, 1);
              for (int i = 0; i < R; ++i) half[i][j] = y[i];
            }
            const int64_t tile_row = run.tile_row * R, tile_column = (run.tile_column + t) * C;
            for (int i = 0; i < min<int64_t>(R, a.grid_rows - tile_row); ++i) {
              Vec y[C];
              output_transform<C>(half[i], 1, y, 1);
              const int64_t row = kStride * (tile_row + i) + phase / 2;
              const int64_t column = kStride * tile_column + phase % 2;
              const int64_t to = plane + (row * columns + column) * kBlock + part * kLanes;
              for (int j = 0; j < min<int64_t>(C, a.grid_columns - tile_column); ++j) {
                epilogue(y[j], to + j * kStride * kBlock);
              }
            }
          }
        });
      }
    }
  }
}

// All tiles in one go: their transforms are shared, and weights go from a task's own memory straight into products.
template <int R, int C, bool Upsampling>
void run_packing_late(const ConvolutionRun& a, const Points<R, C>& points, const Layout<R, C>& layout, int64_t tiles,
                      int64_t groups) {
  const Convolution& conv = *a.conv;
  const FilterTaps filter_taps(conv.phases);
  float *v = a.scratch, *own = v + layout.v_size;
  const int64_t own_size = late_size(conv, points, layout);
  parallel_tasks(ceil_div(tiles, kStrip), a.threads, [&](int64_t task, int64_t) {
    const int64_t first = task * kStrip;
    transform_inputs<R, C, Upsampling>(a, points, layout, first, min<int64_t>(kStrip, tiles - first),
                                       v + first * layout.v_tile);
  });
  with_epilogue(a.activation, [&]<bool Raw, bool Before, bool After>() {
    parallel_tasks(groups, a.threads, [&](int64_t group, int64_t thread) {
      const int64_t first_block = group * conv.blocks_a_task;
      const int64_t blocks = min(conv.blocks_a_task, blocks_of(conv.out_channels) - first_block);
      float *m = own + thread * own_size, *packed = m + layout.m_size;
      pack_task(conv, points, filter_taps, a.weight, first_block, blocks, packed);
      multiply<R, C, Upsampling>(a, points, layout, tiles, blocks, packed, v, m);
      transform_outputs<R, C, Upsampling, Raw, Before, After>(a, points, layout, 0, tiles, first_block, blocks, m);
      if (a.activation.stream) finish_streaming();
    });
  });
}

template <int R, int C, bool Upsampling>
void run_tiles(const ConvolutionRun& a) {
  const Convolution& conv = *a.conv;
  const Points<R, C> points(conv.phases);
  const Layout<R, C> layout(conv, a.tiles_a_task);
  const int64_t tiles = tiles_of<R, C>({a.batch, a.grid_rows, a.grid_columns}),
                chunks = ceil_div(tiles, a.tiles_a_task);
  const int64_t blocks = blocks_of(conv.out_channels), groups = ceil_div(blocks, conv.blocks_a_task);
  const int64_t task_size = packed_task_size(conv, points, conv.blocks_a_task);
  if (conv.packs_late) return run_packing_late<R, C, Upsampling>(a, points, layout, tiles, groups);
  with_epilogue(a.activation, [&]<bool Raw, bool Before, bool After>() {
    parallel_tasks(groups * chunks, a.threads, [&](int64_t task, int64_t thread) {
      // chunks of tiles that need the same weights follow each other, and find them in the shared cache
      const int64_t group = task / chunks, chunk = task % chunks;
      const int64_t first = chunk * tiles / chunks, count = (chunk + 1) * tiles / chunks - first;
      const int64_t first_block = group * conv.blocks_a_task,
                    task_blocks = min(conv.blocks_a_task, blocks - first_block);
      float* v = a.scratch + thread * a.scratch_stride;
      float* m = v + layout.v_size;
      transform_inputs<R, C, Upsampling>(a, points, layout, first, count, v);
      multiply<R, C, Upsampling>(a, points, layout, count, task_blocks, a.packed + group * task_size, v, m);
      transform_outputs<R, C, Upsampling, Raw, Before, After>(a, points, layout, first, count, first_block, task_blocks,
                                                              m);
      if (a.activation.stream) finish_streaming();
    });
  });
}

}  // namespace

int64_t convolution_packed_size(const Convolution& conv) {
  return with_tile(conv.tile_rows, conv.tile_columns, [&]<int R, int C>() {
    const int64_t tasks = ceil_div(blocks_of(conv.out_channels), conv.blocks_a_task);
    return tasks * packed_task_size(conv, Points<R, C>(conv.phases), conv.blocks_a_task);
  });
}

int64_t convolution_scratch_size(const Convolution& conv, int64_t tiles_a_task, int64_t threads) {
  return with_tile(conv.tile_rows, conv.tile_columns, [&]<int R, int C>() {
    const Layout<R, C> layout(conv, tiles_a_task);
    if (!conv.packs_late) return layout.v_size + layout.m_size;
    return ceil_div(layout.v_size, threads) + late_size(conv, Points<R, C>(conv.phases), layout);
  });
}

void convolution_pack(const Convolution& conv, const float* weight, bool precise, float* packed) {
  with_tile(conv.tile_rows, conv.tile_columns, [&]<int R, int C>() {
    precise ? pack<R, C, DoubleVec>(conv, weight, packed) : pack<R, C, Vec>(conv, weight, packed);
  });
}

void convolution_pack(const Convolution& conv, const double* weight, float* packed) {
  with_tile(conv.tile_rows, conv.tile_columns, [&]<int R, int C>() { pack<R, C, DoubleVec>(conv, weight, packed); });
}

void convolution_run(const ConvolutionRun& args) {
  with_tile(args.conv->tile_rows, args.conv->tile_columns, [&]<int R, int C>() {
    args.conv->upsampling ? run_tiles<R, C, true>(args) : run_tiles<R, C, false>(args);
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
