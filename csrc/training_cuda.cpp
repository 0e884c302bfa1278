#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "cuda/unet.h"
#include "cuda_queue.h"
#include "training_kernels.h"

namespace pyunetsep {
namespace {

static_assert(cpu::kBlock == cuda::kChannelUnit);

cuda::Element element_of(const at::Tensor& map) {
  switch (map.scalar_type()) {
    case at::kHalf:
      return cuda::Element::half;
    case at::kBFloat16:
      return cuda::Element::bfloat16;
    default:
      return cuda::Element::single;
  }
}

at::Tensor bytes_like(const at::Tensor& tensor, int64_t bytes) {
  return at::empty({bytes}, tensor.options().dtype(at::kByte));
}

float* floats_of(const at::Tensor& bytes) { return static_cast<float*>(bytes.mutable_data_ptr()); }

// [channels], filled up with zeros to whole units; zeros if there is no bias.
at::Tensor bias_of(const std::optional<at::Tensor>& bias, const at::Tensor& like, int64_t channels) {
  const int64_t wanted = cuda::padded_channels(channels);
  if (bias && wanted == channels) return *bias;
  at::Tensor filled = at::zeros({wanted}, like.options().dtype(at::kFloat));
  if (bias) filled.narrow(0, 0, channels).copy_(*bias);
  return filled;
}

// Memory is torch's, which gives it again to what is queued later on the same stream.
class CudaKernels final : public TrainingKernels {
 public:
  bool computes(at::ScalarType element) const override {
    return element == at::kFloat || element == at::kHalf || element == at::kBFloat16;
  }
  int64_t block(int64_t channels) const override { return cuda::padded_channels(channels); }
  at::Tensor empty_map(const Size& size, int64_t channels, const at::TensorOptions& options) const override {
    return at::empty({size.batch, 1, size.rows, size.columns, block(channels)}, options);
  }

  bool reads_through_norms() const override { return true; }

  void conv(const Source& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Alignment alignment,
            const at::Tensor& y, const std::optional<TrainingStatistics>& statistics) const override {
    if (x.map.dim() == 4) return input_conv(x.map, weight, bias, alignment, y, statistics);
    cuda::Convolution conv{};
    conv.element = element_of(x.map);
    conv.alignment = alignment;
    conv.in_channels[0] = x.channels;
    conv.out_channels = weight.size(0);
    cuda::ConvolutionRun run{};
    run.target = y.mutable_data_ptr();
    this->run(conv, run, {x}, weight, bias, size_of(y), statistics);
  }

  void upconv(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Alignment alignment,
              const at::Tensor& y, const std::optional<TrainingStatistics>& statistics) const override {
    const cuda::Convolution conv = upconvolution(x, weight, alignment);
    cuda::ConvolutionRun run{};
    run.target = y.mutable_data_ptr();
    this->run(conv, run, x, weight, bias, size_of(x.front().map), statistics);
  }

  void upconv_to_planes(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        Alignment alignment, const at::Tensor& y, bool sigmoid) const override {
    cuda::Convolution conv = upconvolution(x, weight, alignment);
    conv.planes = true;
    const cuda::Planes planes{y.mutable_data_ptr<float>(), 0, y.stride(0), y.stride(1), y.stride(2)};
    cuda::ConvolutionRun run{};
    run.output = {sigmoid ? cpu::Ending::sigmoid : cpu::Ending::plain, planes, planes};
    this->run(conv, run, x, weight, bias, size_of(x.front().map), std::nullopt);
  }

  void weight_gradient(const Sources& coarse, const Source& fine, Alignment alignment,
                       const at::Tensor& gradient) const override {
    const cuda::Queue queue = current_queue(gradient.device());
    const cuda::DeviceFacts facts = cuda::device_facts(queue.device);
    const bool planes = fine.map.dim() == 4;
    cuda::WeightGradientRun run{};
    run.alignment = alignment;
    run.fine = fine.map.const_data_ptr();
    run.fine_reading = reading_of(fine);
    run.fine_channels = fine.channels;
    run.gradient = gradient.mutable_data_ptr<float>();
    for (const Source& source : coarse) {
      const Size size = size_of(source.map);
      run.element = element_of(source.map);
      run.coarse = source.map.const_data_ptr();
      run.coarse_reading = reading_of(source);
      run.batch = size.batch;
      run.rows = size.rows;
      run.columns = size.columns;
      run.coarse_channels = source.channels;
      const at::Tensor sums =
          bytes_like(gradient, (planes ? cuda::plane_weight_gradient_bytes : cuda::weight_gradient_bytes)(run, facts));
      run.partial_sums = floats_of(sums);
      (planes ? cuda::plane_weight_gradient : cuda::weight_gradient)(run, facts, queue);
      run.gradient += run.coarse_channels * run.fine_channels * 25;
    }
  }

  void channel_sums(const at::Tensor& map, const at::Tensor& sums) const override {
    const at::Tensor all = at::sum(map, {0, 1, 2, 3}, false, at::kFloat);
    sums.copy_(all.narrow(0, 0, sums.size(0)));
  }

  void norm_statistics(const at::Tensor& x, const TrainingStatistics& statistics) const override {
    cuda::NormRun run = norm_run(x, {});
    run.reading.inner_slope = static_cast<float>(statistics.inner_slope);
    const at::Tensor parts = bytes_like(x, cuda::norm_parts_floats(run) * 4);
    cuda::norm_statistics(run, statistics_run(statistics, parts), current_queue(x.device()));
  }

  void norm(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& y) const override {
    cuda::norm_apply(norm_run(x, reading_of(norm)), y.mutable_data_ptr(), current_queue(x.device()));
  }

  // Its pixels lie at one distance, which the kernels' loads of 16 bytes can bear.
  bool reads_in_place(const at::Tensor& gradient) const override {
    const int64_t pixel = gradient.stride(3);
    return gradient.stride(4) == 1 && gradient.stride(2) == gradient.size(3) * pixel &&
           gradient.stride(0) == gradient.size(2) * gradient.stride(2) && pixel * gradient.element_size() % 16 == 0 &&
           reinterpret_cast<uintptr_t>(gradient.const_data_ptr()) % 16 == 0;
  }

  void norm_sums(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& gradient, const at::Tensor& of_weight,
                 const at::Tensor& of_bias) const override {
    const cuda::NormRun run = norm_run(x, reading_of(norm));
    const at::Tensor parts = bytes_like(x, cuda::norm_parts_floats(run) * 4);
    cuda::norm_sums(run,
                    {gradient.const_data_ptr(), gradient.stride(3), of_weight.mutable_data_ptr<float>(),
                     of_bias.mutable_data_ptr<float>(), nullptr, floats_of(parts)},
                    current_queue(x.device()));
  }

  void norm_gradient(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& gradient,
                     const at::Tensor& of_weight, const at::Tensor& of_bias, const at::Tensor& of_x) const override {
    cuda::norm_gradient(norm_run(x, reading_of(norm)),
                        {gradient.const_data_ptr(), gradient.stride(3), of_weight.mutable_data_ptr<float>(),
                         of_bias.mutable_data_ptr<float>(), of_x.mutable_data_ptr(), nullptr},
                        current_queue(x.device()));
  }

  void masked_l1(const LossPlanes& planes, const at::Tensor& loss) const override {
    cuda::MaskedL1Run run = masked_l1_run(planes);
    const at::Tensor parts = bytes_like(loss, cuda::masked_l1_parts(run.size) * 8);
    run.parts = static_cast<double*>(parts.mutable_data_ptr());
    run.loss = loss.mutable_data_ptr<float>();
    cuda::masked_l1(run, current_queue(loss.device()));
  }

  void masked_l1_gradient(const LossPlanes& planes, const at::Tensor& of_loss,
                          const at::Tensor& of_mask) const override {
    cuda::masked_l1_gradient(masked_l1_run(planes), of_loss.const_data_ptr<float>(), of_mask.mutable_data_ptr<float>(),
                             current_queue(of_mask.device()));
  }

 private:
  static cuda::MaskedL1Run masked_l1_run(const LossPlanes& planes) {
    return {.mask = planes.mask.const_data_ptr<float>(),
            .magnitude = planes.magnitude.const_data_ptr<float>(),
            .target = planes.target.const_data_ptr<float>(),
            .size = planes.mask.numel(),
            .parts = nullptr,
            .loss = nullptr};
  }

  static cuda::StatisticsRun statistics_run(const TrainingStatistics& statistics, const at::Tensor& parts) {
    return {static_cast<float>(statistics.inner_slope), statistics.mean.mutable_data_ptr<float>(),
            statistics.variance.mutable_data_ptr<float>(), floats_of(parts)};
  }

  static cuda::Reading reading_of(const TrainingNorm& norm) {
    return {.weight = norm.weight.const_data_ptr<float>(),
            .bias = norm.bias.const_data_ptr<float>(),
            .mean = norm.mean.const_data_ptr<float>(),
            .variance = norm.variance.const_data_ptr<float>(),
            .epsilon = static_cast<float>(norm.epsilon),
            .inner_slope = static_cast<float>(norm.inner_slope),
            .slope = static_cast<float>(norm.slope),
            .dropout = dropout_of(norm)};
  }
  static cuda::Reading reading_of(const Source& source) {
    return source.norm ? reading_of(*source.norm) : cuda::Reading{};
  }

  static void input_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         Alignment alignment, const at::Tensor& y,
                         const std::optional<TrainingStatistics>& statistics) {
    const cuda::Queue queue = current_queue(x.device());
    const int64_t channels = weight.size(1), out_channels = weight.size(0);
    const at::Tensor packed = at::empty({cuda::packed_input_floats(channels, out_channels)}, x.options());
    cuda::pack_input_on_device(channels, out_channels, weight.const_data_ptr<float>(), packed.mutable_data_ptr<float>(),
                               queue);
    const at::Tensor biases = bias_of(bias, x, out_channels);
    cuda::InputConvolutionRun run{};
    run.element = element_of(y);
    run.alignment = alignment;
    run.source = x.const_data_ptr<float>();
    run.batch_stride = x.stride(0);
    run.channel_stride = x.stride(1);
    run.row_stride = x.stride(2);
    run.networks = 1;
    run.batch = x.size(0);
    run.channels = channels;
    run.rows = x.size(2);
    run.columns = x.size(3);
    run.out_channels = out_channels;
    run.out_rows = y.size(2);
    run.out_columns = y.size(3);
    run.weight = packed.const_data_ptr<float>();
    run.bias = biases.const_data_ptr<float>();
    run.slope = 1.0f;
    run.overflows = true;
    run.target = y.mutable_data_ptr();
    at::Tensor parts;
    if (statistics) {
      parts = bytes_like(y, cuda::input_statistics_floats(run) * 4);
      run.statistics = statistics_run(*statistics, parts);
    }
    cuda::input_convolution(run, queue);
  }

  static cuda::Convolution upconvolution(const Sources& x, const at::Tensor& weight, Alignment alignment) {
    cuda::Convolution conv{};
    conv.element = element_of(x.front().map);
    conv.alignment = alignment;
    conv.upsampling = Upsampling::transposed;
    for (size_t i = 0; i < x.size(); ++i) conv.in_channels[i] = x[i].channels;
    conv.out_channels = weight.size(1);
    return conv;
  }

  // `run` says where to.
  static void run(const cuda::Convolution& conv, cuda::ConvolutionRun run, const Sources& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias, const Size& grid,
                  const std::optional<TrainingStatistics>& statistics) {
    const at::Tensor& first = x.front().map;
    const cuda::Queue queue = current_queue(first.device());
    const cuda::DeviceFacts facts = cuda::device_facts(queue.device);
    const at::Tensor packed = bytes_like(first, cuda::packed_bytes(conv));
    cuda::pack_on_device(conv, weight.const_data_ptr<float>(), conv.upsampling.has_value(), packed.mutable_data_ptr(),
                         queue);
    const at::Tensor biases = bias_of(bias, first, conv.out_channels);
    run.conv = &conv;
    run.packed = packed.const_data_ptr();
    run.networks = 1;
    run.batch = grid.batch;
    run.in_rows = first.size(2);
    run.in_columns = first.size(3);
    run.grid_rows = grid.rows;
    run.grid_columns = grid.columns;
    for (size_t i = 0; i < x.size(); ++i) {
      run.source[i] = x[i].map.const_data_ptr();
      run.reading[i] = reading_of(x[i]);
    }
    run.bias = biases.const_data_ptr<float>();
    run.slope = 1.0f;
    run.overflows = true;
    at::Tensor parts;
    if (statistics) {
      parts = bytes_like(first, cuda::statistics_floats(run, facts) * 4);
      run.statistics = statistics_run(*statistics, parts);
    }
    const int64_t bytes = cuda::partial_bytes(run, facts);
    at::Tensor sums, arrivals;
    if (bytes > 0) {
      sums = bytes_like(first, bytes);
      arrivals = at::zeros({cuda::kMaxArrivals}, first.options().dtype(at::kInt));
      run.partial_sums = floats_of(sums);
      run.arrivals = static_cast<uint32_t*>(arrivals.mutable_data_ptr());
    }
    cuda::convolution(run, facts, queue);
  }

  static cuda::NormRun norm_run(const at::Tensor& x, const cuda::Reading& reading) {
    return {.element = element_of(x),
            .x = x.const_data_ptr(),
            .batch = x.size(0),
            .pixels = x.size(0) * x.size(2) * x.size(3),
            .channels = x.size(4),
            .reading = reading};
  }
};

}  // namespace

const TrainingKernels& training_kernels_of_cuda() {
  static const CudaKernels kernels;
  return kernels;
}

}  // namespace pyunetsep
