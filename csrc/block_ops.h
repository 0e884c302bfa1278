// Single blocks of the U-Net as ops on tensors, float32 on the CPU. They pack the weights anew at each call: for tests,
// and for networks composed by hand; a UNetPlan packs once.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace pyunetsep {

// [batch, in, rows, columns] x, [out, in, 5, 5] weight, [out] bias, scale and shift -> the strided convolution, and
// max(z, slope z) of z = scale x + shift.
std::tuple<at::Tensor, at::Tensor> encoder_block(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                                 const at::Tensor& scale, const at::Tensor& shift, double slope,
                                                 std::string_view alignment);

// [batch, channels, rows, columns] x, behind a skip of that size if there is one -> upsampled by 2, then scale and
// shift and ReLU, in this order if `norm_first`. The weight is [in, out, 5, 5], or [out, in, 5, 5] for "nearest".
at::Tensor decoder_block(const at::Tensor& x, const std::optional<at::Tensor>& skip, const at::Tensor& weight,
                         const at::Tensor& bias, const at::Tensor& scale, const at::Tensor& shift, bool norm_first,
                         std::string_view alignment, std::string_view upsampling);

// The same without norm, and with a sigmoid: the last block of a network that ends in it.
at::Tensor mask_block(const at::Tensor& x, const std::optional<at::Tensor>& skip, const at::Tensor& weight,
                      const at::Tensor& bias, std::string_view alignment, std::string_view upsampling);

// [batch, 1, rows, columns] x, [out, 1, 4, 4] weight -> sigmoid of the convolution with dilation 2.
at::Tensor dilated_head(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace pyunetsep
