#include "training_ops.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <string>
#include <vector>

#include "checks.h"
#include "layers.h"

namespace pyunetsep {
namespace {

using cpu::kBlock;

// A blocked map of so many channels, as the kernels read it.
at::Tensor checked_map(const char* name, const at::Tensor& map, int64_t channels) {
  check_cpu_float32(name, map);
  TORCH_CHECK_VALUE(map.dim() == 5 && map.size(1) == blocks_of(channels) && map.size(4) == kBlock && map.numel() > 0,
                    name, ": got shape ", map.sizes(), ", wants [batch, ", blocks_of(channels), ", rows, columns, ",
                    kBlock, "], the blocks of ", channels, " channels, and none of it empty");
  return map.contiguous();
}

at::Tensor checked_planes(const char* name, const at::Tensor& planes, int64_t channels) {
  check_cpu_float32(name, planes);
  TORCH_CHECK_VALUE(planes.dim() == 4 && planes.size(1) == channels && channels < kBlock && planes.numel() > 0, name,
                    ": got shape ", planes.sizes(), ", wants [batch, ", channels,
                    ", rows, columns], fewer channels than ", kBlock, ", and none of it empty");
  return planes.contiguous();
}

// A map, behind a skip if there is one, and their channels: what the transposed convolution reads.
struct Sources {
  Sources(const std::optional<at::Tensor>& skip, int64_t skip_channels, const char* name, const at::Tensor& map,
          int64_t channels) {
    if (skip) {
      maps.push_back(checked_map("skip", *skip, skip_channels));
      widths.push_back(skip_channels);
    }
    maps.push_back(checked_map(name, map, channels));
    widths.push_back(channels);
  }
  std::vector<at::Tensor> maps;
  std::vector<int64_t> widths;
};

void check_weight(const at::Tensor& weight) {
  check_cpu_float32("weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(2) == 5 && weight.size(3) == 5 && weight.numel() > 0,
                    "weight: got shape ", weight.sizes(), ", wants two numbers of channels, and 5, 5");
}

at::Tensor bias_or_zeros(const std::optional<at::Tensor>& bias, int64_t channels) {
  if (!bias) return at::zeros({channels}, at::kFloat);
  check_cpu_float32("bias", *bias);
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == channels, "bias: got shape ", bias->sizes(), ", wants [",
                    channels, "], the channels out");
  return *bias;
}

void check_even(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.size(2) % 2 == 0 && x.size(3) % 2 == 0, "x: got shape ", x.sizes(),
                    ", wants even numbers of rows and columns");
}

// The parameters of a norm, padded and worked out.
class Norm {
 public:
  Norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double inner_slope, double slope,
       const std::optional<at::Tensor>& seeds, double dropout)
      : channels_(weight.numel()), x_(checked_map("x", x, channels_)) {
    for (const auto& [name, values] : {std::pair{"weight", &weight}, {"bias", &bias}}) {
      check_cpu_float32(name, *values);
      TORCH_CHECK_VALUE(values->dim() == 1 && values->size(0) == channels_, name, ": got shape ", values->sizes(),
                        ", wants [", channels_, "], the channels");
    }
    for (const auto& [name, value] : {std::pair{"inner_slope", inner_slope}, {"slope", slope}}) {
      TORCH_CHECK_VALUE(0 <= value && value <= 1, name, ": got ", value, ", wants 0 to 1");
    }
    TORCH_CHECK_VALUE(0 <= dropout && dropout < 1, "dropout: got ", dropout, ", wants 0 to below 1");
    if (seeds && dropout > 0) {
      TORCH_CHECK_TYPE(seeds->scalar_type() == at::kInt, "seeds: got dtype ", seeds->scalar_type(), ", wants int32");
      TORCH_CHECK_VALUE(seeds->device().is_cpu() && seeds->dim() == 1 && seeds->size(0) == x.size(0),
                        "seeds: got shape ", seeds->sizes(), " on ", seeds->device(), ", wants [", x.size(0),
                        "] on cpu, the batch");
      seeds_ = seeds->contiguous();
    }
    weight_ = padded(weight, channels_);
    bias_ = padded(bias, channels_);
    scale_ = at::empty_like(weight_);
    args_ = {.x = x_.const_data_ptr<float>(),
             .batch = x.size(0),
             .channels = channels_,
             .pixels = x.size(2) * x.size(3),
             .inner_slope = static_cast<float>(inner_slope),
             .slope = static_cast<float>(slope),
             .mean = nullptr,
             .scale = scale_.const_data_ptr<float>(),
             .bias = bias_.const_data_ptr<float>(),
             .dropout = {.seeds = seeds_.defined() ? seeds_.const_data_ptr<int32_t>() : nullptr,
                         .threshold = static_cast<int32_t>(std::llrint(dropout * 4294967296.0) - 2147483648LL),
                         .factor = static_cast<float>(1 / (1 - dropout))},
             .threads = at::get_num_threads()};
    scratch_ = at::empty({level_.norm_scratch_size(args_)}, at::kDouble);
  }
  Norm(const Norm&) = delete;
  Norm& operator=(const Norm&) = delete;

  const cpu::Level& level() const { return level_; }
  const cpu::Normalisation& args() const { return args_; }
  double* scratch() const { return scratch_.mutable_data_ptr<double>(); }

  at::Tensor unpadded(const at::Tensor& values) const { return values.narrow(0, 0, channels_).clone(); }

  // Of padded statistics; returns 1 / deviation.
  at::Tensor normalise_by(const at::Tensor& mean, const at::Tensor& variance, double epsilon) {
    at::Tensor inverse = at::empty_like(variance);
    float *to = inverse.mutable_data_ptr<float>(), *scale = scale_.mutable_data_ptr<float>();
    const float *variances = variance.const_data_ptr<float>(), *weight = weight_.const_data_ptr<float>();
    for (int64_t c = 0; c < variance.numel(); ++c) {
      const double deviation = std::sqrt(static_cast<double>(variances[c]) + epsilon);
      to[c] = static_cast<float>(1 / deviation);
      scale[c] = static_cast<float>(weight[c] / deviation);
    }
    mean_ = mean;
    args_.mean = mean_.const_data_ptr<float>();
    return inverse;
  }

 private:
  const cpu::Level& level_ = cpu::level();
  int64_t channels_;
  at::Tensor x_, weight_, bias_, mean_, scale_, seeds_, scratch_;
  cpu::Normalisation args_;
};

}  // namespace

at::Tensor training_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         std::string_view alignment_name) {
  check_weight(weight);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const int64_t in_channels = weight.size(1), channels = weight.size(0);
  const at::Tensor source = x.dim() == 4 ? checked_planes("x", x, in_channels) : checked_map("x", x, in_channels);
  check_even(source);
  const Block block{weight, bias_or_zeros(bias, channels), std::nullopt, std::nullopt, 1.0, true};
  const Size in = size_of(source), out{in.batch, in.rows / 2, in.columns / 2};
  at::Tensor result = empty_map(out, channels);
  float* to = result.mutable_data_ptr<float>();
  if (x.dim() == 4) {
    const InputLayer layer(cpu::level(), block, alignment);
    const Scratch scratch(layer.scratch_floats(out));
    layer.run(source, out, to, nullptr, scratch.data(), scratch.stride, scratch.threads);
  } else {
    const ConvolutionLayer layer(cpu::level(), block, {in_channels}, alignment, std::nullopt, out);
    const Scratch scratch(layer.scratch_floats(out, at::get_num_threads()));
    layer.run({source.const_data_ptr<float>()}, {}, in, out, to, nullptr, scratch.data(), scratch.stride,
              scratch.threads);
  }
  return result;
}

at::Tensor training_upconv(const at::Tensor& x, const std::optional<at::Tensor>& skip, int64_t skip_channels,
                           const at::Tensor& weight, const std::optional<at::Tensor>& bias, bool to_planes,
                           std::string_view alignment_name) {
  check_weight(weight);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const int64_t in_channels = weight.size(0), channels = weight.size(1);
  TORCH_CHECK_VALUE(!to_planes || channels < kBlock, "weight: got shape ", weight.sizes(), ", wants fewer than ",
                    kBlock, " channels out, where they are planes");
  TORCH_CHECK_VALUE(skip ? 0 < skip_channels && skip_channels < in_channels : skip_channels == 0, "skip_channels: got ",
                    skip_channels, skip ? ", wants fewer than all " : ", wants 0 of the ", in_channels, " channels in",
                    skip ? "" : " without a skip");
  const auto [maps, widths] = Sources(skip, skip_channels, "x", x, in_channels - skip_channels);
  const Size in = size_of(x), out{in.batch, 2 * in.rows, 2 * in.columns};
  std::vector<const float*> sources;
  for (const at::Tensor& map : maps) {
    TORCH_CHECK_VALUE(map.size(0) == in.batch && map.size(2) == in.rows && map.size(3) == in.columns,
                      "skip: got shape ", map.sizes(), ", wants that of x but for the blocks, ", x.sizes());
    sources.push_back(map.const_data_ptr<float>());
  }
  const Block block{weight, bias_or_zeros(bias, channels), std::nullopt, std::nullopt, 1.0, true};
  if (to_planes) {
    at::Tensor result = at::empty({out.batch, channels, out.rows, out.columns}, at::kFloat);
    const OutputLayer layer(cpu::level(), block, widths, alignment, Upsampling::transposed);
    const Scratch scratch(layer.scratch_floats(in));
    layer.run(sources, in, output_planes(cpu::Ending::plain, result, result), scratch.data(), scratch.stride,
              scratch.threads);
    return result;
  }
  at::Tensor result = empty_map(out, channels);
  const ConvolutionLayer layer(cpu::level(), block, widths, alignment, Upsampling::transposed, in);
  const Scratch scratch(layer.scratch_floats(in, at::get_num_threads()));
  layer.run(sources, {}, in, in, result.mutable_data_ptr<float>(), nullptr, scratch.data(), scratch.stride,
            scratch.threads);
  return result;
}

at::Tensor training_weight_gradient(const at::Tensor& coarse, const std::optional<at::Tensor>& skip,
                                    const at::Tensor& fine, at::IntArrayRef channels, std::string_view alignment_name) {
  TORCH_CHECK_VALUE(
      channels.size() == 3 && (skip ? channels[0] > 0 : channels[0] == 0) && channels[1] > 0 && channels[2] > 0,
      "channels: got ", channels, ", wants those of skip (0 if there is none), of coarse and of fine");
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const Phases phases = phases_of(alignment, std::nullopt);
  const bool planes = fine.dim() == 4;
  const auto [maps, widths] = Sources(skip, channels[0], "coarse", coarse, channels[1]);
  const at::Tensor source = planes ? checked_planes("fine", fine, channels[2]) : checked_map("fine", fine, channels[2]);
  for (const at::Tensor& map : maps) {
    TORCH_CHECK_VALUE(
        map.size(0) == source.size(0) && 2 * map.size(2) == source.size(2) && 2 * map.size(3) == source.size(3),
        "fine: got shape ", fine.sizes(), ", wants twice the rows and columns of ", map.sizes());
  }
  at::Tensor gradient = at::empty({channels[0] + channels[1], channels[2], 5, 5}, at::kFloat);
  const cpu::Level& level = cpu::level();
  const Size grid = size_of(coarse);
  if (planes) {
    int64_t first = 0;
    for (size_t i = 0; i < maps.size(); ++i) {
      cpu::PlaneWeightGradient args{.coarse = maps[i].const_data_ptr<float>(),
                                    .fine = source.const_data_ptr<float>(),
                                    .batch = grid.batch,
                                    .rows = grid.rows,
                                    .columns = grid.columns,
                                    .fine_rows = source.size(2),
                                    .fine_columns = source.size(3),
                                    .coarse_channels = widths[i],
                                    .fine_channels = channels[2],
                                    .pad = zeros_before(alignment),
                                    .gradient = gradient.mutable_data_ptr<float>() + first * channels[2] * 25,
                                    .scratch = nullptr,
                                    .threads = at::get_num_threads()};
      const at::Tensor scratch = allocate_floats(level.plane_weight_gradient_scratch_size(args));
      args.scratch = scratch.mutable_data_ptr<float>();
      level.plane_weight_gradient(args);
      first += widths[i];
    }
    return gradient;
  }
  const auto [tile_rows, tile_columns] = best_tile(phases, grid);
  cpu::WeightGradient args{
      .phases = phases,
      .tile_rows = tile_rows,
      .tile_columns = tile_columns,
      .coarse = {maps[0].const_data_ptr<float>(), maps.size() > 1 ? maps[1].const_data_ptr<float>() : nullptr},
      .fine = source.const_data_ptr<float>(),
      .batch = grid.batch,
      .rows = grid.rows,
      .columns = grid.columns,
      .fine_rows = source.size(2),
      .fine_columns = source.size(3),
      .coarse_channels = {widths[0], widths.size() > 1 ? widths[1] : 0},
      .fine_channels = channels[2],
      .gradient = gradient.mutable_data_ptr<float>(),
      .scratch = nullptr,
      .threads = at::get_num_threads()};
  const at::Tensor scratch = allocate_floats(level.weight_gradient_scratch_size(args));
  args.scratch = scratch.mutable_data_ptr<float>();
  level.weight_gradient(args);
  return gradient;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> training_norm(const at::Tensor& x, const at::Tensor& weight,
                                                             const at::Tensor& bias, double epsilon, double inner_slope,
                                                             double slope, const std::optional<at::Tensor>& seeds,
                                                             double dropout) {
  Norm norm(x, weight, bias, inner_slope, slope, seeds, dropout);
  const at::Tensor mean = at::empty({blocks_of(weight.numel()) * kBlock}, at::kFloat), variance = at::empty_like(mean);
  norm.level().norm_statistics(norm.args(), {.mean = mean.mutable_data_ptr<float>(),
                                             .variance = variance.mutable_data_ptr<float>(),
                                             .scratch = norm.scratch()});
  norm.normalise_by(mean, variance, epsilon);
  at::Tensor y = empty_map(size_of(x), weight.numel());
  norm.level().norm_apply(norm.args(), y.mutable_data_ptr<float>());
  return {y, norm.unpadded(mean), norm.unpadded(variance)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> training_norm_gradient(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
    const at::Tensor& mean, const at::Tensor& variance, double epsilon, double inner_slope, double slope,
    const std::optional<at::Tensor>& seeds, double dropout) {
  Norm norm(x, weight, bias, inner_slope, slope, seeds, dropout);
  for (const auto& [name, values] : {std::pair{"mean", &mean}, {"variance", &variance}}) {
    check_cpu_float32(name, *values);
    TORCH_CHECK_VALUE(values->sizes() == weight.sizes(), name, ": got shape ", values->sizes(), ", wants ",
                      weight.sizes(), ", the channels");
  }
  const at::Tensor means = padded(mean, weight.numel()), variances = padded(variance, weight.numel());
  const at::Tensor inverse = norm.normalise_by(means, variances, epsilon);
  check_cpu_float32("gradient", gradient);
  TORCH_CHECK_VALUE(gradient.sizes() == x.sizes(), "gradient: got shape ", gradient.sizes(), ", wants that of x, ",
                    x.sizes());
  // the blocks of one image lie together, as in a map or in some blocks of one
  const bool in_place = gradient.numel() > 0 && gradient[0].is_contiguous();
  const at::Tensor given = in_place ? gradient : gradient.contiguous();
  at::Tensor of_x = empty_map(size_of(x), weight.numel());
  const at::Tensor of_weight = at::empty_like(means), of_bias = at::empty_like(means);
  norm.level().norm_gradient(norm.args(), {.gradient = given.const_data_ptr<float>(),
                                           .gradient_stride = given.stride(0),
                                           .inverse_deviation = inverse.const_data_ptr<float>(),
                                           .of_weight = of_weight.mutable_data_ptr<float>(),
                                           .of_bias = of_bias.mutable_data_ptr<float>(),
                                           .of_x = of_x.mutable_data_ptr<float>(),
                                           .scratch = norm.scratch()});
  return {of_x, norm.unpadded(of_weight), norm.unpadded(of_bias)};
}

}  // namespace pyunetsep
