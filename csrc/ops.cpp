#include "ops.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <cmath>
#include <limits>
#include <vector>

#include "checks.h"
#include "cuda_queue.h"
#include "fft_tables.h"
#include "kernels.h"

namespace pyunetsep {
namespace {

void check_dtype(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, name, ": got dtype ",
                   tensor.scalar_type(), ", wants float32 or float64");
}

void check_positive(const char* name, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name, ": got ", value, ", wants a finite number above 0");
}

void check_hop_length(int64_t hop_length, int64_t n_fft) {
  TORCH_CHECK_VALUE(1 <= hop_length && hop_length <= n_fft, "hop_length: got ", hop_length, ", wants 1 to n_fft, ",
                    n_fft);
}

// What the Fourier transforms take: pyunetsep/ops sends them nothing else.
void check_transform(const char* name, const at::Tensor& tensor, const at::Tensor& window) {
  check_cpu_float32(name, tensor);
  check_alike("window", window, name, tensor);
  const int64_t n_fft = window.dim() == 1 ? window.size(0) : 0;
  TORCH_CHECK_VALUE(2 * kMinFftPoints <= n_fft && n_fft <= 2 * kMaxFftPoints && (n_fft & (n_fft - 1)) == 0,
                    "window: got shape ", window.sizes(), ", wants [n_fft], a power of two from ", 2 * kMinFftPoints,
                    " to ", 2 * kMaxFftPoints);
}

void check_band(int64_t first_bin, int64_t bins, int64_t all_bins) {
  TORCH_CHECK_VALUE(0 <= first_bin && 1 <= bins && bins <= all_bins - first_bin, "first_bin, bins: got ", first_bin,
                    ", ", bins, ", wants a band of the ", all_bins, " bins");
}

// The same values as [rows, ...] of the last `kept` dimensions, of which the last is contiguous; a view, if possible.
at::Tensor as_rows(const at::Tensor& tensor, int64_t kept) {
  std::vector<int64_t> shape{1};
  for (int64_t i = 0; i < tensor.dim() - kept; ++i) shape[0] *= tensor.size(i);
  for (int64_t i = tensor.dim() - kept; i < tensor.dim(); ++i) shape.push_back(tensor.size(i));
  return (tensor.stride(-1) == 1 ? tensor : tensor.contiguous()).reshape(shape);
}

// Calls body with a zero of the tensor's element type.
template <typename Body>
void with_dtype(const at::Tensor& tensor, Body body) {
  tensor.scalar_type() == at::kDouble ? body(double{}) : body(float{});
}

}  // namespace

at::Tensor ratio_mask(const at::Tensor& magnitudes, const std::optional<at::Tensor>& mixture, double power,
                      double epsilon) {
  check_dtype("magnitudes", magnitudes);
  TORCH_CHECK_VALUE(magnitudes.dim() >= 1 && magnitudes.size(0) >= 1, "magnitudes: got shape ", magnitudes.sizes(),
                    ", wants [stems, ...] with at least one stem");
  if (mixture) {
    check_alike("mixture", *mixture, "magnitudes", magnitudes);
    TORCH_CHECK_VALUE(mixture->sizes() == magnitudes.sizes().slice(1), "mixture: got shape ", mixture->sizes(),
                      ", wants that of one stem, ", magnitudes.sizes().slice(1));
  }
  check_positive("power", power);
  check_positive("epsilon", epsilon);

  const c10::DeviceGuard guard(magnitudes.device());
  const at::Tensor stems = magnitudes.contiguous();
  const at::Tensor whole = mixture ? mixture->contiguous() : at::Tensor();
  const at::Tensor masks = at::empty(stems.sizes(), stems.options());
  if (masks.numel() == 0) return masks;

  with_dtype(stems, [&](auto zero) {
    using T = decltype(zero);
    const RatioMask<T> args{.magnitudes = stems.const_data_ptr<T>(),
                            .mixture = mixture ? whole.const_data_ptr<T>() : nullptr,
                            .masks = masks.mutable_data_ptr<T>(),
                            .stems = stems.size(0),
                            .points = stems.numel() / stems.size(0),
                            .power = static_cast<T>(power),
                            .epsilon = static_cast<T>(epsilon)};
    stems.is_cuda() ? cuda::ratio_mask(args, current_queue(stems.device())) : cpu::ratio_mask(args);
  });
  return masks;
}

at::Tensor overlap_add(const at::Tensor& frames, const at::Tensor& window, int64_t hop_length) {
  check_dtype("frames", frames);
  TORCH_CHECK_VALUE(frames.dim() >= 2, "frames: got shape ", frames.sizes(), ", wants [..., frames, n_fft]");
  check_alike("window", window, "frames", frames);
  const int64_t frame_count = frames.size(-2), n_fft = frames.size(-1);
  TORCH_CHECK_VALUE(window.dim() == 1 && window.size(0) == n_fft, "window: got shape ", window.sizes(), ", wants [",
                    n_fft, "], the length of a frame");
  check_hop_length(hop_length, n_fft);
  TORCH_CHECK_VALUE(n_fft <= std::numeric_limits<int32_t>::max(), "frames: got n_fft ", n_fft, ", wants below 2^31");

  const c10::DeviceGuard guard(frames.device());
  const at::Tensor rows = frames.contiguous();
  const at::Tensor weights = window.contiguous();
  std::vector<int64_t> shape(frames.sizes().begin(), frames.sizes().end() - 1);
  shape.back() = frame_count == 0 ? 0 : (frame_count - 1) * hop_length + n_fft;
  const at::Tensor wave = at::empty(shape, frames.options());
  if (wave.numel() == 0) return wave;

  with_dtype(rows, [&](auto zero) {
    using T = decltype(zero);
    const OverlapAdd<T> args{.frames = rows.const_data_ptr<T>(),
                             .window = weights.const_data_ptr<T>(),
                             .wave = wave.mutable_data_ptr<T>(),
                             .rows = wave.numel() / shape.back(),
                             .frame_count = frame_count,
                             .n_fft = n_fft,
                             .hop_length = hop_length,
                             .length = shape.back()};
    rows.is_cuda() ? cuda::overlap_add(args, current_queue(rows.device())) : cpu::overlap_add(args);
  });
  return wave;
}

std::tuple<at::Tensor, at::Tensor> stft(const at::Tensor& wave, const at::Tensor& window, int64_t hop_length,
                                        int64_t first_bin, int64_t bins) {
  TORCH_CHECK_VALUE(wave.dim() >= 1, "wave: got shape ", wave.sizes(), ", wants [..., samples]");
  check_transform("wave", wave, window);
  const int64_t n_fft = window.size(0), all_bins = n_fft / 2 + 1;
  check_hop_length(hop_length, n_fft);
  check_band(first_bin, bins, all_bins);

  const at::Tensor rows = as_rows(wave, 1);
  const at::Tensor weights = window.contiguous();
  std::vector<int64_t> shape(wave.sizes().begin(), wave.sizes().end());
  shape.back() = wave.size(-1) < n_fft ? 0 : (wave.size(-1) - n_fft) / hop_length + 1;
  shape.push_back(bins);
  const at::Tensor magnitude = at::empty(shape, wave.options());
  shape.back() = all_bins;
  const at::Tensor spectrum = at::empty(shape, wave.options().dtype(at::kComplexFloat));
  if (spectrum.numel() == 0) return {spectrum, magnitude};

  cpu::stft({.wave = rows.const_data_ptr<float>(),
             .window = weights.const_data_ptr<float>(),
             .spectrum = reinterpret_cast<float*>(spectrum.mutable_data_ptr<c10::complex<float>>()),
             .magnitude = magnitude.mutable_data_ptr<float>(),
             .rows = rows.size(0),
             .frame_count = magnitude.size(-2),
             .wave_stride = rows.stride(0),
             .hop_length = hop_length,
             .first_bin = first_bin,
             .bins = bins,
             .tables = fft_tables(n_fft)});
  return {spectrum, magnitude};
}

at::Tensor masked_istft(const at::Tensor& spectrum, const at::Tensor& mask, const at::Tensor& gain,
                        const at::Tensor& window, int64_t hop_length, int64_t first_bin) {
  check_transform("mask", mask, window);
  TORCH_CHECK_TYPE(spectrum.scalar_type() == at::kComplexFloat, "spectrum: got dtype ", spectrum.scalar_type(),
                   ", wants complex64, with mask of float32");
  TORCH_CHECK_VALUE(spectrum.device() == mask.device(), "spectrum: got device ", spectrum.device(),
                    ", wants that of mask, ", mask.device());
  check_alike("gain", gain, "mask", mask);
  const int64_t n_fft = window.size(0), all_bins = n_fft / 2 + 1;
  TORCH_CHECK_VALUE(spectrum.dim() >= 2 && spectrum.size(-1) == all_bins, "spectrum: got shape ", spectrum.sizes(),
                    ", wants [..., frames, ", all_bins, "], n_fft // 2 + 1");
  const int64_t frame_count = spectrum.size(-2), stem_axes = mask.dim() - spectrum.dim();
  const at::IntArrayRef frames = spectrum.sizes().slice(0, spectrum.dim() - 1);
  TORCH_CHECK_VALUE((stem_axes == 0 || stem_axes == 1) && mask.sizes().slice(stem_axes, frames.size()) == frames,
                    "mask: got shape ", mask.sizes(), ", wants that of spectrum, ", spectrum.sizes(),
                    ", but for the bins and stems in front");
  TORCH_CHECK_VALUE(gain.sizes() == mask.sizes().slice(0, mask.dim() - 1), "gain: got shape ", gain.sizes(),
                    ", wants that of mask without bins, ", mask.sizes().slice(0, mask.dim() - 1));
  check_hop_length(hop_length, n_fft);
  check_band(first_bin, mask.size(-1), all_bins);

  std::vector<int64_t> shape(mask.sizes().begin(), mask.sizes().end() - 1);
  shape.back() = frame_count == 0 ? 0 : (frame_count - 1) * hop_length + n_fft;
  const at::Tensor wave = at::empty(shape, mask.options());
  if (wave.numel() == 0) return wave;
  const at::Tensor spectra = as_rows(spectrum.resolve_conj(), 2);
  const at::Tensor masks = as_rows(mask, 2);
  const at::Tensor gains = gain.contiguous();
  const at::Tensor weights = window.contiguous();

  cpu::masked_istft({.spectrum = reinterpret_cast<const float*>(spectra.const_data_ptr<c10::complex<float>>()),
                     .mask = masks.const_data_ptr<float>(),
                     .gain = gains.const_data_ptr<float>(),
                     .window = weights.const_data_ptr<float>(),
                     .wave = wave.mutable_data_ptr<float>(),
                     .stems = masks.size(0) / spectra.size(0),
                     .rows = spectra.size(0),
                     .frame_count = frame_count,
                     .spectrum_row_stride = 2 * spectra.stride(0),
                     .spectrum_frame_stride = 2 * spectra.stride(1),
                     .mask_row_stride = masks.stride(0),
                     .mask_frame_stride = masks.stride(1),
                     .hop_length = hop_length,
                     .first_bin = first_bin,
                     .bins = mask.size(-1),
                     .length = shape.back(),
                     .tables = fft_tables(n_fft)});
  return wave;
}

}  // namespace pyunetsep
