// A complex Fourier transform that stays in the first cache level, and what its callers do before and after it with
// vectors of `W` floats: the transform's length decides W, kLanes where it is long enough.
#pragma once
#include <utility>

#include "../kernels.h"
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

// Z[k] = 1/2 sum_n exp(-2 pi i k n / points) z[n] for points = tables.points = 16, 32, ... kMaxFftPoints, into other
// memory. With re and im exchanged on both sides it is the inverse transform.
void fft(const FftTables& tables, const float* re, const float* im, float* to_re, float* to_im);

// The widest vectors that go evenly into the factors of `points`.
constexpr int fft_lanes(int64_t points) {
  const int64_t factor = smaller_factor(points);
  return factor < kLanes ? static_cast<int>(factor) : kLanes;
}

// Calls body.template operator()<W>() with the W for `points`.
template <typename Body>
static inline void with_fft_lanes(int64_t points, Body body) {
  constexpr int kHalf = kLanes > 4 ? kLanes / 2 : kLanes, kQuarter = kHalf > 4 ? kHalf / 2 : kHalf;
  const int lanes = fft_lanes(points);
  if (lanes == kLanes) {
    body.template operator()<kLanes>();
  } else if (lanes == kHalf) {
    body.template operator()<kHalf>();
  } else {
    body.template operator()<kQuarter>();
  }
}

template <int W>
struct LanesOf {
  typedef float Type __attribute__((vector_size(4 * W)));
};
template <int W>
using Lanes = typename LanesOf<W>::Type;

template <int W>
static inline Lanes<W> load_lanes(const float* from) {
  Lanes<W> vec;
  std::memcpy(&vec, from, sizeof vec);
  return vec;
}
template <int W>
static inline void store_lanes(float* to, Lanes<W> vec) {
  std::memcpy(to, &vec, sizeof vec);
}

// Shuffles. Of std this takes a type, and no function.
template <int W>
using Indices = std::make_integer_sequence<int, W>;

template <int... I>
static inline auto reversed(Lanes<sizeof...(I)> a, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, a, (static_cast<int>(sizeof...(I)) - 1 - I)...);
}
template <int... I>
static inline auto evens(Lanes<sizeof...(I)> a, Lanes<sizeof...(I)> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
template <int... I>
static inline auto odds(Lanes<sizeof...(I)> a, Lanes<sizeof...(I)> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}
// a[0] b[0] a[1] b[1] ..., from lane `From` on.
template <int From, int... I>
static inline auto interleaved(Lanes<sizeof...(I)> a, Lanes<sizeof...(I)> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (From + I / 2 + I % 2 * static_cast<int>(sizeof...(I)))...);
}

// W complex numbers.
template <int W>
struct Complex {
  Lanes<W> re, im;
};

template <int W>
static inline Complex<W> load_pair(const float* re, const float* im) {
  return {load_lanes<W>(re), load_lanes<W>(im)};
}
template <int W>
static inline void store_pair(float* re, float* im, Complex<W> z) {
  store_lanes<W>(re, z.re);
  store_lanes<W>(im, z.im);
}
// The same from and to real and imaginary parts in turn.
template <int W>
static inline Complex<W> load_complex(const float* from) {
  const Lanes<W> low = load_lanes<W>(from), high = load_lanes<W>(from + W);
  return {evens(low, high, Indices<W>{}), odds(low, high, Indices<W>{})};
}
template <int W>
static inline void store_complex(float* to, Complex<W> z) {
  store_lanes<W>(to, interleaved<0>(z.re, z.im, Indices<W>{}));
  store_lanes<W>(to + W, interleaved<W / 2>(z.re, z.im, Indices<W>{}));
}
template <int W>
static inline Complex<W> reversed(Complex<W> z) {
  return {reversed(z.re, Indices<W>{}), reversed(z.im, Indices<W>{})};
}

template <int W>
static inline Complex<W> operator+(Complex<W> a, Complex<W> b) {
  return {a.re + b.re, a.im + b.im};
}
template <int W>
static inline Complex<W> operator-(Complex<W> a, Complex<W> b) {
  return {a.re - b.re, a.im - b.im};
}
template <int W>
static inline Complex<W> operator*(Complex<W> a, Complex<W> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <int W>
static inline Complex<W> conj(Complex<W> z) {
  return {z.re, -z.im};
}
template <int W>
static inline Complex<W> times_i(Complex<W> z) {
  return {-z.im, z.re};
}
template <int W>
static inline Complex<W> times_minus_i(Complex<W> z) {
  return {z.im, -z.re};
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
