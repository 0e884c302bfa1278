#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <type_traits>

#include "training_kernels.h"

namespace pyunetsep {
namespace {

using cpu::kBlock;

Block block_of(const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t channels) {
  return {weight, bias ? *bias : at::zeros({channels}, at::kFloat), std::nullopt, std::nullopt, 1.0, true};
}

template <typename T>
const T* data_of(const at::Tensor& map) {
  return static_cast<const T*>(map.const_data_ptr());
}
template <typename T>
T* mutable_data_of(const at::Tensor& map) {
  return static_cast<T*>(map.mutable_data_ptr());
}

bool is_bfloat16(const at::Tensor& map) { return map.scalar_type() == at::kBFloat16; }

// Calls body with a value of the type that a map's numbers have in the kernels.
template <typename Body>
void with_element(const at::Tensor& map, const Body& body) {
  is_bfloat16(map) ? body(cpu::Bfloat16{}) : body(0.0f);
}

template <typename T>
const cpu::NormKernels<T>& norm_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return *cpu::level().norm;
  } else {
    return *cpu::level().bfloat16_norm;
  }
}

// A norm's arguments with the memory that they point to. What is not needed for statistics alone may be undefined.
template <typename T>
class Arguments {
 public:
  Arguments(const at::Tensor& x, double inner_slope) {
    args_ = {.x = data_of<T>(x),
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

  Arguments(const at::Tensor& x, const TrainingNorm& norm) : Arguments(x, norm.inner_slope) {
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

  const cpu::Normalisation<T>& operator*() const { return args_; }

  // Arguments of both steps of the gradient: the first needs scratch memory, the second where to write, `of_x`.
  cpu::NormGradient<T> gradient(const at::Tensor& gradient, const at::Tensor& of_weight, const at::Tensor& of_bias,
                                T* of_x) {
    return {.gradient = data_of<T>(gradient),
            .gradient_stride = gradient.stride(0),
            .inverse_deviation = inverse_deviation_.const_data_ptr<float>(),
            .of_weight = of_weight.mutable_data_ptr<float>(),
            .of_bias = of_bias.mutable_data_ptr<float>(),
            .of_x = of_x,
            .scratch = of_x ? nullptr : scratch()};
  }

  double* scratch() {
    scratch_ = at::empty({norm_kernels<T>().scratch_size(args_)}, at::kDouble);
    return scratch_.template mutable_data_ptr<double>();
  }

 private:
  at::Tensor scale_, inverse_deviation_, scratch_;
  cpu::Normalisation<T> args_;
};

cpu::CoarseAndFine coarse_and_fine(const Size& grid, const std::vector<int64_t>& coarse_channels, int64_t fine_channels,
                                   Alignment alignment) {
  return {.batch = grid.batch,
          .rows = grid.rows,
          .columns = grid.columns,
          .coarse_channels = {coarse_channels[0], coarse_channels.size() > 1 ? coarse_channels[1] : 0},
          .fine_channels = fine_channels,
          .phases = phases_of(alignment, Upsampling::transposed),
          .pad = zeros_before(alignment)};
}

std::vector<int64_t> channels_of(const Sources& sources) {
  std::vector<int64_t> channels;
  for (const Source& source : sources) channels.push_back(source.channels);
  return channels;
}

std::vector<const float*> floats_of(const Sources& sources) {
  std::vector<const float*> maps;
  for (const Source& source : sources) maps.push_back(source.map.const_data_ptr<float>());
  return maps;
}

// Of the fine side, which may be planes.
bool are_planes(const at::Tensor& fine) { return fine.dim() == 4; }
const cpu::Bfloat16* map_or_null(const at::Tensor& fine) {
  return are_planes(fine) ? nullptr : data_of<cpu::Bfloat16>(fine);
}
const float* planes_or_null(const at::Tensor& fine) { return are_planes(fine) ? data_of<float>(fine) : nullptr; }

const float* data_or_null(const std::optional<at::Tensor>& values) {
  return values ? values->const_data_ptr<float>() : nullptr;
}

// ---- convolutions of bfloat16 maps

template <typename Run>
void run_with_scratch(Run& run, int64_t (*size)(const Run&), void (*kernel)(const Run&)) {
  run.threads = at::get_num_threads();
  const at::Tensor scratch = allocate_floats((size(run) + 3) / 4);
  run.scratch = scratch.mutable_data_ptr();
  kernel(run);
}

void bfloat16_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   Alignment alignment, const at::Tensor& y) {
  cpu::Bfloat16Convolution run{.maps = coarse_and_fine(size_of(y), {weight.size(0)}, weight.size(1), alignment),
                               .fine = map_or_null(x),
                               .planes = planes_or_null(x),
                               .weight = weight.const_data_ptr<float>(),
                               .bias = data_or_null(bias),
                               .coarse = mutable_data_of<cpu::Bfloat16>(y),
                               .scratch = nullptr,
                               .threads = 0};
  run_with_scratch(run, cpu::level().bfloat16_convolution_scratch_size, cpu::level().bfloat16_convolution);
}

void bfloat16_upconv(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     Alignment alignment, const at::Tensor& y) {
  cpu::Bfloat16Upconvolution run{
      .maps = coarse_and_fine(size_of(x.front().map), channels_of(x), weight.size(1), alignment),
      .coarse = {data_of<cpu::Bfloat16>(x.front().map), data_of<cpu::Bfloat16>(x.back().map)},
      .weight = weight.const_data_ptr<float>(),
      .bias = data_or_null(bias),
      .fine = are_planes(y) ? nullptr : mutable_data_of<cpu::Bfloat16>(y),
      .planes = are_planes(y) ? mutable_data_of<float>(y) : nullptr,
      .scratch = nullptr,
      .threads = 0};
  run_with_scratch(run, cpu::level().bfloat16_upconvolution_scratch_size, cpu::level().bfloat16_upconvolution);
}

void bfloat16_weight_gradient(const Sources& coarse, const at::Tensor& fine, Alignment alignment,
                              const at::Tensor& gradient) {
  cpu::Bfloat16WeightGradient run{
      .maps = coarse_and_fine(size_of(coarse.front().map), channels_of(coarse), gradient.size(1), alignment),
      .coarse = {data_of<cpu::Bfloat16>(coarse.front().map), data_of<cpu::Bfloat16>(coarse.back().map)},
      .fine = map_or_null(fine),
      .planes = planes_or_null(fine),
      .gradient = gradient.mutable_data_ptr<float>(),
      .scratch = nullptr,
      .threads = 0};
  run_with_scratch(run, cpu::level().bfloat16_weight_gradient_scratch_size, cpu::level().bfloat16_weight_gradient);
}

class CpuKernels final : public TrainingKernels {
 public:
  bool computes(at::ScalarType element) const override { return element == at::kFloat || element == at::kBFloat16; }
  int64_t block(int64_t) const override { return kBlock; }
  at::Tensor empty_map(const Size& size, int64_t channels, const at::TensorOptions& options) const override {
    if (options.dtype() == at::kFloat) return pyunetsep::empty_map(size, channels);
    const at::Tensor memory = allocate_floats((map_floats(size, channels) + 1) / 2).view(at::kBFloat16);
    return memory.view({size.batch, blocks_of(channels), size.rows, size.columns, kBlock});
  }

  bool reads_through_norms() const override { return false; }

  void conv(const Source& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Alignment alignment,
            const at::Tensor& y, const std::optional<TrainingStatistics>& statistics) const override {
    (is_bfloat16(y) ? bfloat16_conv : float_conv)(x.map, weight, bias, alignment, y);
    if (statistics) norm_statistics(y, *statistics);
  }

  void upconv(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Alignment alignment,
              const at::Tensor& y, const std::optional<TrainingStatistics>& statistics) const override {
    (is_bfloat16(x.front().map) ? bfloat16_upconv : float_upconv)(x, weight, bias, alignment, y);
    if (statistics) norm_statistics(y, *statistics);
  }

  void upconv_to_planes(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        Alignment alignment, const at::Tensor& y, bool sigmoid) const override {
    if (!is_bfloat16(x.front().map)) return float_upconv_to_planes(x, weight, bias, alignment, y, sigmoid);
    bfloat16_upconv(x, weight, bias, alignment, y);
    if (sigmoid) at::sigmoid_out(const_cast<at::Tensor&>(y), y);
  }

  void weight_gradient(const Sources& coarse, const Source& fine, Alignment alignment,
                       const at::Tensor& gradient) const override {
    const auto kernel = is_bfloat16(coarse.front().map) ? bfloat16_weight_gradient
                        : are_planes(fine.map)          ? plane_weight_gradient
                                                        : map_weight_gradient;
    kernel(coarse, fine.map, alignment, gradient);
  }

  void channel_sums(const at::Tensor& map, const at::Tensor& sums) const override {
    with_element(map, [&]<typename T>(T) {
      Arguments<T> arguments(map, 1.0);
      norm_kernels<T>().channel_sums(*arguments, sums.mutable_data_ptr<float>(), arguments.scratch());
    });
  }

  void norm_statistics(const at::Tensor& x, const TrainingStatistics& statistics) const override {
    with_element(x, [&]<typename T>(T) {
      Arguments<T> arguments(x, statistics.inner_slope);
      norm_kernels<T>().statistics(*arguments, {.mean = statistics.mean.mutable_data_ptr<float>(),
                                                .variance = statistics.variance.mutable_data_ptr<float>(),
                                                .scratch = arguments.scratch()});
    });
  }

  void norm(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& y) const override {
    with_element(x, [&]<typename T>(T) { norm_kernels<T>().apply(*Arguments<T>(x, norm), mutable_data_of<T>(y)); });
  }

  void masked_l1(const LossPlanes& planes, const at::Tensor& loss) const override {
    cpu::MaskedL1 args = masked_l1_args(planes);
    const at::Tensor scratch = at::empty({cpu::level().masked_l1_scratch_size(args.size)}, at::kDouble);
    args.scratch = scratch.mutable_data_ptr<double>();
    *loss.mutable_data_ptr<float>() = static_cast<float>(cpu::level().masked_l1(args));
  }

  void masked_l1_gradient(const LossPlanes& planes, const at::Tensor& of_loss,
                          const at::Tensor& of_mask) const override {
    const double factor = of_loss.item<double>() / static_cast<double>(of_mask.numel());
    cpu::level().masked_l1_gradient(masked_l1_args(planes), static_cast<float>(factor),
                                    of_mask.mutable_data_ptr<float>());
  }

  bool reads_in_place(const at::Tensor& gradient) const override { return gradient[0].is_contiguous(); }

  void norm_sums(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& gradient, const at::Tensor& of_weight,
                 const at::Tensor& of_bias) const override {
    with_element(x, [&]<typename T>(T) {
      Arguments<T> arguments(x, norm);
      norm_kernels<T>().sums(*arguments, arguments.gradient(gradient, of_weight, of_bias, nullptr));
    });
  }

  void norm_gradient(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& gradient,
                     const at::Tensor& of_weight, const at::Tensor& of_bias, const at::Tensor& of_x) const override {
    with_element(x, [&]<typename T>(T) {
      Arguments<T> arguments(x, norm);
      norm_kernels<T>().gradient(*arguments,
                                 arguments.gradient(gradient, of_weight, of_bias, mutable_data_of<T>(of_x)));
    });
  }

 private:
  static cpu::MaskedL1 masked_l1_args(const LossPlanes& planes) {
    return {.mask = planes.mask.const_data_ptr<float>(),
            .magnitude = planes.magnitude.const_data_ptr<float>(),
            .target = planes.target.const_data_ptr<float>(),
            .size = planes.mask.numel(),
            .scratch = nullptr,
            .threads = at::get_num_threads()};
  }

  static void float_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         Alignment alignment, const at::Tensor& y) {
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

  static void float_upconv(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                           Alignment alignment, const at::Tensor& y) {
    const Block block = block_of(weight, bias, weight.size(1));
    const Size in = size_of(x.front().map);
    const ConvolutionLayer layer(cpu::level(), block, channels_of(x), alignment, Upsampling::transposed, in);
    const Scratch scratch(layer.scratch_floats(in, at::get_num_threads()));
    layer.run(floats_of(x), {}, in, in, y.mutable_data_ptr<float>(), nullptr, scratch.data(), scratch.stride,
              scratch.threads);
  }

  static void float_upconv_to_planes(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                     Alignment alignment, const at::Tensor& y, bool sigmoid) {
    const Block block = block_of(weight, bias, weight.size(1));
    const Size in = size_of(x.front().map);
    const OutputLayer layer(cpu::level(), block, channels_of(x), alignment, Upsampling::transposed);
    const Scratch scratch(layer.scratch_floats(in));
    const cpu::OutputPlanes to = output_planes(sigmoid ? cpu::Ending::sigmoid : cpu::Ending::plain, y, y);
    layer.run(floats_of(x), in, to, scratch.data(), scratch.stride, scratch.threads);
  }

  static void map_weight_gradient(const Sources& coarse, const at::Tensor& fine, Alignment alignment,
                                  const at::Tensor& gradient) {
    const Phases phases = phases_of(alignment, std::nullopt);
    const Size grid = size_of(coarse.front().map);
    const auto [tile_rows, tile_columns] = best_tile(phases, grid);
    const bool two = coarse.size() > 1;
    cpu::WeightGradient args{
        .phases = phases,
        .tile_rows = tile_rows,
        .tile_columns = tile_columns,
        .coarse = {coarse[0].map.const_data_ptr<float>(), two ? coarse[1].map.const_data_ptr<float>() : nullptr},
        .fine = fine.const_data_ptr<float>(),
        .batch = grid.batch,
        .rows = grid.rows,
        .columns = grid.columns,
        .fine_rows = fine.size(2),
        .fine_columns = fine.size(3),
        .coarse_channels = {coarse[0].channels, two ? coarse[1].channels : 0},
        .fine_channels = gradient.size(1),
        .gradient = gradient.mutable_data_ptr<float>(),
        .scratch = nullptr,
        .threads = at::get_num_threads()};
    const at::Tensor scratch = allocate_floats(cpu::level().weight_gradient_scratch_size(args));
    args.scratch = scratch.mutable_data_ptr<float>();
    cpu::level().weight_gradient(args);
  }

  static void plane_weight_gradient(const Sources& coarse, const at::Tensor& fine, Alignment alignment,
                                    const at::Tensor& gradient) {
    const Size grid = size_of(coarse.front().map);
    float* to = gradient.mutable_data_ptr<float>();
    for (const Source& source : coarse) {
      cpu::PlaneWeightGradient args{.coarse = source.map.const_data_ptr<float>(),
                                    .fine = fine.const_data_ptr<float>(),
                                    .batch = grid.batch,
                                    .rows = grid.rows,
                                    .columns = grid.columns,
                                    .fine_rows = fine.size(2),
                                    .fine_columns = fine.size(3),
                                    .coarse_channels = source.channels,
                                    .fine_channels = gradient.size(1),
                                    .pad = zeros_before(alignment),
                                    .gradient = to,
                                    .scratch = nullptr,
                                    .threads = at::get_num_threads()};
      const at::Tensor scratch = allocate_floats(cpu::level().plane_weight_gradient_scratch_size(args));
      args.scratch = scratch.mutable_data_ptr<float>();
      cpu::level().plane_weight_gradient(args);
      to += source.channels * gradient.size(1) * 25;
    }
  }
};

}  // namespace

const TrainingKernels& training_kernels_of_cpu() {
  static const CpuKernels kernels;
  return kernels;
}

}  // namespace pyunetsep
