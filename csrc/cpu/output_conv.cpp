#include <utility>

#include "../kernels.h"
#include "parallel.h"
#include "planes.h"
#include "simd.h"

// The last upsampling 5x5 convolution, from blocks of channels to one plane or two: directly. Each phase of the output
// is a convolution of stride 1 with at most 3x3 taps (see polyphase_conv.cpp).
//
// A task makes the two output rows that one input row is in the middle of. The lanes are input channels: kLanes / 4
// neighbouring inputs have kLanes outputs between them, each the sum over the lanes of one accumulator, and a
// transposing tree of additions makes all those sums at once. Bound by the multiply-adds.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int kGroup = kLanes / 4;  // inputs

// Groups of `Size` lanes, of a and b in turn; each is the sum of the halves of a group of twice that.
template <int Size, int... Lane>
static inline Vec halve(Vec a, Vec b, std::integer_sequence<int, Lane...>) {
  // lane i lies in group i / Size of the result, hence in group (i / Size) / 2 of a (even) or b (odd)
  return __builtin_shufflevector(a, b, (Lane / Size % 2 * kLanes + Lane / Size / 2 * 2 * Size + Lane % Size)...) +
         __builtin_shufflevector(a, b, (Lane / Size % 2 * kLanes + Lane / Size / 2 * 2 * Size + Size + Lane % Size)...);
}

// Lane i of the result is the sum of the lanes of vectors[i].
template <int Count = kLanes>
static inline Vec sums_of_lanes(Vec* vectors) {
  if constexpr (Count == 1) {
    return vectors[0];
  } else {
    for (int i = 0; i < Count / 2; ++i) {
      vectors[i] = halve<Count / 2>(vectors[i], vectors[i + Count / 2], std::make_integer_sequence<int, kLanes>());
    }
    return sums_of_lanes<Count / 2>(vectors);
  }
}

// Whether phase p has tap t, known at compile time. Of the five taps one phase has three and the other two, and lacks
// the first or the last, but for filters behind an upsampling by repetition, where both have three.
enum class Lacking { none, last_of_phase_0, first_of_phase_1 };

constexpr bool has(Lacking lacking, int phase, int tap) {
  if (lacking == Lacking::last_of_phase_0) return !(phase == 0 && tap == 2);
  if (lacking == Lacking::first_of_phase_1) return !(phase == 1 && tap == 0);
  return true;
}

// Adds one vector of channels of one input row (tap `t` of the rows) to kGroup inputs' outputs.
template <Lacking L>
inline __attribute__((always_inline)) void add_row(const float* row, const bool* inside, const float* weight, int t,
                                                   Vec (&sum)[kLanes]) {
  Vec x[kGroup + 2];
#pragma GCC unroll 6
  for (int j = 0; j < kGroup + 2; ++j) x[j] = inside[j] ? load(row + (j - 1) * kBlock) : Vec{};
#pragma GCC unroll 4
  for (int phase = 0; phase < 4; ++phase) {
    if (!has(L, phase / 2, t)) continue;
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      if (!has(L, phase % 2, s)) continue;
      const Vec w = load(weight + ((phase * 3 + t) * 3 + s) * kBlock);
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) sum[phase / 2 * (kLanes / 2) + 2 * i + phase % 2] += x[i + s] * w;
    }
  }
}

// The sums of two output rows, [2, line], of one channel.
template <Lacking L>
void sum_rows(const OutputConvolution& a, int64_t image, int64_t row, const float* weight, float* lines, int64_t line) {
  const int64_t plane = a.rows * a.columns * kBlock;
  for (int64_t column = 0; column < a.columns; column += kGroup) {
    bool inside[kGroup + 2];
    for (int j = 0; j < kGroup + 2; ++j) inside[j] = 0 <= column + j - 1 && column + j - 1 < a.columns;
    Vec sum[kLanes] = {};
    const float* taps = weight;
    for (int source = 0; source < 2; ++source) {
      for (int64_t block = 0; block < a.blocks[source]; ++block, taps += 4 * 9 * kBlock) {
        const float* middle =
            a.source[source] + (image * a.blocks[source] + block) * plane + (row * a.columns + column) * kBlock;
        for (int part = 0; part < kBlock; part += kLanes) {
#pragma GCC unroll 3
          for (int t = 0; t < 3; ++t) {
            if (row + t - 1 < 0 || row + t - 1 >= a.rows) continue;
            add_row<L>(middle + (t - 1) * a.columns * kBlock + part, inside, taps + part, t, sum);
          }
        }
      }
    }
    float both[kLanes];
    store(both, sums_of_lanes(sum));
    std::memcpy(lines + 2 * column, both, 2 * kGroup * sizeof(float));
    std::memcpy(lines + line + 2 * column, both + 2 * kGroup, 2 * kGroup * sizeof(float));
  }
}

int64_t line_size(int64_t columns) { return ceil_div(2 * columns, kLanes) * kLanes + kLanes; }

}  // namespace

int64_t output_convolution_scratch_size(int64_t columns) { return 2 * line_size(columns); }

void output_convolution_run(const OutputConvolution& a) {
  const int64_t line = line_size(a.columns), channel_size = (a.blocks[0] + a.blocks[1]) * 4 * 9 * kBlock;
  const auto sum = !a.phases.taps[0][2]   ? &sum_rows<Lacking::last_of_phase_0>
                   : !a.phases.taps[1][0] ? &sum_rows<Lacking::first_of_phase_1>
                                          : &sum_rows<Lacking::none>;
  parallel_tasks(a.batch * a.rows, a.threads, [&](int64_t task, int64_t thread) {
    const int64_t image = task / a.rows, row = task % a.rows;
    float* lines = a.scratch + thread * a.scratch_stride;
    for (int64_t channel = 0; channel < a.out_channels; ++channel) {
      sum(a, image, row, a.packed + channel * channel_size, lines, line);
      const float scale = a.after_scale ? a.after_scale[channel] : 1,
                  shift = a.after_shift ? a.after_shift[channel] : 0;
      for (int half = 0; half < 2; ++half) {
        end_row(a.to, lines + half * line, image, channel, 2 * row + half, 2 * a.columns, a.bias[channel], scale,
                shift);
      }
    }
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
