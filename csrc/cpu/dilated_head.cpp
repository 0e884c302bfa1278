#include "../kernels.h"
#include "parallel.h"
#include "planes.h"
#include "simd.h"

// Spleeter's head: a 4x4 convolution with dilation 2 of one plane, and a sigmoid; and its gradients, of which that of
// the plane is such a convolution of the masks' gradients. Planes lie between margins of zeros, so that only rows have
// to be looked at. The lanes are neighbouring outputs. A task makes one row; bound by the sigmoid and the loads.
//
// The weight's gradient is the sum of all outputs' gradients times the inputs that they read: of some rows in floats,
// and of these in double precision, in their order.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int kTaps = 4, kReach = 3;  // output o reads inputs o - kReach + 2 t
constexpr int64_t kRowsATask = 16;    // of the weight's gradient

int64_t row_groups(const DilatedHeadGradient& a) { return ceil_div(a.rows, kRowsATask); }

// The sums of some rows, for one channel out and one in.
void sum_taps(const DilatedHeadGradient& a, int64_t image, int64_t out, int64_t channel, int64_t first_row,
              int64_t last_row, double* to) {
  const int64_t stride = a.columns + 2 * kHeadMargin;
  Vec sums[kTaps][kTaps] = {};
  for (int64_t row = first_row; row < last_row; ++row) {
    const float* gradient = a.gradient + ((image * a.out_channels + out) * a.rows + row) * a.columns;
    for (int64_t column = 0; column < a.columns; column += kLanes) {
      const Vec y = load_some(gradient + column, a.columns - column);
      for (int i = 0; i < kTaps; ++i) {
        const int64_t from = row - kReach + 2 * i;
        if (from < 0 || from >= a.rows) continue;
        const float* x = a.source + ((image * a.channels + channel) * a.rows + from) * stride + kHeadMargin + column;
        for (int j = 0; j < kTaps; ++j) sums[i][j] += y * load(x - kReach + 2 * j);
      }
    }
  }
  for (int tap = 0; tap < kTaps * kTaps; ++tap) {
    to[tap] = 0;
    for (int lane = 0; lane < kLanes; ++lane) to[tap] += static_cast<double>(sums[tap / kTaps][tap % kTaps][lane]);
  }
}

}  // namespace

int64_t dilated_head_scratch_size(int64_t columns) { return ceil_div(columns, kLanes) * kLanes; }

void dilated_head_run(const DilatedHead& a) {
  const int64_t stride = a.columns + 2 * kHeadMargin;
  parallel_tasks(a.batch * a.rows, a.threads, [&](int64_t task, int64_t thread) {
    const int64_t image = task / a.rows, row = task % a.rows;
    float* line = a.scratch + thread * a.scratch_stride;
    for (int64_t channel = 0; channel < a.out_channels; ++channel) {
      // a whole last vector reads into the margin, which is as wide as the widest vector and the reach
      for (int64_t column = 0; column < a.columns; column += kLanes) {
        Vec sum = {};
        for (int64_t in = 0; in < a.channels; ++in) {
          const float* weight = a.weight + (channel * a.channels + in) * kTaps * kTaps;
          for (int i = 0; i < kTaps; ++i) {
            const int64_t from = row - kReach + 2 * i;
            if (from < 0 || from >= a.rows) continue;
            const float* x = a.source + ((image * a.channels + in) * a.rows + from) * stride + kHeadMargin + column;
            for (int j = 0; j < kTaps; ++j) sum += load(x - kReach + 2 * j) * weight[i * kTaps + j];
          }
        }
        store(line + column, sum);
      }
      end_row(a.to, line, image, channel, row, a.columns, a.bias ? a.bias[channel] : 0.0f, 1, 0);
    }
  });
}

int64_t dilated_head_gradient_scratch_size(const DilatedHeadGradient& a) {
  return a.batch * row_groups(a) * a.out_channels * a.channels * kTaps * kTaps;
}

void dilated_head_gradient(const DilatedHeadGradient& a) {
  const int64_t groups = row_groups(a), pairs = a.out_channels * a.channels, taps = pairs * kTaps * kTaps;
  parallel_tasks(a.batch * groups, a.threads, [&](int64_t task, int64_t) {
    const int64_t first = task % groups * kRowsATask;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      sum_taps(a, task / groups, pair / a.channels, pair % a.channels, first, min(first + kRowsATask, a.rows),
               a.scratch + task * taps + pair * kTaps * kTaps);
    }
  });
  for (int64_t tap = 0; tap < taps; ++tap) {
    double sum = 0;
    for (int64_t task = 0; task < a.batch * groups; ++task) sum += a.scratch[task * taps + tap];
    a.of_weight[tap] = static_cast<float>(sum);
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
