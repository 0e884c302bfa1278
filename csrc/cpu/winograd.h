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

// The gradient of the three taps is a correlation as well, with the gradients of the M outputs in the taps' place:
//
//     w = A'^T [(G' y) * (B^T x)],  x: M + 2 inputs, y: gradients of M outputs, w: gradients of 3 taps
//
// of the same points, hence with the same B^T. Taps of which one is known to be zero do without the first point or the
// last, as above. For M = 1 the points are the taps.

// G' y.
template <int M>
static inline void gradient_transform(const Vec* y, int stride, Vec* to, int to_stride);

template <>
inline __attribute__((always_inline)) void gradient_transform<4>(const Vec* y, int stride, Vec* to, int to_stride) {
  const Vec y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
  const Vec even = (1.0f / 3) * (y0 + y2), odd = (1.0f / 3) * (y1 + y3);
  to[0] = y0;
  to[to_stride] = even + odd;
  to[2 * to_stride] = odd - even;
  to[3 * to_stride] = (-16.0f / 15) * (y0 + 0.25f * y2 + (0.5f * y1 + 0.125f * y3));
  to[4 * to_stride] = (1.0f / 15) * (y0 + 4.0f * y2 - (2.0f * y1 + 8.0f * y3));
  to[5 * to_stride] = y3;
}

template <>
inline __attribute__((always_inline)) void gradient_transform<2>(const Vec* y, int stride, Vec* to, int to_stride) {
  const Vec y0 = y[0], y1 = y[stride];
  to[0] = -y0;
  to[to_stride] = 0.5f * (y0 + y1);
  to[2 * to_stride] = 0.5f * (y0 - y1);
  to[3 * to_stride] = y1;
}

template <>
inline __attribute__((always_inline)) void gradient_transform<1>(const Vec* y, int, Vec* to, int to_stride) {
  for (int i = 0; i < 3; ++i) to[i * to_stride] = y[0];
}

// A'^T m.
template <int M>
static inline void tap_transform(const Vec* m, int stride, Vec* to, int to_stride);

template <>
inline __attribute__((always_inline)) void tap_transform<4>(const Vec* m, int stride, Vec* to, int to_stride) {
  const Vec m3 = m[3 * stride], m4 = m[4 * stride];
  const Vec sum = m[stride] + m[2 * stride], difference = m[stride] - m[2 * stride];
  to[0] = (m[0] + sum) + (m3 + m4);
  to[to_stride] = difference + 0.5f * m3 - 2.0f * m4;
  to[2 * to_stride] = (sum + m[5 * stride]) + 0.25f * m3 + 4.0f * m4;
}

template <>
inline __attribute__((always_inline)) void tap_transform<2>(const Vec* m, int stride, Vec* to, int to_stride) {
  const Vec sum = m[stride] + m[2 * stride];
  to[0] = m[0] + sum;
  to[to_stride] = m[stride] - m[2 * stride];
  to[2 * to_stride] = sum + m[3 * stride];
}

template <>
inline __attribute__((always_inline)) void tap_transform<1>(const Vec* m, int stride, Vec* to, int to_stride) {
  for (int i = 0; i < 3; ++i) to[i * to_stride] = m[i * stride];
}

// Vectors of doubles are divided exactly; those of floats, weights that change with the next step of training, quickly.
template <typename Values>
static inline __attribute__((always_inline)) void divide(Values& x, int by) {
  using Value = __typeof__(x[0] + x[0]);
  if constexpr (sizeof(Value) == sizeof(double)) {
    x /= static_cast<Value>(by);
  } else {
    x *= 1 / static_cast<Value>(by);
  }
}

// G w, of vectors of floats or doubles.
template <int M, typename Values>
static inline __attribute__((always_inline)) void filter_transform(const Values* w, int stride, Values* to,
                                                                   int to_stride) {
  using Value = __typeof__(w[0][0] + w[0][0]);
  const Values w0 = w[0], w1 = w[stride], w2 = w[2 * stride];
  to[0] = w0;
  if constexpr (M == 4) {
    to[to_stride] = (w0 + w2) + w1;
    to[2 * to_stride] = w1 - (w0 + w2);
    to[3 * to_stride] = Value(-4) * (Value(4) * w0 + (Value(2) * w1 + w2));
    to[4 * to_stride] = w0 - Value(2) * (w1 - Value(2) * w2);
    to[5 * to_stride] = w2;
    divide(to[to_stride], 3);
    divide(to[2 * to_stride], 3);
    divide(to[3 * to_stride], 15);
    divide(to[4 * to_stride], 15);
  } else if constexpr (M == 2) {
    to[0] = -w0;
    to[to_stride] = Value(0.5) * (w0 + w1 + w2);
    to[2 * to_stride] = Value(0.5) * (w0 - w1 + w2);
    to[3 * to_stride] = w2;
  } else {
    to[to_stride] = w1;
    to[2 * to_stride] = w2;
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
