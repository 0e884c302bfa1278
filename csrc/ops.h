// The ops on tensors: check the arguments, allocate, choose device and dtype, call a kernel.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace pyunetsep {

// [stems, ...] magnitudes, [...] mixture -> [stems, ...] masks.
at::Tensor ratio_mask(const at::Tensor& magnitudes, const std::optional<at::Tensor>& mixture, double power,
                      double epsilon);

// [..., frames, n_fft] frames, [n_fft] window -> [..., (frames - 1) * hop_length + n_fft] wave; [..., 0] of no frames.
at::Tensor overlap_add(const at::Tensor& frames, const at::Tensor& window, int64_t hop_length);

}  // namespace pyunetsep
