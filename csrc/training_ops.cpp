#include "training_ops.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include <string>
#include <utility>

#include "checks.h"
#include "training_kernels.h"

namespace pyunetsep {
namespace {

using cpu::kBlock;

// Contiguous, and where the kernels can load 16 bytes at once: a part of another tensor may lie anywhere.
at::Tensor placed(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0 ? contiguous : contiguous.clone();
}

// What a map is read through, as the ops get it.
struct Through {
  const std::optional<at::Tensor>& norm;
  const std::optional<at::Tensor>& seeds;
  at::ArrayRef<double> numbers;
};

const std::optional<at::Tensor> kNone;

// Checks what the ops are given, all of it on one device.
class Checks {
 public:
  explicit Checks(const at::Tensor& on) : device_(on.device()), kernels_(training_kernels(device_)) {}

  const TrainingKernels& kernels() const { return kernels_; }

  // A map of so many channels, as the kernels read it.
  at::Tensor map(const char* name, const at::Tensor& map, int64_t channels) const {
    check_place(name, map);
    TORCH_CHECK_TYPE(kernels_.computes(map.scalar_type()), name, ": got dtype ", map.scalar_type(), ", wants float32",
                     kernels_.computes(at::kHalf) ? ", float16 or bfloat16" : " or bfloat16");
    check_map_shape(name, map, channels);
    return placed(map);
  }

  at::Tensor planes(const char* name, const at::Tensor& planes, int64_t channels) const {
    check_floats(name, planes);
    TORCH_CHECK_VALUE(planes.dim() == 4 && planes.size(1) == channels && channels < kBlock && planes.numel() > 0, name,
                      ": got shape ", planes.sizes(), ", wants [batch, ", channels,
                      ", rows, columns], fewer channels than ", kBlock, ", and none of it empty");
    return planes.contiguous();
  }

  at::Tensor map_or_planes(const char* name, const at::Tensor& x, int64_t channels) const {
    return x.dim() == 4 ? planes(name, x, channels) : map(name, x, channels);
  }

  // A map, behind a skip if there is one.
  Sources sources(const std::optional<at::Tensor>& skip, int64_t skip_channels, const Through& skip_through,
                  const char* name, const at::Tensor& map, int64_t channels, const Through& through) const {
    Sources sources;
    if (skip) {
      sources.push_back(source("skip", *skip, skip_channels, skip_through));
      TORCH_CHECK_VALUE(skip->size(0) == map.size(0) && map.dim() == 5 && skip->size(2) == map.size(2) &&
                            skip->size(3) == map.size(3),
                        "skip: got shape ", skip->sizes(), ", wants that of ", name, " but for the channels, ",
                        map.sizes());
      check_alike("skip", *skip, name, map);
    }
    sources.push_back(source(name, map, channels, through));
    return sources;
  }

  // A map and what it is read through, or planes.
  Source source(const char* name, const at::Tensor& map, int64_t channels, const Through& through) const {
    if (!through.norm) return {map_or_planes(name, map, channels), channels, std::nullopt};
    TORCH_CHECK_VALUE(kernels_.reads_through_norms() && map.dim() == 5, name,
                      ": got a norm to read it through, which only maps on a GPU are");
    return {this->map(name, map, channels), channels, norm(map, channels, through)};
  }

  at::Tensor weight(const at::Tensor& weight) const {
    check_floats("weight", weight);
    TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(2) == 5 && weight.size(3) == 5 && weight.numel() > 0,
                      "weight: got shape ", weight.sizes(), ", wants two numbers of channels, and 5, 5");
    return weight.contiguous();
  }

  std::optional<at::Tensor> bias(const std::optional<at::Tensor>& bias, int64_t channels) const {
    if (!bias) return bias;
    parameter("bias", *bias, channels);
    return bias->contiguous();
  }

  // [rows, channels] of what a channel has one each of.
  void check_rows(const char* name, const at::Tensor& values, int64_t rows, int64_t channels, const char* what) const {
    check_floats(name, values);
    TORCH_CHECK_VALUE(values.dim() == 2 && values.size(0) == rows && values.size(1) == channels, name, ": got shape ",
                      values.sizes(), ", wants [", rows, ", ", channels, "], ", what, " of the channels");
  }

  // Each row filled up with zeros to whole blocks.
  static at::Tensor filled(const at::Tensor& rows) {
    const int64_t missing = blocks_of(rows.size(1)) * kBlock - rows.size(1);
    return missing ? at::constant_pad_nd(rows, {0, missing}) : placed(rows);
  }

  // Of maps like x.
  TrainingNorm norm(const at::Tensor& x, int64_t channels, const Through& through) const {
    check_rows("norm", *through.norm, 4, channels, "mean, variance, weight and bias");
    TORCH_CHECK_VALUE(through.numbers.size() == 4, "numbers: got ", through.numbers,
                      ", wants epsilon, inner_slope, slope and dropout");
    const double inner_slope = through.numbers[1], slope = through.numbers[2], dropout = through.numbers[3];
    check_slope("inner_slope", inner_slope);
    check_slope("slope", slope);
    TORCH_CHECK_VALUE(0 <= dropout && dropout < 1, "dropout: got ", dropout, ", wants 0 to below 1");
    const at::Tensor rows = filled(*through.norm);
    TrainingNorm norm{rows[0],     rows[1], rows[2], rows[3], channels, through.numbers[0],
                      inner_slope, slope,   {},      dropout};
    const std::optional<at::Tensor>& seeds = through.seeds;
    if (seeds && dropout > 0) {
      TORCH_CHECK_TYPE(seeds->scalar_type() == at::kInt, "seeds: got dtype ", seeds->scalar_type(), ", wants int32");
      TORCH_CHECK_VALUE(seeds->device() == device_ && seeds->dim() == 1 && seeds->size(0) == x.size(0),
                        "seeds: got shape ", seeds->sizes(), " on ", seeds->device(), ", wants [", x.size(0), "] on ",
                        device_, ", the batch");
      norm.seeds = seeds->contiguous();
    }
    return norm;
  }

  // A gradient of a map, or a part of one that the kernels can read where it lies.
  at::Tensor gradient(const at::Tensor& gradient, const at::Tensor& x) const {
    check_alike("gradient", gradient, "x", x);
    TORCH_CHECK_VALUE(gradient.sizes() == x.sizes(), "gradient: got shape ", gradient.sizes(), ", wants that of x, ",
                      x.sizes());
    return kernels_.reads_in_place(gradient) ? gradient : placed(gradient);
  }

  static void check_slope(const char* name, double value) {
    TORCH_CHECK_VALUE(0 <= value && value <= 1, name, ": got ", value, ", wants 0 to 1");
  }

 private:
  void check_place(const char* name, const at::Tensor& tensor) const {
    TORCH_CHECK_VALUE(tensor.device() == device_, name, ": got device ", tensor.device(), ", wants ", device_);
  }
  void check_floats(const char* name, const at::Tensor& tensor) const {
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, name, ": got dtype ", tensor.scalar_type(), ", wants float32");
    check_place(name, tensor);
  }
  void parameter(const char* name, const at::Tensor& values, int64_t channels) const {
    check_floats(name, values);
    TORCH_CHECK_VALUE(values.dim() == 1 && values.size(0) == channels, name, ": got shape ", values.sizes(),
                      ", wants [", channels, "], the channels");
  }
  void check_map_shape(const char* name, const at::Tensor& map, int64_t channels) const {
    const int64_t block = kernels_.block(channels), blocks = (channels + block - 1) / block;
    TORCH_CHECK_VALUE(map.dim() == 5 && map.size(1) == blocks && map.size(4) == block && map.numel() > 0, name,
                      ": got shape ", map.sizes(), ", wants [batch, ", blocks, ", rows, columns, ", block,
                      "], the blocks of ", channels, " channels, and none of it empty");
  }

  at::Device device_;
  const TrainingKernels& kernels_;
};

// Values of channels, filled up to whole blocks, for the kernels to write.
at::Tensor empty_rows(int64_t rows, int64_t channels, const at::Tensor& like) {
  return at::empty({rows, blocks_of(channels) * kBlock}, like.options().dtype(at::kFloat));
}
at::Tensor unfilled(const at::Tensor& rows, int64_t channels) {
  return rows.size(1) == channels ? rows : rows.narrow(1, 0, channels).clone();
}

// Mean and variance for a convolution, or the norm itself, to make.
class Statistics {
 public:
  Statistics(std::optional<double> inner_slope, int64_t channels, const at::Tensor& like)
      : channels_(channels), rows_(empty_rows(inner_slope ? 2 : 0, channels, like)) {
    if (!inner_slope) return;
    Checks::check_slope("inner_slope", *inner_slope);
    wanted_ = {*inner_slope, rows_[0], rows_[1]};
  }
  const std::optional<TrainingStatistics>& wanted() const { return wanted_; }
  at::Tensor made() const { return unfilled(rows_, channels_); }

 private:
  int64_t channels_;
  at::Tensor rows_;
  std::optional<TrainingStatistics> wanted_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> training_conv(const at::Tensor& x, const at::Tensor& weight,
                                                 const std::optional<at::Tensor>& bias, std::string_view alignment_name,
                                                 const std::optional<at::Tensor>& norm, at::ArrayRef<double> numbers,
                                                 std::optional<double> inner_slope,
                                                 std::optional<at::ScalarType> element) {
  const Checks checks(x);
  const at::Tensor weights = checks.weight(weight);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const int64_t channels = weight.size(0);
  const Source source = checks.source("x", x, weight.size(1), {norm, kNone, numbers});
  TORCH_CHECK_VALUE(x.size(2) % 2 == 0 && x.size(3) % 2 == 0, "x: got shape ", x.sizes(),
                    ", wants even numbers of rows and columns");
  const at::ScalarType made = element.value_or(x.scalar_type());
  TORCH_CHECK_TYPE(x.dim() == 4 ? checks.kernels().computes(made) : made == x.scalar_type(), "element: got ", made,
                   ", wants what maps on ", x.device(), " may be of, and that of x if it is a map");
  const std::optional<at::Tensor> biases = checks.bias(bias, channels);
  const c10::DeviceGuard guard(x.device());
  const Size in = size_of(x), out{in.batch, in.rows / 2, in.columns / 2};
  const at::Tensor y = checks.kernels().empty_map(out, channels, x.options().dtype(made));
  const Statistics statistics(inner_slope, channels, x);
  checks.kernels().conv(source, weights, biases, alignment, y, statistics.wanted());
  return {y, statistics.made()};
}

std::tuple<at::Tensor, at::Tensor> training_upconv(
    const at::Tensor& x, const std::optional<at::Tensor>& skip, int64_t skip_channels, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias, bool to_planes, std::string_view alignment_name,
    const std::optional<at::Tensor>& norm, const std::optional<at::Tensor>& seeds, at::ArrayRef<double> numbers,
    const std::optional<at::Tensor>& skip_norm, at::ArrayRef<double> skip_numbers, std::optional<double> inner_slope,
    bool sigmoid) {
  const Checks checks(x);
  const at::Tensor weights = checks.weight(weight);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const int64_t in_channels = weight.size(0), channels = weight.size(1);
  TORCH_CHECK_VALUE(!to_planes || channels < kBlock, "weight: got shape ", weight.sizes(), ", wants fewer than ",
                    kBlock, " channels out, where they are planes");
  TORCH_CHECK_VALUE(!to_planes || !inner_slope, "inner_slope: got ", inner_slope.value_or(0.0),
                    ", wants none where planes are made, which have no statistics");
  TORCH_CHECK_VALUE(to_planes || !sigmoid, "sigmoid: got true, wants false where a map is made");
  TORCH_CHECK_VALUE(skip ? 0 < skip_channels && skip_channels < in_channels : skip_channels == 0, "skip_channels: got ",
                    skip_channels, skip ? ", wants fewer than all " : ", wants 0 of the ", in_channels, " channels in",
                    skip ? "" : " without a skip");
  const Sources sources = checks.sources(skip, skip_channels, {skip_norm, kNone, skip_numbers}, "x", x,
                                         in_channels - skip_channels, {norm, seeds, numbers});
  const std::optional<at::Tensor> biases = checks.bias(bias, channels);
  const c10::DeviceGuard guard(x.device());
  const Size in = size_of(x), out{in.batch, 2 * in.rows, 2 * in.columns};
  const at::Tensor y = to_planes
                           ? at::empty({out.batch, channels, out.rows, out.columns}, x.options().dtype(at::kFloat))
                           : checks.kernels().empty_map(out, channels, x.options());
  const Statistics statistics(inner_slope, channels, x);
  if (to_planes) {
    checks.kernels().upconv_to_planes(sources, weights, biases, alignment, y, sigmoid);
  } else {
    checks.kernels().upconv(sources, weights, biases, alignment, y, statistics.wanted());
  }
  return {y, statistics.made()};
}

at::Tensor training_weight_gradient(const at::Tensor& coarse, const std::optional<at::Tensor>& skip,
                                    const at::Tensor& fine, at::IntArrayRef channels, std::string_view alignment_name,
                                    const std::optional<at::Tensor>& norm, const std::optional<at::Tensor>& seeds,
                                    at::ArrayRef<double> numbers, const std::optional<at::Tensor>& skip_norm,
                                    at::ArrayRef<double> skip_numbers, const std::optional<at::Tensor>& fine_norm,
                                    at::ArrayRef<double> fine_numbers) {
  TORCH_CHECK_VALUE(
      channels.size() == 3 && (skip ? channels[0] > 0 : channels[0] == 0) && channels[1] > 0 && channels[2] > 0,
      "channels: got ", channels, ", wants those of skip (0 if there is none), of coarse and of fine");
  const Checks checks(coarse);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const Sources sources = checks.sources(skip, channels[0], {skip_norm, kNone, skip_numbers}, "coarse", coarse,
                                         channels[1], {norm, seeds, numbers});
  const Source source = checks.source("fine", fine, channels[2], {fine_norm, kNone, fine_numbers});
  if (fine.dim() == 5) check_alike("fine", fine, "coarse", coarse);
  TORCH_CHECK_VALUE(
      coarse.size(0) == fine.size(0) && 2 * coarse.size(2) == fine.size(2) && 2 * coarse.size(3) == fine.size(3),
      "fine: got shape ", fine.sizes(), ", wants twice the rows and columns of ", coarse.sizes());
  const c10::DeviceGuard guard(coarse.device());
  const at::Tensor gradient =
      at::empty({channels[0] + channels[1], channels[2], 5, 5}, coarse.options().dtype(at::kFloat));
  checks.kernels().weight_gradient(sources, source, alignment, gradient);
  return gradient;
}

at::Tensor training_channel_sums(const at::Tensor& map, int64_t channels) {
  const Checks checks(map);
  TORCH_CHECK_VALUE(channels > 0, "channels: got ", channels, ", wants at least one");
  const at::Tensor source = checks.map("map", map, channels);
  const c10::DeviceGuard guard(map.device());
  const at::Tensor sums = empty_rows(1, channels, map);
  checks.kernels().channel_sums(source, sums[0]);
  return unfilled(sums, channels)[0];
}

at::Tensor training_norm_statistics(const at::Tensor& x, int64_t channels, double inner_slope) {
  const Checks checks(x);
  TORCH_CHECK_VALUE(channels > 0, "channels: got ", channels, ", wants at least one");
  const at::Tensor map = checks.map("x", x, channels);
  const c10::DeviceGuard guard(x.device());
  const Statistics statistics(inner_slope, channels, x);
  checks.kernels().norm_statistics(map, *statistics.wanted());
  return statistics.made();
}

namespace {

// What the ops of a norm get: the map x, and the norm's channels.
struct NormArguments {
  Checks checks;
  c10::DeviceGuard guard;
  at::Tensor x;
  TrainingNorm norm;

  NormArguments(const at::Tensor& x, const at::Tensor& norm, const std::optional<at::Tensor>& seeds,
                at::ArrayRef<double> numbers)
      : checks(x), guard(x.device()), x(checks.map("x", x, channels_of(norm))), norm(norm_of(norm, seeds, numbers)) {}

 private:
  static int64_t channels_of(const at::Tensor& norm) {
    TORCH_CHECK_VALUE(norm.dim() == 2 && norm.size(1) > 0, "norm: got shape ", norm.sizes(), ", wants [4, channels]");
    return norm.size(1);
  }
  TrainingNorm norm_of(const std::optional<at::Tensor>& norm, const std::optional<at::Tensor>& seeds,
                       at::ArrayRef<double> numbers) const {
    return checks.norm(x, norm->size(1), {norm, seeds, numbers});
  }
};

}  // namespace

at::Tensor training_norm(const at::Tensor& x, const at::Tensor& norm, const std::optional<at::Tensor>& seeds,
                         at::ArrayRef<double> numbers) {
  const NormArguments given(x, norm, seeds, numbers);
  const at::Tensor y = given.checks.kernels().empty_map(size_of(x), given.norm.channels, x.options());
  given.checks.kernels().norm(given.x, given.norm, y);
  return y;
}

at::Tensor training_norm_sums(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& norm,
                              const std::optional<at::Tensor>& seeds, at::ArrayRef<double> numbers) {
  const NormArguments given(x, norm, seeds, numbers);
  const at::Tensor of_y = given.checks.gradient(gradient, x);
  const at::Tensor sums = empty_rows(2, given.norm.channels, norm);
  given.checks.kernels().norm_sums(given.x, given.norm, of_y, sums[0], sums[1]);
  return unfilled(sums, given.norm.channels);
}

at::Tensor training_norm_gradient(const at::Tensor& gradient, const at::Tensor& sums, const at::Tensor& x,
                                  const at::Tensor& norm, const std::optional<at::Tensor>& seeds,
                                  at::ArrayRef<double> numbers) {
  const NormArguments given(x, norm, seeds, numbers);
  const at::Tensor of_y = given.checks.gradient(gradient, x);
  given.checks.check_rows("sums", sums, 2, given.norm.channels, "the gradients of weight and bias");
  const at::Tensor filled = Checks::filled(sums);
  const at::Tensor of_x = given.checks.kernels().empty_map(size_of(x), given.norm.channels, x.options());
  given.checks.kernels().norm_gradient(given.x, given.norm, of_y, filled[0], filled[1], of_x);
  return of_x;
}

}  // namespace pyunetsep
