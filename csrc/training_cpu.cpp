#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "training_kernels.h"

namespace pyunetsep {
namespace {

using cpu::kBlock;

Block block_of(const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t channels) {
  return {weight, bias ? *bias : at::zeros({channels}, at::kFloat), std::nullopt, std::nullopt, 1.0, true};
}

// A norm's arguments with the memory that they point to. What is not needed for statistics alone may be undefined.
class Arguments {
 public:
  Arguments(const at::Tensor& x, double inner_slope) {
    args_ = {.x = x.const_data_ptr<float>(),
             .batch = x.size(0),
             .channels = x.size(1) * kBlock,
             .pixels = x.size(2) * x.size(3),
             .inner_slope = static_cast<float>(inner_slope),
             .slope = 1.0f,
             .mean = nullptr,
             .scale = nullptr,
             .bias = nullptr,
             .dropout = {},
             .threads = at::get_num_threads()};
  }

  explicit Arguments(const TrainingNorm& norm) : Arguments(norm.x, norm.inner_slope) {
    scale_ = at::empty_like(norm.weight);
    inverse_deviation_ = at::empty_like(norm.weight);
    float *scale = scale_.mutable_data_ptr<float>(), *inverse = inverse_deviation_.mutable_data_ptr<float>();
    const float *weight = norm.weight.const_data_ptr<float>(), *variance = norm.variance.const_data_ptr<float>();
    for (int64_t c = 0; c < norm.weight.numel(); ++c) {
      const double deviation = std::sqrt(static_cast<double>(variance[c]) + norm.epsilon);
      inverse[c] = static_cast<float>(1 / deviation);
      scale[c] = static_cast<float>(weight[c] / deviation);
    }
    args_.slope = static_cast<float>(norm.slope);
    args_.mean = norm.mean.const_data_ptr<float>();
    args_.scale = scale;
    args_.bias = norm.bias.const_data_ptr<float>();
    args_.dropout = dropout_of(norm);
  }

  const cpu::Normalisation& operator*() const { return args_; }
  double* scratch() {
    scratch_ = at::empty({cpu::level().norm_scratch_size(args_)}, at::kDouble);
    return scratch_.mutable_data_ptr<double>();
  }
  const float* inverse_deviation() const { return inverse_deviation_.const_data_ptr<float>(); }

 private:
  at::Tensor scale_, inverse_deviation_, scratch_;
  cpu::Normalisation args_;
};

class CpuKernels final : public TrainingKernels {
 public:
  bool computes(at::ScalarType element) const override { return element == at::kFloat; }
  int64_t block(int64_t) const override { return kBlock; }
  at::Tensor empty_map(const Size& size, int64_t channels, const at::TensorOptions&) const override {
    return pyunetsep::empty_map(size, channels);
  }

  void conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Alignment alignment,
            const at::Tensor& y) const override {
    const Block block = block_of(weight, bias, weight.size(0));
    const Size in = size_of(x), out = size_of(y);
    auto* const to = y.mutable_data_ptr<float>();
    if (x.dim() == 4) {
      const InputLayer layer(cpu::level(), block, alignment);
      const Scratch scratch(layer.scratch_floats(out));
      layer.run(x, out, to, nullptr, scratch.data(), scratch.stride, scratch.threads);
    } else {
      const ConvolutionLayer layer(cpu::level(), block, {weight.size(1)}, alignment, std::nullopt, out);
      const Scratch scratch(layer.scratch_floats(out, at::get_num_threads()));
      layer.run({x.const_data_ptr<float>()}, {}, in, out, to, nullptr, scratch.data(), scratch.stride, scratch.threads);
    }
  }

  void upconv(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Alignment alignment,
              const at::Tensor& y) const override {
    const Block block = block_of(weight, bias, weight.size(1));
    const Size in = size_of(x.maps.front());
    std::vector<const float*> sources;
    for (const at::Tensor& map : x.maps) sources.push_back(map.const_data_ptr<float>());
    if (y.dim() == 4) {
      const OutputLayer layer(cpu::level(), block, x.channels, alignment, Upsampling::transposed);
      const Scratch scratch(layer.scratch_floats(in));
      layer.run(sources, in, output_planes(cpu::Ending::plain, y, y), scratch.data(), scratch.stride, scratch.threads);
    } else {
      const ConvolutionLayer layer(cpu::level(), block, x.channels, alignment, Upsampling::transposed, in);
      const Scratch scratch(layer.scratch_floats(in, at::get_num_threads()));
      layer.run(sources, {}, in, in, y.mutable_data_ptr<float>(), nullptr, scratch.data(), scratch.stride,
                scratch.threads);
    }
  }

  void weight_gradient(const Sources& coarse, const at::Tensor& fine, Alignment alignment,
                       const at::Tensor& gradient) const override {
    if (fine.dim() == 4) return plane_weight_gradient(coarse, fine, alignment, gradient);
    const Phases phases = phases_of(alignment, std::nullopt);
    const Size grid = size_of(coarse.maps.front());
    const auto [tile_rows, tile_columns] = best_tile(phases, grid);
    const bool two = coarse.maps.size() > 1;
    cpu::WeightGradient args{
        .phases = phases,
        .tile_rows = tile_rows,
        .tile_columns = tile_columns,
        .coarse = {coarse.maps[0].const_data_ptr<float>(), two ? coarse.maps[1].const_data_ptr<float>() : nullptr},
        .fine = fine.const_data_ptr<float>(),
        .batch = grid.batch,
        .rows = grid.rows,
        .columns = grid.columns,
        .fine_rows = fine.size(2),
        .fine_columns = fine.size(3),
        .coarse_channels = {coarse.channels[0], two ? coarse.channels[1] : 0},
        .fine_channels = gradient.size(1),
        .gradient = gradient.mutable_data_ptr<float>(),
        .scratch = nullptr,
        .threads = at::get_num_threads()};
    const at::Tensor scratch = allocate_floats(cpu::level().weight_gradient_scratch_size(args));
    args.scratch = scratch.mutable_data_ptr<float>();
    cpu::level().weight_gradient(args);
  }

  void norm_statistics(const at::Tensor& x, double inner_slope, const at::Tensor& mean,
                       const at::Tensor& variance) const override {
    Arguments arguments(x, inner_slope);
    cpu::level().norm_statistics(*arguments, {.mean = mean.mutable_data_ptr<float>(),
                                              .variance = variance.mutable_data_ptr<float>(),
                                              .scratch = arguments.scratch()});
  }

  void norm(const TrainingNorm& norm, const at::Tensor& y) const override {
    cpu::level().norm_apply(*Arguments(norm), y.mutable_data_ptr<float>());
  }

  bool reads_in_place(const at::Tensor& gradient) const override { return gradient[0].is_contiguous(); }

  void norm_sums(const TrainingNorm& norm, const at::Tensor& gradient, const at::Tensor& of_weight,
                 const at::Tensor& of_bias) const override {
    Arguments arguments(norm);
    cpu::level().norm_sums(*arguments, {.gradient = gradient.const_data_ptr<float>(),
                                        .gradient_stride = gradient.stride(0),
                                        .inverse_deviation = arguments.inverse_deviation(),
                                        .of_weight = of_weight.mutable_data_ptr<float>(),
                                        .of_bias = of_bias.mutable_data_ptr<float>(),
                                        .of_x = nullptr,
                                        .scratch = arguments.scratch()});
  }

  void norm_gradient(const TrainingNorm& norm, const at::Tensor& gradient, const at::Tensor& of_weight,
                     const at::Tensor& of_bias, const at::Tensor& of_x) const override {
    const Arguments arguments(norm);
    cpu::level().norm_gradient(*arguments, {.gradient = gradient.const_data_ptr<float>(),
                                            .gradient_stride = gradient.stride(0),
                                            .inverse_deviation = arguments.inverse_deviation(),
                                            .of_weight = of_weight.mutable_data_ptr<float>(),
                                            .of_bias = of_bias.mutable_data_ptr<float>(),
                                            .of_x = of_x.mutable_data_ptr<float>(),
                                            .scratch = nullptr});
  }

 private:
  static void plane_weight_gradient(const Sources& coarse, const at::Tensor& fine, Alignment alignment,
                                    const at::Tensor& gradient) {
    const Size grid = size_of(coarse.maps.front());
    float* to = gradient.mutable_data_ptr<float>();
    for (size_t i = 0; i < coarse.maps.size(); ++i) {
      cpu::PlaneWeightGradient args{.coarse = coarse.maps[i].const_data_ptr<float>(),
                                    .fine = fine.const_data_ptr<float>(),
                                    .batch = grid.batch,
                                    .rows = grid.rows,
                                    .columns = grid.columns,
                                    .fine_rows = fine.size(2),
                                    .fine_columns = fine.size(3),
                                    .coarse_channels = coarse.channels[i],
                                    .fine_channels = gradient.size(1),
                                    .pad = zeros_before(alignment),
                                    .gradient = to,
                                    .scratch = nullptr,
                                    .threads = at::get_num_threads()};
      const at::Tensor scratch = allocate_floats(cpu::level().plane_weight_gradient_scratch_size(args));
      args.scratch = scratch.mutable_data_ptr<float>();
      cpu::level().plane_weight_gradient(args);
      to += coarse.channels[i] * gradient.size(1) * 25;
    }
  }
};

}  // namespace

const TrainingKernels& training_kernels_of_cpu() {
  static const CpuKernels kernels;
  return kernels;
}

}  // namespace pyunetsep
