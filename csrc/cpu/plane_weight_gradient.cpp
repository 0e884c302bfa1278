#include "../kernels.h"
#include "parallel.h"
#include "simd.h"

// The gradient of a 5x5 filter of stride 2 between blocks of channels and a few planes, as weight_gradient.cpp has
// it between blocks: directly. The lanes are the coarse map's channels.
//
// A task takes a stretch of rows of one image, and leaves its sums in a place of its own; these are added up in their
// order, so the result does not depend on how the work is shared. Bound by the multiply-adds.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int kTaps = 5;
constexpr int64_t kRowsATask = 16;

int64_t stretches(const PlaneWeightGradient& a) { return a.batch * ceil_div(a.rows, kRowsATask); }

int64_t coarse_blocks(const PlaneWeightGradient& a) { return ceil_div(a.coarse_channels, kBlock); }

// Floats of a task's sums, [planes, 25, coarse blocks, kBlock].
int64_t sums_size(const PlaneWeightGradient& a) { return a.fine_channels * kTaps * kTaps * coarse_blocks(a) * kBlock; }

// A fine row with zeros beside it, as its filters read it: element 2 n + k for output n and tap k.
int64_t line_size(const PlaneWeightGradient& a) { return ceil_div(2 * a.columns + kTaps, 16) * 16; }

// Adds the products of one coarse row and one fine row, at all five taps.
void add_row(const float* coarse, const float* line, int64_t columns, float* sums, int64_t tap_stride) {
  Vec sum[kTaps];
#pragma GCC unroll 5
  for (int k = 0; k < kTaps; ++k) sum[k] = load(sums + k * tap_stride);
  for (int64_t n = 0; n < columns; ++n) {
    const Vec channels = load(coarse + n * kBlock);
#pragma GCC unroll 5
    for (int k = 0; k < kTaps; ++k) sum[k] += broadcast(line[2 * n + k]) * channels;
  }
#pragma GCC unroll 5
  for (int k = 0; k < kTaps; ++k) store(sums + k * tap_stride, sum[k]);
}

}  // namespace

int64_t plane_weight_gradient_scratch_size(const PlaneWeightGradient& a) {
  return stretches(a) * (sums_size(a) + line_size(a));
}

void plane_weight_gradient(const PlaneWeightGradient& a) {
  const int64_t blocks = coarse_blocks(a), size = sums_size(a), line_floats = line_size(a);
  const int64_t row_tasks = ceil_div(a.rows, kRowsATask);
  parallel_tasks(stretches(a), a.threads, [&](int64_t task, int64_t) {
    const int64_t image = task / row_tasks, first = task % row_tasks * kRowsATask;
    float* sums = a.scratch + task * (size + line_floats);
    float* line = sums + size;
    std::memset(sums, 0, size * sizeof(float));
    for (int64_t row = first; row < min(first + kRowsATask, a.rows); ++row) {
      for (int64_t plane = 0; plane < a.fine_channels; ++plane) {
        for (int tap = 0; tap < kTaps; ++tap) {
          const int64_t from = 2 * row - a.pad + tap;
          if (from < 0 || from >= a.fine_rows) continue;
          std::memset(line, 0, line_floats * sizeof(float));
          std::memcpy(line + a.pad, a.fine + ((image * a.fine_channels + plane) * a.fine_rows + from) * a.fine_columns,
                      min(a.fine_columns, line_floats - a.pad) * sizeof(float));
          for (int64_t channel = 0; channel < blocks * kBlock; channel += kLanes) {
            const int64_t block = channel / kBlock, part = channel % kBlock;
            add_row(a.coarse + ((image * blocks + block) * a.rows + row) * a.columns * kBlock + part, line, a.columns,
                    sums + (plane * kTaps + tap) * kTaps * blocks * kBlock + channel, blocks * kBlock);
          }
        }
      }
    }
  });
  for (int64_t channel = 0; channel < a.coarse_channels; ++channel) {
    for (int64_t k = 0; k < a.fine_channels * kTaps * kTaps; ++k) {
      double sum = 0;
      for (int64_t task = 0; task < stretches(a); ++task) {
        sum += a.scratch[task * (size + line_floats) + k * blocks * kBlock + channel];
      }
      a.gradient[channel * a.fine_channels * kTaps * kTaps + k] = static_cast<float>(sum);
    }
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
