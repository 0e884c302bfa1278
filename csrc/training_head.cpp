#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include "checks.h"
#include "layers.h"
#include "training_ops.h"

namespace pyunetsep {
namespace {

constexpr int64_t kTaps = 4;

// [batch, channels, rows, columns] between the margins that the kernels want.
at::Tensor with_margins(const char* name, const at::Tensor& planes) {
  check_cpu_float32(name, planes);
  TORCH_CHECK_VALUE(planes.dim() == 4 && planes.numel() > 0, name, ": got shape ", planes.sizes(),
                    ", wants [batch, channels, rows, columns], and none of it empty");
  return at::constant_pad_nd(planes, {cpu::kHeadMargin, cpu::kHeadMargin}).contiguous();
}

}  // namespace

at::Tensor training_head(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const at::Tensor source = with_margins("x", x);
  check_cpu_float32("weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) == x.size(1) && weight.size(2) == kTaps &&
                        weight.size(3) == kTaps,
                    "weight: got shape ", weight.sizes(), ", wants [out, ", x.size(1), ", 4, 4]");
  const int64_t out = weight.size(0);
  at::Tensor biases;
  if (bias) {
    check_cpu_float32("bias", *bias);
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == out, "bias: got shape ", bias->sizes(), ", wants [", out,
                      "], the channels out");
    biases = bias->contiguous();
  }
  const at::Tensor weights = weight.contiguous();
  const at::Tensor y = at::empty({x.size(0), out, x.size(2), x.size(3)}, x.options());
  const Scratch scratch(cpu::level().dilated_head_scratch_size(x.size(3)));
  cpu::level().dilated_head_run({.source = source.const_data_ptr<float>(),
                                 .batch = x.size(0),
                                 .channels = x.size(1),
                                 .rows = x.size(2),
                                 .columns = x.size(3),
                                 .weight = weights.const_data_ptr<float>(),
                                 .bias = bias ? biases.const_data_ptr<float>() : nullptr,
                                 .out_channels = out,
                                 .to = output_planes(cpu::Ending::plain, y, y),
                                 .scratch = scratch.data(),
                                 .scratch_stride = scratch.stride,
                                 .threads = scratch.threads});
  return y;
}

at::Tensor training_head_weight_gradient(const at::Tensor& gradient, const at::Tensor& x) {
  const at::Tensor source = with_margins("x", x);
  check_cpu_float32("gradient", gradient);
  TORCH_CHECK_VALUE(gradient.dim() == 4 && gradient.size(0) == x.size(0) && gradient.size(1) > 0 &&
                        gradient.size(2) == x.size(2) && gradient.size(3) == x.size(3),
                    "gradient: got shape ", gradient.sizes(), ", wants that of x but for the channels, ", x.sizes());
  const at::Tensor of_y = gradient.contiguous();
  const at::Tensor of_weight = at::empty({gradient.size(1), x.size(1), kTaps, kTaps}, x.options());
  cpu::DilatedHeadGradient args{.source = source.const_data_ptr<float>(),
                                .batch = x.size(0),
                                .channels = x.size(1),
                                .rows = x.size(2),
                                .columns = x.size(3),
                                .gradient = of_y.const_data_ptr<float>(),
                                .out_channels = gradient.size(1),
                                .of_weight = of_weight.mutable_data_ptr<float>(),
                                .scratch = nullptr,
                                .threads = at::get_num_threads()};
  const at::Tensor scratch = at::empty({cpu::level().dilated_head_gradient_scratch_size(args)}, at::kDouble);
  args.scratch = scratch.mutable_data_ptr<double>();
  cpu::level().dilated_head_gradient(args);
  return of_weight;
}

}  // namespace pyunetsep
