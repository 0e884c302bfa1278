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
  Sources sources(const std::optional<at::Tensor>& skip, int64_t skip_channels, const char* name, const at::Tensor& map,
                  int64_t channels) const {
    Sources sources;
    if (skip) {
      sources.maps.push_back(this->map("skip", *skip, skip_channels));
      sources.channels.push_back(skip_channels);
      TORCH_CHECK_VALUE(skip->size(0) == map.size(0) && map.dim() == 5 && skip->size(2) == map.size(2) &&
                            skip->size(3) == map.size(3),
                        "skip: got shape ", skip->sizes(), ", wants that of ", name, " but for the channels, ",
                        map.sizes());
      check_alike("skip", *skip, name, map);
    }
    sources.maps.push_back(this->map(name, map, channels));
    sources.channels.push_back(channels);
    return sources;
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

  // [channels], filled up with zeros to whole blocks.
  at::Tensor filled(const char* name, const at::Tensor& values, int64_t channels) const {
    parameter(name, values, channels);
    const int64_t missing = blocks_of(channels) * kBlock - channels;
    return missing ? at::constant_pad_nd(values, {0, missing}) : placed(values);
  }

  TrainingNorm norm(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& variance, const at::Tensor& weight,
                    const at::Tensor& bias, double epsilon, double inner_slope, double slope,
                    const std::optional<at::Tensor>& seeds, double dropout) const {
    const int64_t channels = weight.numel();
    check_slope("inner_slope", inner_slope);
    check_slope("slope", slope);
    TORCH_CHECK_VALUE(0 <= dropout && dropout < 1, "dropout: got ", dropout, ", wants 0 to below 1");
    TrainingNorm norm{map("x", x, channels),
                      filled("mean", mean, channels),
                      filled("variance", variance, channels),
                      filled("weight", weight, channels),
                      filled("bias", bias, channels),
                      channels,
                      epsilon,
                      inner_slope,
                      slope,
                      {},
                      dropout};
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

at::Tensor unfilled(const at::Tensor& values, int64_t channels) {
  return values.size(0) == channels ? values : values.narrow(0, 0, channels).clone();
}

}  // namespace

at::Tensor training_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         std::string_view alignment_name, std::optional<at::ScalarType> element) {
  const Checks checks(x);
  const at::Tensor weights = checks.weight(weight);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const int64_t channels = weight.size(0);
  const at::Tensor source = checks.map_or_planes("x", x, weight.size(1));
  TORCH_CHECK_VALUE(x.size(2) % 2 == 0 && x.size(3) % 2 == 0, "x: got shape ", x.sizes(),
                    ", wants even numbers of rows and columns");
  const at::ScalarType made = element.value_or(x.scalar_type());
  TORCH_CHECK_TYPE(x.dim() == 4 ? checks.kernels().computes(made) : made == x.scalar_type(), "element: got ", made,
                   ", wants what maps on ", x.device(), " may be of, and that of x if it is a map");
  const std::optional<at::Tensor> biases = checks.bias(bias, channels);
  const c10::DeviceGuard guard(x.device());
  const Size in = size_of(x), out{in.batch, in.rows / 2, in.columns / 2};
  const at::Tensor y = checks.kernels().empty_map(out, channels, x.options().dtype(made));
  checks.kernels().conv(source, weights, biases, alignment, y);
  return y;
}

at::Tensor training_upconv(const at::Tensor& x, const std::optional<at::Tensor>& skip, int64_t skip_channels,
                           const at::Tensor& weight, const std::optional<at::Tensor>& bias, bool to_planes,
                           std::string_view alignment_name) {
  const Checks checks(x);
  const at::Tensor weights = checks.weight(weight);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const int64_t in_channels = weight.size(0), channels = weight.size(1);
  TORCH_CHECK_VALUE(!to_planes || channels < kBlock, "weight: got shape ", weight.sizes(), ", wants fewer than ",
                    kBlock, " channels out, where they are planes");
  TORCH_CHECK_VALUE(skip ? 0 < skip_channels && skip_channels < in_channels : skip_channels == 0, "skip_channels: got ",
                    skip_channels, skip ? ", wants fewer than all " : ", wants 0 of the ", in_channels, " channels in",
                    skip ? "" : " without a skip");
  const Sources sources = checks.sources(skip, skip_channels, "x", x, in_channels - skip_channels);
  const std::optional<at::Tensor> biases = checks.bias(bias, channels);
  const c10::DeviceGuard guard(x.device());
  const Size in = size_of(x), out{in.batch, 2 * in.rows, 2 * in.columns};
  const at::Tensor y = to_planes
                           ? at::empty({out.batch, channels, out.rows, out.columns}, x.options().dtype(at::kFloat))
                           : checks.kernels().empty_map(out, channels, x.options());
  checks.kernels().upconv(sources, weights, biases, alignment, y);
  return y;
}

at::Tensor training_weight_gradient(const at::Tensor& coarse, const std::optional<at::Tensor>& skip,
                                    const at::Tensor& fine, at::IntArrayRef channels, std::string_view alignment_name) {
  TORCH_CHECK_VALUE(
      channels.size() == 3 && (skip ? channels[0] > 0 : channels[0] == 0) && channels[1] > 0 && channels[2] > 0,
      "channels: got ", channels, ", wants those of skip (0 if there is none), of coarse and of fine");
  const Checks checks(coarse);
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const Sources sources = checks.sources(skip, channels[0], "coarse", coarse, channels[1]);
  const at::Tensor source = checks.map_or_planes("fine", fine, channels[2]);
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
  const at::Tensor sums = at::empty({blocks_of(channels) * kBlock}, map.options().dtype(at::kFloat));
  checks.kernels().channel_sums(source, sums);
  return unfilled(sums, channels);
}

std::tuple<at::Tensor, at::Tensor> training_norm_statistics(const at::Tensor& x, int64_t channels, double inner_slope) {
  const Checks checks(x);
  TORCH_CHECK_VALUE(channels > 0, "channels: got ", channels, ", wants at least one");
  const at::Tensor map = checks.map("x", x, channels);
  Checks::check_slope("inner_slope", inner_slope);
  const c10::DeviceGuard guard(x.device());
  const at::Tensor mean = at::empty({blocks_of(channels) * kBlock}, x.options().dtype(at::kFloat));
  const at::Tensor variance = at::empty_like(mean);
  checks.kernels().norm_statistics(map, inner_slope, mean, variance);
  return {unfilled(mean, channels), unfilled(variance, channels)};
}

at::Tensor training_norm(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& variance,
                         const at::Tensor& weight, const at::Tensor& bias, double epsilon, double inner_slope,
                         double slope, const std::optional<at::Tensor>& seeds, double dropout) {
  const Checks checks(x);
  const c10::DeviceGuard guard(x.device());
  const TrainingNorm norm = checks.norm(x, mean, variance, weight, bias, epsilon, inner_slope, slope, seeds, dropout);
  const at::Tensor y = checks.kernels().empty_map(size_of(x), norm.channels, x.options());
  checks.kernels().norm(norm, y);
  return y;
}

std::tuple<at::Tensor, at::Tensor> training_norm_sums(const at::Tensor& gradient, const at::Tensor& x,
                                                      const at::Tensor& mean, const at::Tensor& variance,
                                                      const at::Tensor& weight, const at::Tensor& bias, double epsilon,
                                                      double inner_slope, double slope,
                                                      const std::optional<at::Tensor>& seeds, double dropout) {
  const Checks checks(x);
  const c10::DeviceGuard guard(x.device());
  const TrainingNorm norm = checks.norm(x, mean, variance, weight, bias, epsilon, inner_slope, slope, seeds, dropout);
  const at::Tensor given = checks.gradient(gradient, x);
  const at::Tensor of_weight = at::empty_like(norm.weight), of_bias = at::empty_like(norm.weight);
  checks.kernels().norm_sums(norm, given, of_weight, of_bias);
  return {unfilled(of_weight, norm.channels), unfilled(of_bias, norm.channels)};
}

at::Tensor training_norm_gradient(const at::Tensor& gradient, const at::Tensor& sums, const at::Tensor& x,
                                  const at::Tensor& mean, const at::Tensor& variance, const at::Tensor& weight,
                                  const at::Tensor& bias, double epsilon, double inner_slope, double slope,
                                  const std::optional<at::Tensor>& seeds, double dropout) {
  const Checks checks(x);
  const c10::DeviceGuard guard(x.device());
  const TrainingNorm norm = checks.norm(x, mean, variance, weight, bias, epsilon, inner_slope, slope, seeds, dropout);
  const at::Tensor given = checks.gradient(gradient, x);
  TORCH_CHECK_VALUE(sums.dim() == 2 && sums.size(0) == 2, "sums: got shape ", sums.sizes(), ", wants [2, ",
                    norm.channels, "], of weight and of bias");
  const at::Tensor of_weight = checks.filled("sums", sums[0], norm.channels);
  const at::Tensor of_bias = checks.filled("sums", sums[1], norm.channels);
  const at::Tensor of_x = checks.kernels().empty_map(size_of(x), norm.channels, x.options());
  checks.kernels().norm_gradient(norm, given, of_weight, of_bias, of_x);
  return of_x;
}

}  // namespace pyunetsep
