#include "../kernels.h"
#include "parallel.h"
#include "planes.h"
#include "simd.h"

// Spleeter's head: a 4x4 convolution with dilation 2 of one plane, and a sigmoid. The plane lies between margins of
// zeros, so that only rows have to be looked at. The lanes are neighbouring outputs. A task makes one row; bound by the
// sigmoid and the loads.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int kTaps = 4, kReach = 3;  // output o reads inputs o - kReach + 2 t

}  // namespace

int64_t dilated_head_scratch_size(int64_t columns) { return ceil_div(columns, kLanes) * kLanes; }

void dilated_head_run(const DilatedHead& a) {
  const int64_t stride = a.columns + 2 * kHeadMargin;
  parallel_tasks(a.batch * a.rows, a.threads, [&](int64_t task, int64_t thread) {
    const int64_t image = task / a.rows, row = task % a.rows;
    float* line = a.scratch + thread * a.scratch_stride;
    for (int64_t channel = 0; channel < a.out_channels; ++channel) {
      const float* weight = a.weight + channel * kTaps * kTaps;
      // a whole last vector reads into the margin, which is as wide as the widest vector and the reach
      for (int64_t column = 0; column < a.columns; column += kLanes) {
        Vec sum = {};
        for (int i = 0; i < kTaps; ++i) {
          const int64_t from = row - kReach + 2 * i;
          if (from < 0 || from >= a.rows) continue;
          const float* x = a.source + (image * a.rows + from) * stride + kHeadMargin + column - kReach;
          for (int j = 0; j < kTaps; ++j) sum += load(x + 2 * j) * weight[i * kTaps + j];
        }
        store(line + column, sum);
      }
      end_row(a.to, line, image, channel, row, a.columns, a.bias[channel], 1, 0);
    }
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
