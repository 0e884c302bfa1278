// Minimal filtering: M outputs of a three-tap correlation with M + 2 multiplications (Winograd, Cook-Toom), in one
// dimension. Two dimensions are one after the other.
//
//     y = A^T [(G w) * (B^T x)],  x: M + 2 inputs, w: 3 taps, y: M outputs
//
// The points are {0, 1, -1, 1/2, -2, inf} for M = 4 and {0, 1, -1, inf} for M = 2. The sign pattern (1/2 against -2,
// not +-1/2) halves the rounding error of M = 4: no two rows of G are nearly dependent. M = 1 is the plain correlation:
// a "point" is a tap.
//
// A filter whose first tap is zero has nothing at the first point (0), one whose last tap is zero nothing at the last
// (infinity): two-tap filters so cost M + 1 multiplications in the same domain, and may be added up there with others.
#pragma once
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

template <int M>
constexpr int kPoints = M + 2;

// B^T x. The elements of an array lie its stride apart.
template <int M>
static inline void input_transform(const Vec* x, int stride, Vec* to, int to_stride);

template <>
inline __attribute__((always_inline)) void input_transform<4>(const Vec* x, int stride, Vec* to, int to_stride) {
  const Vec x0 = x[0], x1 = x[stride], x2 = x[2 * stride], x3 = x[3 * stride], x4 = x[4 * stride], x5 = x[5 * stride];
  const Vec odd = x3 - x1, even = x4 - x2;
  const Vec sum = even + 1.5f * x3, difference = odd + 1.5f * x2;
  to[0] = (x0 - x2) + even + 1.5f * odd;
  to[to_stride] = sum + difference;
  to[2 * to_stride] = sum - difference;
  to[3 * to_stride] = even + 2.0f * odd;
  to[4 * to_stride] = even - 0.5f * odd;
  to[5 * to_stride] = (x5 - x3) - odd + 1.5f * even;
}

template <>
inline __attribute__((always_inline)) void input_transform<2>(const Vec* x, int stride, Vec* to, int to_stride) {
  const Vec x0 = x[0], x1 = x[stride], x2 = x[2 * stride], x3 = x[3 * stride];
  to[0] = x2 - x0;
  to[to_stride] = x2 + x1;
  to[2 * to_stride] = x2 - x1;
  to[3 * to_stride] = x3 - x1;
}

template <>
inline __attribute__((always_inline)) void input_transform<1>(const Vec* x, int stride, Vec* to, int to_stride) {
  for (int i = 0; i < 3; ++i) to[i * to_stride] = x[i * stride];
}

// A^T m.
template <int M>
static inline void output_transform(const Vec* m, int stride, Vec* to, int to_stride);

template <>
inline __attribute__((always_inline)) void output_transform<4>(const Vec* m, int stride, Vec* to, int to_stride) {
  const Vec m3 = m[3 * stride], m4 = m[4 * stride];
  const Vec sum = m[stride] + m[2 * stride], difference = m[stride] - m[2 * stride];
  to[0] = (m[0] + sum) + (m3 + m4);
  to[to_stride] = difference + 0.5f * m3 - 2.0f * m4;
  to[2 * to_stride] = sum + 0.25f * m3 + 4.0f * m4;
  to[3 * to_stride] = (difference + m[5 * stride]) + 0.125f * m3 - 8.0f * m4;
}

template <>
inline __attribute__((always_inline)) void output_transform<2>(const Vec* m, int stride, Vec* to, int to_stride) {
  to[0] = (m[0] + m[stride]) + m[2 * stride];
  to[to_stride] = (m[stride] - m[2 * stride]) + m[3 * stride];
}

template <>
inline __attribute__((always_inline)) void output_transform<1>(const Vec* m, int stride, Vec* to, int) {
  to[0] = (m[0] + m[stride]) + m[2 * stride];
}

// G w in double precision, once a model.
template <int M>
static inline void filter_transform(const double* w, int stride, double* to, int to_stride) {
  const double w0 = w[0], w1 = w[stride], w2 = w[2 * stride];
  if constexpr (M == 4) {
    const double points[] = {0.0, 1.0, -1.0, 0.5, -2.0};
    for (int i = 0; i < 5; ++i) {
      double scale = 1.0;
      for (int j = 0; j < 5; ++j) {
        if (j != i) scale *= points[i] - points[j];
      }
      to[i * to_stride] = (w0 + points[i] * (w1 + points[i] * w2)) / scale;
    }
    to[5 * to_stride] = w2;
  } else if constexpr (M == 2) {
    to[0] = -w0;
    to[to_stride] = (w0 + w1 + w2) / 2;
    to[2 * to_stride] = (w0 - w1 + w2) / 2;
    to[3 * to_stride] = w2;
  } else {
    to[0] = w0;
    to[to_stride] = w1;
    to[2 * to_stride] = w2;
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
