#include "fft.h"
#include "parallel.h"

// One task is a frame: it is windowed into points z[m] = x[2 m] + i x[2 m + 1], half as many as samples, transformed,
// and taken apart into the transforms of the even and the odd samples, E and O, of which X[k] = E[k] + w^k O[k] is made
// with w = exp(-2 pi i / n_fft). All of it stays in the nearest caches, and the spectrum is read back from there for
// the magnitudes.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kGrain = 1 << 15;  // samples to transform a thread at least: about 20 us of work

template <int W>
void windowed_points(const float* wave, const float* window, int64_t points, float* re, float* im) {
  for (int64_t m = 0; m < points; m += W) {
    const float *x = wave + 2 * m, *w = window + 2 * m;
    const Lanes<W> low = load_lanes<W>(x) * load_lanes<W>(w), high = load_lanes<W>(x + W) * load_lanes<W>(w + W);
    store_pair<W>(re + m, im + m, {evens(low, high, Indices<W>{}), odds(low, high, Indices<W>{})});
  }
}

// From the halved transform of the points, which repeats with z[points] = z[0], to the spectrum's points + 1 bins; k
// and its mirror image points - k, whose E and O are the conjugates, at once.
template <int W>
void spectrum_of_points(const FftTables& tables, const float* re, const float* im, float* spectrum) {
  const int64_t points = tables.points, middle = points / 2;
  for (int64_t k = 0; k < middle; k += W) {
    const int64_t mirror = points - k - W + 1;
    const Complex<W> z = load_pair<W>(re + k, im + k);
    const Complex<W> z_mirror = conj(reversed(load_pair<W>(re + mirror, im + mirror)));
    const Complex<W> even = z + z_mirror;
    const Complex<W> odd = times_minus_i(z - z_mirror) * load_pair<W>(tables.real_re + k, tables.real_im + k);
    store_complex<W>(spectrum + 2 * k, even + odd);
    store_complex<W>(spectrum + 2 * mirror, reversed(conj(even - odd)));
  }
  spectrum[2 * middle] = 2 * re[middle];
  spectrum[2 * middle + 1] = -2 * im[middle];
}

template <int W>
void magnitudes(const float* spectrum, float* magnitude, int64_t bins) {
  int64_t k = 0;
  for (; k + W <= bins; k += W) {
    const Complex<W> x = load_complex<W>(spectrum + 2 * k);
    const Lanes<W> square = x.re * x.re + x.im * x.im;
    Lanes<W> root;
    for (int lane = 0; lane < W; ++lane) root[lane] = __builtin_sqrtf(square[lane]);
    store_lanes<W>(magnitude + k, root);
  }
  for (; k < bins; ++k) {
    const float re = spectrum[2 * k], im = spectrum[2 * k + 1];
    magnitude[k] = __builtin_sqrtf(re * re + im * im);
  }
}

template <int W>
void stft_frames(const Stft& a, int64_t begin, int64_t end) {
  alignas(64) float wave_re[kMaxFftPoints], wave_im[kMaxFftPoints], re[kMaxFftPoints + 1], im[kMaxFftPoints + 1];
  const int64_t points = a.tables.points;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / a.frame_count, frame = task % a.frame_count;
    float* spectrum = a.spectrum + task * 2 * (points + 1);
    windowed_points<W>(a.wave + row * a.wave_stride + frame * a.hop_length, a.window, points, wave_re, wave_im);
    fft(a.tables, wave_re, wave_im, re, im);
    re[points] = re[0];
    im[points] = im[0];
    spectrum_of_points<W>(a.tables, re, im, spectrum);
    magnitudes<W>(spectrum + 2 * a.first_bin, a.magnitude + task * a.bins, a.bins);
  }
}

}  // namespace

void stft(const Stft& args) {
  const int64_t grain = ceil_div(kGrain, 2 * args.tables.points);
  parallel_for(0, args.rows * args.frame_count, grain, [&](int64_t begin, int64_t end) {
    with_fft_lanes(args.tables.points, [&]<int W>() { stft_frames<W>(args, begin, end); });
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
