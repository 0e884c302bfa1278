#include "../kernels.h"
#include "epilogue.h"
#include "gemm.h"
#include "parallel.h"
#include "simd.h"

// The first 5x5 convolution of stride 2, from one or two planes of magnitudes to blocks of channels: directly, for with
// so few input channels a transform would cost more than it saves.
//
// A task makes one row of the output. It copies the five rows that this reads, with the zeros beside them, into
// scratch; then a group of neighbouring outputs, one vector of channels each, is a sum of broadcast inputs times
// vectors of weights. Bound by the multiply-adds and the loads that feed them, one each.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int kTaps = 5;

// Floats of one padded row: what kMaxRows outputs more than there are would read.
int64_t padded_columns(int64_t out_columns) { return 2 * (out_columns + kMaxRows) + kTaps; }

// `Count` outputs from `line` (every second input), summed over `rows` padded rows.
template <int Count, typename Finish>
inline void sum_taps(const float* line, int64_t row_stride, int64_t rows, const float* weight, const Finish& finish,
                     int64_t to) {
  Vec sum[Count] = {};
  for (int64_t row = 0; row < rows; ++row, line += row_stride, weight += kTaps * kBlock) {
#pragma GCC unroll 5
    for (int tap = 0; tap < kTaps; ++tap) {
      const Vec channels = load(weight + tap * kBlock);
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) sum[i] += broadcast(line[2 * i + tap]) * channels;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Count; ++i) finish(sum[i], to + i * kBlock);
}

// Copies the input rows of output row `row` of all channels, one behind the other.
void copy_rows(const InputConvolution& a, int64_t image, int64_t row, float* to) {
  const int64_t padded = padded_columns(a.out_columns);
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    for (int tap = 0; tap < kTaps; ++tap, to += padded) {
      const int64_t from = 2 * row - a.pad + tap;
      std::memset(to, 0, padded * sizeof(float));
      if (from < 0 || from >= a.rows) continue;
      std::memcpy(to + a.pad, a.source + image * a.batch_stride + channel * a.channel_stride + from * a.row_stride,
                  min(a.columns, padded - a.pad) * sizeof(float));
    }
  }
}

}  // namespace

int64_t input_convolution_scratch_size(int64_t channels, int64_t out_columns) {
  return channels * kTaps * padded_columns(out_columns);
}

void input_convolution_run(const InputConvolution& a) {
  const int64_t blocks = ceil_div(a.out_channels, kBlock), padded = padded_columns(a.out_columns);
  with_epilogue(a.activation, [&]<bool Raw, bool Before, bool After>() {
    parallel_tasks(a.batch * a.out_rows, a.threads, [&](int64_t task, int64_t thread) {
      const int64_t image = task / a.out_rows, row = task % a.out_rows;
      float* lines = a.scratch + thread * a.scratch_stride;
      copy_rows(a, image, row, lines);
      for (int64_t channel = 0; channel < blocks * kBlock; channel += kLanes) {
        const int64_t block = channel / kBlock, part = channel % kBlock;
        const Epilogue<Raw, Before, After> epilogue(a.activation, channel);
        const float* weight = a.packed + block * a.channels * kTaps * kTaps * kBlock + part;
        const int64_t to = ((image * blocks + block) * a.out_rows + row) * a.out_columns * kBlock + part;
        int64_t column = 0;
        for (; column + kMaxRows <= a.out_columns; column += kMaxRows) {
          sum_taps<kMaxRows>(lines + 2 * column, padded, a.channels * kTaps, weight, epilogue, to + column * kBlock);
        }
        for (; column < a.out_columns; ++column) {
          sum_taps<1>(lines + 2 * column, padded, a.channels * kTaps, weight, epilogue, to + column * kBlock);
        }
      }
      if (a.activation.stream) finish_streaming();
    });
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
