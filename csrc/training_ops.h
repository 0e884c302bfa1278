// What the U-Net's training comes down to, as ops on tensors. Maps lie in blocks of channels, [batch, blocks, rows,
// columns, channels of a block], from the first convolution to the last: on the CPU of kBlock channels each, float32 or
// bfloat16; on a GPU there is one block, filled up with zeros to a multiple of kBlock, of float16 too.
// Parameters, their gradients, and the network's input and output, which are planes [batch, channels, rows, columns],
// are float32. Each op's gradients are ops of this list, so that what is trained is what was tested;
// pyunetsep/ops/training.py says which.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace pyunetsep {

// Batch norm by given statistics between two activations, then dropout, is given as
//   norm     [4, channels]: mean, variance, weight and bias;
//   numbers  epsilon, inner_slope, slope, and the probability of dropout;
//   seeds    int32 [batch], of the examples' dropout; without them nothing is dropped:
// y = max(z, slope z), z = weight (p - mean) / sqrt(variance + epsilon) + bias, p = max(x, inner_slope x).
// On a GPU the ops below can read a map through one: they read y where the map holds x, so that y need not be written.

// A 5x5 convolution of stride 2 of a map or of planes (fewer than kBlock) -> a map of `element`, or else of x's; and if
// inner_slope is given the map's statistics for a norm, [2, channels], else [0, ...]. Rows and columns are even; the
// weight is [out, in, 5, 5].
std::tuple<at::Tensor, at::Tensor> training_conv(const at::Tensor& x, const at::Tensor& weight,
                                                 const std::optional<at::Tensor>& bias, std::string_view alignment,
                                                 const std::optional<at::Tensor>& norm, at::ArrayRef<double> numbers,
                                                 std::optional<double> inner_slope,
                                                 std::optional<at::ScalarType> element);

// A 5x5 transposed convolution of stride 2 of a map, behind a skip if there is one -> a map, or planes; and statistics
// of the map; or if `sigmoid`, the planes' sigmoids. The weight is [skip's channels and x's, out, 5, 5];
// `skip_channels` of them are the skip's.
std::tuple<at::Tensor, at::Tensor> training_upconv(const at::Tensor& x, const std::optional<at::Tensor>& skip,
                                                   int64_t skip_channels, const at::Tensor& weight,
                                                   const std::optional<at::Tensor>& bias, bool to_planes,
                                                   std::string_view alignment, const std::optional<at::Tensor>& norm,
                                                   const std::optional<at::Tensor>& seeds, at::ArrayRef<double> numbers,
                                                   const std::optional<at::Tensor>& skip_norm,
                                                   at::ArrayRef<double> skip_numbers, std::optional<double> inner_slope,
                                                   bool sigmoid);

// The weight's gradient of both: of the strided convolution `coarse` is its output's gradient and `fine` its input, of
// the transposed one `coarse` is its input, behind a `skip` if there is one, and `fine` its output's gradient. The
// channels are the skip's, coarse's and fine's -> [skip's and coarse's, fine's, 5, 5]. The norms are what the inputs
// are read through.
at::Tensor training_weight_gradient(const at::Tensor& coarse, const std::optional<at::Tensor>& skip,
                                    const at::Tensor& fine, at::IntArrayRef channels, std::string_view alignment,
                                    const std::optional<at::Tensor>& norm, const std::optional<at::Tensor>& seeds,
                                    at::ArrayRef<double> numbers, const std::optional<at::Tensor>& skip_norm,
                                    at::ArrayRef<double> skip_numbers, const std::optional<at::Tensor>& fine_norm,
                                    at::ArrayRef<double> fine_numbers);

// The sum of each of a map's channels, [channels]: the gradient of a convolution's bias.
at::Tensor training_channel_sums(const at::Tensor& map, int64_t channels);

// Mean and variance, of all values and not of a sample, of p in each channel of a map of so many -> [2, channels].
at::Tensor training_norm_statistics(const at::Tensor& x, int64_t channels, double inner_slope);

// y of x.
at::Tensor training_norm(const at::Tensor& x, const at::Tensor& norm, const std::optional<at::Tensor>& seeds,
                         at::ArrayRef<double> numbers);

// Of y's gradient: the gradients of weight and bias, [2, channels].
at::Tensor training_norm_sums(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& norm,
                              const std::optional<at::Tensor>& seeds, at::ArrayRef<double> numbers);

// Of these too: the gradient of x, where mean and variance are its own. Where they are those of more values, the sums
// are theirs as well, times the share of the values that x has.
at::Tensor training_norm_gradient(const at::Tensor& gradient, const at::Tensor& sums, const at::Tensor& x,
                                  const at::Tensor& norm, const std::optional<at::Tensor>& seeds,
                                  at::ArrayRef<double> numbers);

// The convolution of Spleeter's head, on the CPU: 4x4 with dilation 2 of planes [batch, in, rows, columns], with a
// weight [out, in, 4, 4] -> [batch, out, rows, columns]. The gradient of x is one too.
at::Tensor training_head(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

// The gradient of its weight.
at::Tensor training_head_weight_gradient(const at::Tensor& gradient, const at::Tensor& x);

// The loss: the mean of |mask magnitude - target|, of planes of one shape -> one element.
at::Tensor training_masked_l1(const at::Tensor& mask, const at::Tensor& magnitude, const at::Tensor& target);

// Of its gradient, one element: that of the mask.
at::Tensor training_masked_l1_gradient(const at::Tensor& gradient, const at::Tensor& mask, const at::Tensor& magnitude,
                                       const at::Tensor& target);

}  // namespace pyunetsep
