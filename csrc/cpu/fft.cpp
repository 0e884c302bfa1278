#include "fft.h"

// points = N1 N2, and the points are taken as a matrix [N1, N2] of n = n1 N2 + n2. Its columns are transformed over n1,
// multiplied by w^(k1 n2), transposed to [N2, N1], and transformed over n2 in place: then row k2, column k1 holds
// k = k1 + N1 k2. Both times W neighbouring columns are worked on at once, so that every butterfly is on whole vectors
// with unit stride and the transposition is the only shuffle; the two passes over a column meet in a few kilobytes on
// the stack. N2 is N1 or twice that, and so it is again with the two radices (2, 4 or 8) that make a column's length.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

// x[k] = sum_n exp(-2 pi i k n / R) x[n].
template <int R, int W>
struct Butterfly;

template <int W>
struct Butterfly<2, W> {
  static inline void run(Complex<W>* x) {
    const Complex<W> sum = x[0] + x[1];
    x[1] = x[0] - x[1];
    x[0] = sum;
  }
};

template <int W>
struct Butterfly<4, W> {
  static inline void run(Complex<W>* x) {
    const Complex<W> even_sum = x[0] + x[2], even_difference = x[0] - x[2];
    const Complex<W> odd_sum = x[1] + x[3], odd_difference = times_minus_i(x[1] - x[3]);
    x[0] = even_sum + odd_sum;
    x[1] = even_difference + odd_difference;
    x[2] = even_sum - odd_sum;
    x[3] = even_difference - odd_difference;
  }
};

template <int W>
struct Butterfly<8, W> {
  static inline void run(Complex<W>* x) {
    constexpr float kRoot = 0.70710678118654752f;  // of 1/2
    Complex<W> even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    Butterfly<4, W>::run(even);
    Butterfly<4, W>::run(odd);
    const Complex<W> first = odd[1], third = odd[3];
    odd[1] = {(first.re + first.im) * kRoot, (first.im - first.re) * kRoot};  // (1 - i) / sqrt 2
    odd[2] = times_minus_i(odd[2]);
    odd[3] = {(third.im - third.re) * kRoot, -(third.re + third.im) * kRoot};  // (-1 - i) / sqrt 2
    for (int k = 0; k < 4; ++k) {
      x[k] = even[k] + odd[k];
      x[k + 4] = even[k] - odd[k];
    }
  }
};

// Transforms W columns of M points. Point m = a R2 + b comes from `from(m)`, result k = c + R1 d goes to `to(k, x)`;
// `twiddles` are re and im of exp(-2 pi i b c / M) in the order [R2, R1].
template <int M, int W, typename From, typename To>
static inline void transform_columns(const float* twiddles, From from, To to) {
  constexpr int R1 = smaller_factor(M), R2 = M / R1;
  Complex<W> between[R1][R2];
  for (int b = 0; b < R2; ++b) {
    Complex<W> x[R1];
    for (int a = 0; a < R1; ++a) x[a] = from(a * R2 + b);
    Butterfly<R1, W>::run(x);
    between[0][b] = x[0];
    for (int c = 1; c < R1; ++c) {
      const float* twiddle = twiddles + 2 * (b * R1 + c);
      between[c][b] = x[c] * Complex<W>{twiddle[0] - Lanes<W>{}, twiddle[1] - Lanes<W>{}};
    }
  }
  for (int c = 0; c < R1; ++c) {
    Complex<W> x[R2];
    for (int b = 0; b < R2; ++b) x[b] = between[c][b];
    Butterfly<R2, W>::run(x);
    for (int d = 0; d < R2; ++d) to(c + R1 * d, x[d]);
  }
}

// Row j of the result, at to + j stride, is column j of the W rows.
template <int W>
static inline void store_transposed(const Lanes<W>* rows, float* to, int64_t stride) {
  Lanes<W> x[W], y[W];
  for (int i = 0; i < W; ++i) x[i] = rows[i];
  for (int step = 1; step < W; step *= 2) {  // each turns the bits of (row, lane) by one
    for (int i = 0; i < W / 2; ++i) {
      y[2 * i] = interleaved<0>(x[i], x[i + W / 2], Indices<W>{});
      y[2 * i + 1] = interleaved<W / 2>(x[i], x[i + W / 2], Indices<W>{});
    }
    for (int i = 0; i < W; ++i) x[i] = y[i];
  }
  for (int i = 0; i < W; ++i) store_lanes<W>(to + i * stride, x[i]);
}

template <int N1, int N2>
void fft_of(const FftTables& tables, const float* re, const float* im, float* to_re, float* to_im) {
  constexpr int W = fft_lanes(N1 * N2);
  for (int first = 0; first < N2; first += W) {
    Lanes<W> column_re[N1], column_im[N1];
    transform_columns<N1, W>(
        tables.first, [&](int n1) { return load_pair<W>(re + n1 * N2 + first, im + n1 * N2 + first); },
        [&](int k1, Complex<W> x) {
          const int at = k1 * N2 + first;
          x = x * load_pair<W>(tables.between_re + at, tables.between_im + at);
          column_re[k1] = x.re;
          column_im[k1] = x.im;
        });
    for (int k1 = 0; k1 < N1; k1 += W) {
      store_transposed<W>(column_re + k1, to_re + first * N1 + k1, N1);
      store_transposed<W>(column_im + k1, to_im + first * N1 + k1, N1);
    }
  }
  for (int first = 0; first < N1; first += W) {
    transform_columns<N2, W>(
        tables.second, [&](int n2) { return load_pair<W>(to_re + n2 * N1 + first, to_im + n2 * N1 + first); },
        [&](int k2, Complex<W> x) { store_pair<W>(to_re + k2 * N1 + first, to_im + k2 * N1 + first, x); });
  }
}

}  // namespace

void fft(const FftTables& tables, const float* re, const float* im, float* to_re, float* to_im) {
  switch (tables.points) {
    case 16:
      return fft_of<4, 4>(tables, re, im, to_re, to_im);
    case 32:
      return fft_of<4, 8>(tables, re, im, to_re, to_im);
    case 64:
      return fft_of<8, 8>(tables, re, im, to_re, to_im);
    case 128:
      return fft_of<8, 16>(tables, re, im, to_re, to_im);
    case 256:
      return fft_of<16, 16>(tables, re, im, to_re, to_im);
    case 512:
      return fft_of<16, 32>(tables, re, im, to_re, to_im);
    case 1024:
      return fft_of<32, 32>(tables, re, im, to_re, to_im);
    case 2048:
      return fft_of<32, 64>(tables, re, im, to_re, to_im);
    case 4096:
      return fft_of<64, 64>(tables, re, im, to_re, to_im);
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
