#include <algorithm>
#include <map>
#include <vector>

#include "exports.h"

using exports::kQueue, exports::message_of;
using pyunetsep::cuda::FftRoots;

namespace {

// Made on the host, which is the device here.
FftRoots roots_of(int64_t n_fft) {
  static std::map<int64_t, std::vector<float>> kept;
  auto& roots = kept[n_fft];
  if (roots.empty()) roots = pyunetsep::cuda::fft_roots(n_fft);
  return {n_fft / 2, roots.data()};
}

}  // namespace

extern "C" {

const char* stft(const float* wave, const float* window, float* magnitude, float* spectrum, int64_t rows,
                 int64_t frame_count, int64_t wave_stride, int64_t n_fft, int64_t hop_length, int64_t first_bin,
                 int64_t bins) {
  return message_of([=] {
    pyunetsep::cuda::stft({wave, window, spectrum, magnitude, rows, frame_count, wave_stride, hop_length, first_bin,
                           bins, roots_of(n_fft)},
                          kQueue);
  });
}

const char* halved_roots(float* halved, int64_t n_fft) {
  return message_of([=] {
    const std::vector<float> roots = pyunetsep::cuda::fft_roots(n_fft);
    std::copy(roots.end() - n_fft / 2, roots.end(), halved);
  });
}

const char* magnitudes(const float* wave, const float* window, float* magnitude, int64_t rows, int64_t frame_count,
                       int64_t wave_stride, int64_t n_fft, int64_t hop_length, int64_t first_bin, int64_t bins) {
  return stft(wave, window, magnitude, nullptr, rows, frame_count, wave_stride, n_fft, hop_length, first_bin, bins);
}

// Strides in elements; the spectrum's are complex.
const char* masked_istft(const float* spectrum, const float* mask, const float* gain, const float* window, float* wave,
                         int64_t stems, int64_t rows, int64_t frame_count, int64_t spectrum_row_stride,
                         int64_t spectrum_frame_stride, int64_t mask_row_stride, int64_t mask_frame_stride,
                         int64_t n_fft, int64_t hop_length, int64_t first_bin, int64_t bins) {
  return message_of([=] {
    pyunetsep::cuda::masked_istft(
        {spectrum, mask, gain, window, wave, stems, rows, frame_count, 2 * spectrum_row_stride,
         2 * spectrum_frame_stride, mask_row_stride, mask_frame_stride, hop_length, first_bin, bins,
         (frame_count - 1) * hop_length + n_fft, roots_of(n_fft)},
        kQueue);
  });
}

const char* mask_wave(const float* wave, const float* mask, const float* gain, const float* window,
                      const float* synthesis_window, float* waves, int64_t stems, int64_t rows, int64_t frame_count,
                      int64_t wave_stride, int64_t mask_row_stride, int64_t mask_frame_stride, int64_t n_fft,
                      int64_t hop_length, int64_t first_bin, int64_t bins) {
  return message_of([=] {
    pyunetsep::cuda::mask_wave(
        {wave,
         window,
         wave_stride,
         {nullptr, mask, gain, synthesis_window, waves, stems, rows, frame_count, 0, 0, mask_row_stride,
          mask_frame_stride, hop_length, first_bin, bins, (frame_count - 1) * hop_length + n_fft, roots_of(n_fft)}},
        kQueue);
  });
}

}  // extern "C"
