// The ops on tensors: check the arguments, allocate, choose device and dtype, call a kernel.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace pyunetsep {

// [stems, ...] magnitudes, [...] mixture -> [stems, ...] masks.
at::Tensor ratio_mask(const at::Tensor& magnitudes, const std::optional<at::Tensor>& mixture, double power,
                      double epsilon);

// [..., frames, n_fft] frames, [n_fft] window -> [..., (frames - 1) * hop_length + n_fft] wave; [..., 0] of no frames.
at::Tensor overlap_add(const at::Tensor& frames, const at::Tensor& window, int64_t hop_length);

// [..., samples] wave, [n_fft] window -> complex [..., frames, n_fft / 2 + 1] spectrum of the frames that lie wholly in
// the wave, and [..., frames, bins] magnitude of its bins from first_bin on. In float32, for n_fft a power of two from
// 32 to 8192.
std::tuple<at::Tensor, at::Tensor> stft(const at::Tensor& wave, const at::Tensor& window, int64_t hop_length,
                                        int64_t first_bin, int64_t bins);

// The magnitude alone.
at::Tensor magnitudes(const at::Tensor& wave, const at::Tensor& window, int64_t hop_length, int64_t first_bin,
                      int64_t bins);

// complex [..., frames, n_fft / 2 + 1] spectrum, [..., frames, bins] or [stems, ..., frames, bins] mask, gain of one
// value a frame of that, [n_fft] window -> [(stems,) ..., (frames - 1) * hop_length + n_fft] wave. Limits as for stft.
at::Tensor masked_istft(const at::Tensor& spectrum, const at::Tensor& mask, const at::Tensor& gain,
                        const at::Tensor& window, int64_t hop_length, int64_t first_bin);

// masked_istft, with synthesis_window, of the spectrum that stft, with window, makes of [..., samples] wave; of its
// first frames, if the mask has fewer.
at::Tensor mask_wave(const at::Tensor& wave, const at::Tensor& mask, const at::Tensor& gain, const at::Tensor& window,
                     const at::Tensor& synthesis_window, int64_t hop_length, int64_t first_bin);

}  // namespace pyunetsep
