#include "fft.h"
#include "parallel.h"

// A thread makes a run of hops of a row, for all stems, from the frames that reach them; the few frames that reach over
// its left edge are made by its neighbour too. Each sample is summed over frames in ascending order, so the cuts, and
// the threads, leave no trace in the result. A frame is made for one stem after the other, so that its spectrum comes
// from memory once.
//
// A frame's spectrum Y is split into the transforms of the even and the odd samples, Y[k] = E[k] + w^k O[k]; E + i O,
// half as many points, transforms back to z[m] = x[2 m] + i x[2 m + 1]. See stft.cpp for the way there.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kGrain = 1 << 16;  // samples to transform a thread at least: about 40 us of work

// One factor for each of the bins, with the transform's 1 / points.
void extend_mask(const MaskedIstft& a, const float* mask, float gain, float* factors) {
  const int64_t points = a.tables.points, end = a.first_bin + a.bins;
  const float scale = 1.0f / static_cast<float>(points);
  const float below = mask[0] * scale, above = (end == points ? mask[a.bins - 1] : gain) * scale;
  for (int64_t k = 0; k < a.first_bin; ++k) factors[k] = below;
  for (int64_t k = 0; k < a.bins; ++k) factors[a.first_bin + k] = mask[k] * scale;
  for (int64_t k = end; k <= points; ++k) factors[k] = above;
}

template <int W>
void points_of_spectrum(const FftTables& tables, const float* spectrum, const float* factors, float* re, float* im) {
  const int64_t points = tables.points, middle = points / 2;
  const auto masked = [&](int64_t k) {
    const Complex<W> x = load_complex<W>(spectrum + 2 * k);
    const Lanes<W> factor = load_lanes<W>(factors + k);
    return Complex<W>{x.re * factor, x.im * factor};
  };
  for (int64_t k = 0; k < middle; k += W) {
    const int64_t mirror = points - k - W + 1;
    const Complex<W> y = masked(k), y_mirror = conj(reversed(masked(mirror)));
    const Complex<W> even = y + y_mirror;
    const Complex<W> odd = (y - y_mirror) * conj(load_pair<W>(tables.real_re + k, tables.real_im + k));
    store_pair<W>(re + k, im + k, even + times_i(odd));
    store_pair<W>(re + mirror, im + mirror, reversed(conj(even) + times_i(conj(odd))));
  }
  re[middle] = 2 * factors[middle] * spectrum[2 * middle];
  im[middle] = -2 * factors[middle] * spectrum[2 * middle + 1];
  // the first and the last bin of a real wave are real; an imaginary part is not looked at
  const float first = factors[0] * spectrum[0], last = factors[points] * spectrum[2 * points];
  re[0] = first + last;
  im[0] = first - last;
}

// Adds the samples from `begin` to `end` of a frame, weighted, to those at `wave`, which is where the frame starts.
template <int W>
void add_samples(const float* re, const float* im, const float* window, int64_t begin, int64_t end, float* wave) {
  const auto add_one = [&](int64_t i) { wave[i] += window[i] * (i % 2 ? im[i / 2] : re[i / 2]); };
  const auto add_vector = [&](int64_t i, Lanes<W> x) {
    store_lanes<W>(wave + i, load_lanes<W>(wave + i) + load_lanes<W>(window + i) * x);
  };
  int64_t i = begin;
  for (; i < end && i % 2; ++i) add_one(i);
  for (; i + 2 * W <= end; i += 2 * W) {
    const Complex<W> z = load_pair<W>(re + i / 2, im + i / 2);
    add_vector(i, interleaved<0>(z.re, z.im, Indices<W>{}));
    add_vector(i + W, interleaved<W / 2>(z.re, z.im, Indices<W>{}));
  }
  for (; i < end; ++i) add_one(i);
}

// The samples [begin, end) of one row, of all stems.
template <int W>
void masked_istft_samples(const MaskedIstft& a, int64_t row, int64_t begin, int64_t end) {
  alignas(64) float re[kMaxFftPoints + 1], im[kMaxFftPoints + 1], factors[kMaxFftPoints + 1];
  alignas(64) float wave_re[kMaxFftPoints], wave_im[kMaxFftPoints];
  const int64_t n_fft = 2 * a.tables.points;
  for (int64_t stem = 0; stem < a.stems; ++stem) {
    std::memset(a.wave + (stem * a.rows + row) * a.length + begin, 0, (end - begin) * sizeof(float));
  }
  const int64_t first = begin < n_fft ? 0 : (begin - n_fft) / a.hop_length + 1;
  const int64_t last = min(a.frame_count - 1, (end - 1) / a.hop_length);
  for (int64_t frame = first; frame <= last; ++frame) {
    const float* spectrum = a.spectrum + row * a.spectrum_row_stride + frame * a.spectrum_frame_stride;
    const int64_t start = frame * a.hop_length;
    for (int64_t stem = 0; stem < a.stems; ++stem) {
      const int64_t made = stem * a.rows + row;
      const float* mask = a.mask + made * a.mask_row_stride + frame * a.mask_frame_stride;
      extend_mask(a, mask, a.gain[made * a.frame_count + frame], factors);
      points_of_spectrum<W>(a.tables, spectrum, factors, re, im);
      fft(a.tables, im, re, wave_im, wave_re);  // exchanged: the inverse
      add_samples<W>(wave_re, wave_im, a.window, max(begin, start) - start, min(end, start + n_fft) - start,
                     a.wave + made * a.length + start);
    }
  }
}

}  // namespace

void masked_istft(const MaskedIstft& args) {
  const int64_t n_fft = 2 * args.tables.points;
  const int64_t hops = ceil_div(args.length, args.hop_length);  // a row
  // and so many that the frames made twice are few
  const int64_t grain = max(ceil_div(kGrain, n_fft), 8 * ceil_div(n_fft, args.hop_length));
  parallel_for(0, args.rows * hops, grain, [&](int64_t begin, int64_t end) {
    for (int64_t next; begin < end; begin = next) {
      const int64_t row = begin / hops, first = begin - row * hops;
      next = min(end, (row + 1) * hops);
      const int64_t last = min(args.length, (next - row * hops) * args.hop_length);
      with_fft_lanes(args.tables.points,
                     [&]<int W>() { masked_istft_samples<W>(args, row, first * args.hop_length, last); });
    }
  });
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
