#include "ops.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
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
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, name, ": got dtype ", tensor.scalar_type(), ", wants float32");
  TORCH_CHECK_VALUE(tensor.is_cpu() || tensor.is_cuda(), name, ": got device ", tensor.device(), ", wants cpu or cuda");
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

int64_t frames_in(int64_t samples, int64_t n_fft, int64_t hop_length) {
  return samples < n_fft ? 0 : (samples - n_fft) / hop_length + 1;
}

int64_t span_of(int64_t frames, int64_t n_fft, int64_t hop_length) {
  return frames == 0 ? 0 : (frames - 1) * hop_length + n_fft;
}

// Contiguous, at a multiple of the 8 bytes that CUDA kernels load at once.
at::Tensor in_pairs(const at::Tensor& window) {
  const at::Tensor weights = window.contiguous();
  return reinterpret_cast<uintptr_t>(weights.const_data_ptr()) % 8 == 0 ? weights : weights.clone();
}

// Copied to the device at the first call for it, which waits until they are there; kept to the end, and not destroyed
// then, when CUDA may have gone before.
cuda::FftRoots fft_roots(int64_t n_fft, at::Device device) {
  static std::mutex mutex;
  static auto& kept = *new std::map<std::pair<int64_t, at::DeviceIndex>, at::Tensor>;
  const std::lock_guard lock(mutex);
  at::Tensor& roots = kept[{n_fft, device.index()}];
  if (!roots.defined()) {
    const std::vector<float> values = cuda::fft_roots(n_fft);
    const at::Tensor here = at::empty({static_cast<int64_t>(values.size())}, at::kFloat);
    std::copy(values.begin(), values.end(), here.mutable_data_ptr<float>());
    roots = here.to(device);
  }
  return {n_fft / 2, roots.const_data_ptr<float>()};
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

namespace {

// Spectrum and magnitudes; without `spectrum_wanted` no spectrum, where the kernel can do without.
std::tuple<at::Tensor, at::Tensor> transform(const at::Tensor& wave, const at::Tensor& window, int64_t hop_length,
                                             int64_t first_bin, int64_t bins, bool spectrum_wanted) {
  TORCH_CHECK_VALUE(wave.dim() >= 1, "wave: got shape ", wave.sizes(), ", wants [..., samples]");
  check_transform("wave", wave, window);
  const int64_t n_fft = window.size(0), all_bins = n_fft / 2 + 1;
  check_hop_length(hop_length, n_fft);
  check_band(first_bin, bins, all_bins);

  const c10::DeviceGuard guard(wave.device());
  const at::Tensor rows = as_rows(wave, 1);
  const at::Tensor weights = in_pairs(window);
  std::vector<int64_t> shape(wave.sizes().begin(), wave.sizes().end());
  shape.back() = frames_in(wave.size(-1), n_fft, hop_length);
  shape.push_back(bins);
  const at::Tensor magnitude = at::empty(shape, wave.options());
  shape.back() = all_bins;
  const bool stored = spectrum_wanted || wave.is_cpu();
  const at::Tensor spectrum = stored ? at::empty(shape, wave.options().dtype(at::kComplexFloat)) : at::Tensor();
  if (magnitude.numel() == 0) return {spectrum, magnitude};

  const auto with_tables = [&](auto tables) {
    return StftWith<decltype(tables)>{
        .wave = rows.const_data_ptr<float>(),
        .window = weights.const_data_ptr<float>(),
        .spectrum = stored ? reinterpret_cast<float*>(spectrum.mutable_data_ptr<c10::complex<float>>()) : nullptr,
        .magnitude = magnitude.mutable_data_ptr<float>(),
        .rows = rows.size(0),
        .frame_count = magnitude.size(-2),
        .wave_stride = rows.stride(0),
        .hop_length = hop_length,
        .first_bin = first_bin,
        .bins = bins,
        .tables = tables};
  };
  if (wave.is_cpu()) {
    cpu::stft(with_tables(fft_tables(n_fft)));
  } else {
    cuda::stft(with_tables(fft_roots(n_fft, wave.device())), current_queue(wave.device()));
  }
  return {spectrum, magnitude};
}

void check_gain_and_band(const at::Tensor& mask, const at::Tensor& gain, int64_t n_fft, int64_t hop_length,
                         int64_t first_bin) {
  TORCH_CHECK_VALUE(gain.sizes() == mask.sizes().slice(0, mask.dim() - 1), "gain: got shape ", gain.sizes(),
                    ", wants that of mask without bins, ", mask.sizes().slice(0, mask.dim() - 1));
  check_hop_length(hop_length, n_fft);
  check_band(first_bin, mask.size(-1), n_fft / 2 + 1);
}

// What masks make of `rows` spectra, which are to be added to the arguments. The tensors live as long as this does.
struct Inverse {
  at::Tensor mask, gain, window, wave;

  Inverse(const at::Tensor& mask, const at::Tensor& gain, const at::Tensor& window, int64_t hop_length)
      : mask(as_rows(mask, 2)), gain(gain.contiguous()), window(in_pairs(window)) {
    std::vector<int64_t> shape(mask.sizes().begin(), mask.sizes().end() - 1);
    shape.back() = span_of(mask.size(-2), window.size(0), hop_length);
    wave = at::empty(shape, mask.options());
  }

  template <typename Tables>
  MaskedIstftWith<Tables> arguments(int64_t rows, int64_t hop_length, int64_t first_bin, Tables tables) const {
    return {.spectrum = nullptr,
            .mask = mask.const_data_ptr<float>(),
            .gain = gain.const_data_ptr<float>(),
            .window = window.const_data_ptr<float>(),
            .wave = wave.mutable_data_ptr<float>(),
            .stems = mask.size(0) / rows,
            .rows = rows,
            .frame_count = mask.size(1),
            .spectrum_row_stride = 0,
            .spectrum_frame_stride = 0,
            .mask_row_stride = mask.stride(0),
            .mask_frame_stride = mask.stride(1),
            .hop_length = hop_length,
            .first_bin = first_bin,
            .bins = mask.size(2),
            .length = wave.size(-1),
            .tables = tables};
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> stft(const at::Tensor& wave, const at::Tensor& window, int64_t hop_length,
                                        int64_t first_bin, int64_t bins) {
  return transform(wave, window, hop_length, first_bin, bins, true);
}

at::Tensor magnitudes(const at::Tensor& wave, const at::Tensor& window, int64_t hop_length, int64_t first_bin,
                      int64_t bins) {
  return std::get<1>(transform(wave, window, hop_length, first_bin, bins, false));
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
  const int64_t stem_axes = mask.dim() - spectrum.dim();
  const at::IntArrayRef frames = spectrum.sizes().slice(0, spectrum.dim() - 1);
  TORCH_CHECK_VALUE((stem_axes == 0 || stem_axes == 1) && mask.sizes().slice(stem_axes, frames.size()) == frames,
                    "mask: got shape ", mask.sizes(), ", wants that of spectrum, ", spectrum.sizes(),
                    ", but for the bins and stems in front");
  check_gain_and_band(mask, gain, n_fft, hop_length, first_bin);

  const c10::DeviceGuard guard(mask.device());
  const Inverse inverse(mask, gain, window, hop_length);
  if (inverse.wave.numel() == 0) return inverse.wave;
  const at::Tensor spectra = as_rows(spectrum.resolve_conj(), 2);
  const auto with_tables = [&](auto tables) {
    auto args = inverse.arguments(spectra.size(0), hop_length, first_bin, tables);
    args.spectrum = reinterpret_cast<const float*>(spectra.const_data_ptr<c10::complex<float>>());
    args.spectrum_row_stride = 2 * spectra.stride(0);
    args.spectrum_frame_stride = 2 * spectra.stride(1);
    return args;
  };
  if (mask.is_cpu()) {
    cpu::masked_istft(with_tables(fft_tables(n_fft)));
  } else {
    cuda::masked_istft(with_tables(fft_roots(n_fft, mask.device())), current_queue(mask.device()));
  }
  return inverse.wave;
}

at::Tensor mask_wave(const at::Tensor& wave, const at::Tensor& mask, const at::Tensor& gain, const at::Tensor& window,
                     const at::Tensor& synthesis_window, int64_t hop_length, int64_t first_bin) {
  TORCH_CHECK_VALUE(wave.dim() >= 1, "wave: got shape ", wave.sizes(), ", wants [..., samples]");
  check_transform("wave", wave, window);
  check_alike("mask", mask, "wave", wave);
  check_alike("gain", gain, "wave", wave);
  check_alike("synthesis_window", synthesis_window, "wave", wave);
  const int64_t n_fft = window.size(0);
  TORCH_CHECK_VALUE(synthesis_window.sizes() == window.sizes(), "synthesis_window: got shape ",
                    synthesis_window.sizes(), ", wants that of window, ", window.sizes());
  const int64_t stem_axes = mask.dim() - wave.dim() - 1;
  const at::IntArrayRef leading = wave.sizes().slice(0, wave.dim() - 1);
  TORCH_CHECK_VALUE((stem_axes == 0 || stem_axes == 1) && mask.sizes().slice(stem_axes, leading.size()) == leading,
                    "mask: got shape ", mask.sizes(), ", wants that of wave, ", wave.sizes(),
                    ", but for frames and bins instead of samples and stems in front");
  check_gain_and_band(mask, gain, n_fft, hop_length, first_bin);
  const int64_t frames = mask.size(-2), all_frames = frames_in(wave.size(-1), n_fft, hop_length);
  TORCH_CHECK_VALUE(frames <= all_frames, "mask: got ", frames, " frames, wants at most those of the wave, ",
                    all_frames);

  if (wave.is_cpu()) {
    const at::Tensor first = wave.narrow(-1, 0, span_of(frames, n_fft, hop_length));
    return masked_istft(std::get<0>(stft(first, window, hop_length, 0, 1)), mask, gain, synthesis_window, hop_length,
                        first_bin);
  }
  const c10::DeviceGuard guard(wave.device());
  const Inverse inverse(mask, gain, synthesis_window, hop_length);
  if (inverse.wave.numel() == 0) return inverse.wave;
  const at::Tensor rows = as_rows(wave, 1);
  const at::Tensor weights = in_pairs(window);
  cuda::mask_wave({.wave = rows.const_data_ptr<float>(),
                   .window = weights.const_data_ptr<float>(),
                   .wave_stride = rows.stride(0),
                   .inverse = inverse.arguments(rows.size(0), hop_length, first_bin, fft_roots(n_fft, wave.device()))},
                  current_queue(wave.device()));
  return inverse.wave;
}

}  // namespace pyunetsep
