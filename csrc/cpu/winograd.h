// Minimal filtering: M outputs of a three-tap correlation with M + 2 multiplications (Winograd, Cook-Toom), in one
// dimension. Two dimensions are one after the other.
//
//     y = A^T [(G w) * (B^T x)],  x: M + 2 inputs, w: 3 taps, y: M outputs
//
// The points are {0, 5/8, -5/8, 3/2, -3/2, inf} for M = 4 and {0, 1, -1, inf} for M = 2. Of all points of M = 4 that
// are short fractions, these lose the least to rounding (a third less than {0, 1, -1, 1/2, -2, inf}), their powers are
// exact in a float, and pairs of +- share most of their arithmetic. M = 1 is the plain correlation: a "point" is a tap.
//
// A filter whose first tap is zero has nothing at the first point (0), one whose last tap is zero nothing at the last
// (infinity): two-tap filters so cost M + 1 multiplications in the same domain, and may be added up there with others.
#pragma once
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

template <int M>
constexpr int kPoints = M + 2;

// The points of M = 4 are 0, near, -near, far, -far and infinity.
constexpr float kNear = 0.625f, kNear2 = kNear * kNear, kNear3 = kNear2 * kNear;
constexpr float kFar = 1.5f, kFar2 = kFar * kFar, kFar3 = kFar2 * kFar;

// Products of the differences between each of them and the other finite ones.
constexpr float kOfZero = kNear2 * kFar2;
constexpr float kOfNear = 2 * kNear2 * (kNear2 - kFar2), kOfFar = 2 * kFar2 * (kFar2 - kNear2);

// B^T x. The elements of an array lie its stride apart.
template <int M>
static inline void input_transform(const Vec* x, int stride, Vec* to, int to_stride);

template <>
inline __attribute__((always_inline)) void input_transform<4>(const Vec* x, int stride, Vec* to, int to_stride) {
  const Vec x0 = x[0], x1 = x[stride], x2 = x[2 * stride], x3 = x[3 * stride], x4 = x[4 * stride], x5 = x[5 * stride];
  const Vec even_near = x4 - kFar2 * x2, odd_near = x3 - kFar2 * x1;
  const Vec even_far = x4 - kNear2 * x2, odd_far = x3 - kNear2 * x1;
  to[0] = x4 - (kNear2 + kFar2) * x2 + kOfZero * x0;
  to[to_stride] = even_near + kNear * odd_near;
  to[2 * to_stride] = even_near - kNear * odd_near;
  to[3 * to_stride] = even_far + kFar * odd_far;
  to[4 * to_stride] = even_far - kFar * odd_far;
  to[5 * to_stride] = x5 - (kNear2 + kFar2) * x3 + kOfZero * x1;
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
  const Vec even_near = m[stride] + m[2 * stride], odd_near = m[stride] - m[2 * stride];
  const Vec even_far = m[3 * stride] + m[4 * stride], odd_far = m[3 * stride] - m[4 * stride];
  to[0] = m[0] + even_near + even_far;
  to[to_stride] = kNear * odd_near + kFar * odd_far;
  to[2 * to_stride] = kNear2 * even_near + kFar2 * even_far;
  to[3 * to_stride] = m[5 * stride] + kNear3 * odd_near + kFar3 * odd_far;
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
  const Vec even_near = (1 / kOfNear) * y0 + (kNear2 / kOfNear) * y2;
  const Vec odd_near = (kNear / kOfNear) * y1 + (kNear3 / kOfNear) * y3;
  const Vec even_far = (1 / kOfFar) * y0 + (kFar2 / kOfFar) * y2;
  const Vec odd_far = (kFar / kOfFar) * y1 + (kFar3 / kOfFar) * y3;
  to[0] = (1 / kOfZero) * y0;
  to[to_stride] = even_near + odd_near;
  to[2 * to_stride] = even_near - odd_near;
  to[3 * to_stride] = even_far + odd_far;
  to[4 * to_stride] = even_far - odd_far;
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
  const Vec even_near = m[stride] + m[2 * stride], odd_near = m[stride] - m[2 * stride];
  const Vec even_far = m[3 * stride] + m[4 * stride], odd_far = m[3 * stride] - m[4 * stride];
  to[0] = m[0] + even_near + even_far;
  to[to_stride] = kNear * odd_near + kFar * odd_far;
  to[2 * to_stride] = m[5 * stride] + kNear2 * even_near + kFar2 * even_far;
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

// G w, of vectors of floats or doubles.
template <int M, typename Values>
static inline __attribute__((always_inline)) void filter_transform(const Values* w, int stride, Values* to,
                                                                   int to_stride) {
  using Value = __typeof__(w[0][0] + w[0][0]);
  const Values w0 = w[0], w1 = w[stride], w2 = w[2 * stride];
  if constexpr (M == 4) {
    constexpr Value kOverNear = 1 / Value(kOfNear), kOverFar = 1 / Value(kOfFar);
    const Values even_near = kOverNear * w0 + (kOverNear * kNear2) * w2,
                 even_far = kOverFar * w0 + (kOverFar * kFar2) * w2;
    to[0] = (1 / Value(kOfZero)) * w0;
    to[to_stride] = even_near + (kOverNear * kNear) * w1;
    to[2 * to_stride] = even_near - (kOverNear * kNear) * w1;
    to[3 * to_stride] = even_far + (kOverFar * kFar) * w1;
    to[4 * to_stride] = even_far - (kOverFar * kFar) * w1;
    to[5 * to_stride] = w2;
  } else if constexpr (M == 2) {
    to[0] = -w0;
    to[to_stride] = Value(0.5) * (w0 + w1 + w2);
    to[2 * to_stride] = Value(0.5) * (w0 - w1 + w2);
    to[3 * to_stride] = w2;
  } else {
    to[0] = w0;
    to[to_stride] = w1;
    to[2 * to_stride] = w2;
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
