// The matrix product that the convolutions come down to: a few rows of v times a packed panel of one or two vectors'
// columns.
#pragma once
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

// Rows that a call takes at most: two accumulators a row, two vectors of the panel and one broadcast fill the
// registers.
constexpr int kMaxRows = (kRegisters - 4) / 2;

// m[r, c] = sum_k v[r, k] panel[k, c] for `Rows` rows and `Width` (1 or 2) vectors' columns, k ascending; added to m if
// `Add`.
template <int Rows, int Width, bool Add>
static __attribute__((noinline)) void gemm_panel(const float* __restrict v, int64_t v_stride,
                                                 const float* __restrict panel, int64_t depth, float* __restrict m,
                                                 int64_t m_stride) {
  Vec sum[Rows][Width];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < Width; ++c) sum[r][c] = Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec columns[Width];
#pragma GCC unroll 2
    for (int c = 0; c < Width; ++c) {
      columns[c] = load(panel + (k * Width + c) * kLanes);
      __builtin_prefetch(panel + ((depth + k) * Width + c) * kLanes, 0, 2);  // what comes next, to the second level
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec scalar = broadcast(v[r * v_stride + k]);
#pragma GCC unroll 2
      for (int c = 0; c < Width; ++c) sum[r][c] += scalar * columns[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < Width; ++c) {
      float* to = m + r * m_stride + c * kLanes;
      store(to, Add ? load(to) + sum[r][c] : sum[r][c]);
    }
  }
}

using GemmPanel = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t);

// gemm_panel of 1 ... kMaxRows rows. The template arguments beyond are never asked for.
template <int Width, bool Add>
static constexpr GemmPanel gemm_panels[] = {
    gemm_panel<1, Width, Add>,
    gemm_panel<2, Width, Add>,
    gemm_panel<3, Width, Add>,
    gemm_panel<4, Width, Add>,
    gemm_panel<5, Width, Add>,
    gemm_panel<6, Width, Add>,
    gemm_panel<min(7, kMaxRows), Width, Add>,
    gemm_panel<min(8, kMaxRows), Width, Add>,
    gemm_panel<min(9, kMaxRows), Width, Add>,
    gemm_panel<min(10, kMaxRows), Width, Add>,
    gemm_panel<min(11, kMaxRows), Width, Add>,
    gemm_panel<min(12, kMaxRows), Width, Add>,
    gemm_panel<min(13, kMaxRows), Width, Add>,
    gemm_panel<min(14, kMaxRows), Width, Add>,
};

// m[r, c] = sum_k u[k, r] v[k, c] for `Rows` rows and `Width` (1 or 2) vectors' columns, k ascending; added to m if
// `Add`.
template <int Rows, int Width, bool Add>
static __attribute__((noinline)) void outer_panel(const float* __restrict u, int64_t u_stride,
                                                  const float* __restrict v, int64_t v_stride, int64_t depth,
                                                  float* __restrict m, int64_t m_stride) {
  Vec sum[Rows][Width];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < Width; ++c) sum[r][c] = Vec{};
  }
  for (int64_t k = 0; k < depth; ++k, u += u_stride, v += v_stride) {
    Vec columns[Width];
#pragma GCC unroll 2
    for (int c = 0; c < Width; ++c) columns[c] = load(v + c * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec scalar = broadcast(u[r]);
#pragma GCC unroll 2
      for (int c = 0; c < Width; ++c) sum[r][c] += scalar * columns[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < Width; ++c) {
      float* to = m + r * m_stride + c * kLanes;
      store(to, Add ? load(to) + sum[r][c] : sum[r][c]);
    }
  }
}

using OuterPanel = void (*)(const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t);

// outer_panel of 1 ... kMaxRows rows, as above.
template <int Width, bool Add>
static constexpr OuterPanel outer_panels[] = {
    outer_panel<1, Width, Add>,
    outer_panel<2, Width, Add>,
    outer_panel<3, Width, Add>,
    outer_panel<4, Width, Add>,
    outer_panel<5, Width, Add>,
    outer_panel<6, Width, Add>,
    outer_panel<min(7, kMaxRows), Width, Add>,
    outer_panel<min(8, kMaxRows), Width, Add>,
    outer_panel<min(9, kMaxRows), Width, Add>,
    outer_panel<min(10, kMaxRows), Width, Add>,
    outer_panel<min(11, kMaxRows), Width, Add>,
    outer_panel<min(12, kMaxRows), Width, Add>,
    outer_panel<min(13, kMaxRows), Width, Add>,
    outer_panel<min(14, kMaxRows), Width, Add>,
};

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
