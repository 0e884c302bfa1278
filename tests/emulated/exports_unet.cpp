#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cuda/network.h"
#include "cuda/statistics.h"
#include "exports.h"

using exports::kQueue, exports::message_of;
using namespace pyunetsep;
using namespace pyunetsep::cuda;

namespace {

// Room for partial sums, between guards, and NaN until written.
class PartialSums {
 public:
  explicit PartialSums(int64_t bytes)
      : values_(static_cast<size_t>(bytes / 4 + 2 * kGuard), std::numeric_limits<float>::quiet_NaN()),
        arrivals_(kMaxArrivals, 0) {
    for (size_t i = 0; i < kGuard; ++i) values_[i] = values_[values_.size() - 1 - i] = 1234.5f;
  }
  float* data() { return values_.data() + kGuard; }
  uint32_t* arrivals() { return arrivals_.data(); }
  void check() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (values_[i] != 1234.5f || values_[values_.size() - 1 - i] != 1234.5f) {
        throw std::runtime_error("wrote outside the partial sums");
      }
    }
    for (const uint32_t arrived : arrivals_) {
      if (arrived != 0) throw std::runtime_error("left arrivals that are not zero");
    }
  }

 private:
  static constexpr size_t kGuard = 64;
  std::vector<float> values_;
  std::vector<uint32_t> arrivals_;
};

Planes planes_of(float* data, int64_t batch, int64_t channels, int64_t rows, int64_t columns) {
  return {data, batch * channels * rows * columns, channels * rows * columns, rows * columns, columns};
}

Output output_of(int64_t ending, float* to, float* magnitude, int64_t batch, int64_t channels, int64_t rows,
                 int64_t columns) {
  Output output{static_cast<cpu::Ending>(ending), planes_of(to, batch, channels, rows, columns),
                planes_of(magnitude, batch, channels, rows, columns)};
  output.magnitude.network_stride = 0;  // all networks have one input
  return output;
}

Convolution convolution_of(int64_t element, int64_t alignment, int64_t upsampling, bool planes, int64_t in_0,
                           int64_t in_1, int64_t out) {
  Convolution conv{};
  conv.element = static_cast<Element>(element);
  conv.alignment = static_cast<Alignment>(alignment);
  if (upsampling >= 0) conv.upsampling = static_cast<Upsampling>(upsampling);
  conv.in_channels[0] = in_0;
  conv.in_channels[1] = in_1;
  conv.out_channels = out;
  conv.planes = planes;
  return conv;
}

}  // namespace

extern "C" {

// weight [networks, out, in, 5, 5]; upsampling: -1 none, 0 transposed, 1 nearest; ending: -1: a map.
const char* convolution(const double* weight, const void* source_0, const void* source_1, const float* read_scale,
                        const float* read_shift, const float* bias, const float* scale, const float* shift,
                        float* magnitude, void* target, int64_t element, int64_t alignment, int64_t upsampling,
                        int64_t ending, int64_t networks, int64_t batch, int64_t in_0, int64_t in_1, int64_t out,
                        int64_t rows, int64_t columns, int64_t grid_rows, int64_t grid_columns, int64_t multiprocessors,
                        double read_slope, double slope) {
  return message_of([=] {
    const Convolution conv = convolution_of(element, alignment, upsampling, ending >= 0, in_0, in_1, out);
    const int64_t bytes = packed_bytes(conv);
    std::vector<unsigned char> memory(static_cast<size_t>(networks * bytes + 16));
    auto* packed = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) & ~uintptr_t{15});
    for (int64_t n = 0; n < networks; ++n) pack(conv, weight + n * out * (in_0 + in_1) * 25, packed + n * bytes);

    ConvolutionRun run{};
    run.conv = &conv;
    run.packed = packed;
    run.networks = networks;
    run.batch = batch;
    run.in_rows = rows;
    run.in_columns = columns;
    run.grid_rows = grid_rows;
    run.grid_columns = grid_columns;
    run.source[0] = source_0;
    run.source[1] = source_1;
    run.reading[0].weight = read_scale;
    run.reading[0].bias = read_shift;
    run.reading[0].inner_slope = 1.0f;
    run.reading[0].slope = static_cast<float>(read_slope);
    run.bias = bias;
    run.scale = scale;
    run.shift = shift;
    run.slope = static_cast<float>(slope);
    run.target = target;
    if (conv.planes) {
      run.output =
          output_of(ending, static_cast<float*>(target), magnitude, batch, out, 2 * grid_rows, 2 * grid_columns);
    }
    DeviceFacts facts = device_facts(0);
    facts.multiprocessors = static_cast<int>(multiprocessors);
    PartialSums sums(partial_bytes(run, facts));
    run.partial_sums = sums.data();
    run.arrivals = sums.arrivals();
    pyunetsep::cuda::convolution(run, facts, kQueue);
    sums.check();
  });
}

// A whole network in one call. sizes [layers, 2]: channels in and out of the encoder's blocks, the decoder's and
// perhaps the head; parameters: of each layer weight, bias and perhaps scale and shift, of all networks; slopes and
// has_scale a layer. The workspace starts as NaN and lies between guards.
const char* unet(const double* parameters, const int64_t* sizes, const int64_t* has_scale, const double* slopes,
                 const float* magnitude, float* output, int64_t element, int64_t networks, int64_t depth,
                 int64_t has_head, int64_t alignment, int64_t upsampling, int64_t raw_skips, int64_t first,
                 int64_t run_networks, int64_t batch, int64_t rows, int64_t columns, int64_t masked,
                 int64_t multiprocessors) {
  return message_of([=] {
    NetworkDescription description{};
    description.element = static_cast<Element>(element);
    description.networks = networks;
    description.alignment = static_cast<Alignment>(alignment);
    description.upsampling = static_cast<Upsampling>(upsampling);
    description.raw_skips = raw_skips != 0;
    const double* next = parameters;
    const auto take = [&](int64_t count) {
      const std::vector<double> values(next, next + count);
      next += count;
      return values;
    };
    for (int64_t i = 0; i < 2 * depth + has_head; ++i) {
      LayerParameters layer{};
      layer.in_channels = sizes[2 * i];
      layer.out_channels = sizes[2 * i + 1];
      layer.slope = slopes[i];
      layer.weight = take(networks * layer.in_channels * layer.out_channels * (i < 2 * depth ? 25 : 16));
      layer.bias = take(networks * layer.out_channels);
      if (has_scale[i]) {
        layer.scale = take(networks * layer.out_channels);
        layer.shift = take(networks * layer.out_channels);
      }
      if (i < depth) {
        description.encoder.push_back(layer);
      } else if (i < 2 * depth) {
        description.decoder.push_back(layer);
      } else {
        description.head = layer;
      }
    }
    Network network(description);
    const std::vector<unsigned char> weights = network.take_packed();
    DeviceFacts facts = device_facts(0);
    facts.multiprocessors = static_cast<int>(multiprocessors);
    const auto bytes = static_cast<size_t>(network.workspace_bytes(run_networks, batch, rows, columns, facts));
    constexpr size_t kGuard = 1024;
    const auto aligned = [](std::vector<unsigned char>& memory) {
      return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 255) & ~uintptr_t{255});
    };
    std::vector<unsigned char> packed(weights.size() + 256), memory(bytes + 2 * kGuard + 256, 0xff);
    std::copy(weights.begin(), weights.end(), aligned(packed));

    NetworkCall call{};
    call.packed = aligned(packed);
    call.workspace = aligned(memory) + kGuard;
    call.first = first;
    call.networks = run_networks;
    call.magnitude = magnitude;
    call.row_stride = columns;
    call.channel_stride = rows * columns;
    call.batch_stride = network.channels() * rows * columns;
    call.batch = batch;
    call.rows = rows;
    call.columns = columns;
    call.masked = masked != 0;
    call.output = planes_of(output, batch, network.channels(), rows, columns);
    network.run(call, facts, kQueue);
    for (size_t i = 0; i < kGuard; ++i) {
      if (aligned(memory)[i] != 0xff || aligned(memory)[kGuard + bytes + i] != 0xff) {
        throw std::runtime_error("wrote outside the workspace");
      }
    }
  });
}

const char* input_convolution(const double* weight, const float* source, const float* bias, void* target,
                              int64_t element, int64_t alignment, int64_t networks, int64_t batch, int64_t channels,
                              int64_t rows, int64_t columns, int64_t out_channels, int64_t out_rows,
                              int64_t out_columns, double slope) {
  return message_of([=] {
    const int64_t floats = packed_input_floats(channels, out_channels);
    std::vector<float> packed(static_cast<size_t>(networks * floats));
    for (int64_t n = 0; n < networks; ++n) {
      pack_input(channels, out_channels, weight + n * out_channels * channels * 25, packed.data() + n * floats);
    }
    std::vector<uint32_t> arrivals(kMaxArrivals, 7);
    InputConvolutionRun run{};
    run.element = static_cast<Element>(element);
    run.alignment = static_cast<Alignment>(alignment);
    run.source = source;
    run.batch_stride = channels * rows * columns;
    run.channel_stride = rows * columns;
    run.row_stride = columns;
    run.networks = networks;
    run.batch = batch;
    run.channels = channels;
    run.rows = rows;
    run.columns = columns;
    run.out_channels = out_channels;
    run.out_rows = out_rows;
    run.out_columns = out_columns;
    run.weight = packed.data();
    run.bias = bias;
    run.slope = static_cast<float>(slope);
    run.target = target;
    run.arrivals = arrivals.data();
    pyunetsep::cuda::input_convolution(run, kQueue);
    for (const uint32_t arrived : arrivals) {
      if (arrived != 0) throw std::runtime_error("left arrivals that are not zero");
    }
  });
}

const char* dilated_head(const float* source, const float* weight, const float* bias, float* magnitude, float* target,
                         int64_t ending, int64_t networks, int64_t batch, int64_t out_channels, int64_t rows,
                         int64_t columns) {
  return message_of([=] {
    DilatedHeadRun run{};
    run.source = planes_of(const_cast<float*>(source), batch, 1, rows, columns);
    run.networks = networks;
    run.batch = batch;
    run.rows = rows;
    run.columns = columns;
    run.weight = weight;
    run.bias = bias;
    run.out_channels = out_channels;
    run.output = output_of(ending, target, magnitude, batch, out_channels, rows, columns);
    pyunetsep::cuda::dilated_head(run, kQueue);
  });
}

// On the device, of floats [out, in, 5, 5] or `by_input` [in, out, 5, 5].
const char* pack_on_device(const float* weight, void* packed, int64_t element, int64_t alignment, int64_t upsampling,
                           int64_t planes, int64_t in_0, int64_t in_1, int64_t out, int64_t by_input) {
  return message_of([=] {
    const Convolution conv = convolution_of(element, alignment, upsampling, planes != 0, in_0, in_1, out);
    pyunetsep::cuda::pack_on_device(conv, weight, by_input != 0, packed, kQueue);
  });
}

// On the host, of doubles [out, in, 5, 5].
const char* pack_on_host(const double* weight, void* packed, int64_t element, int64_t alignment, int64_t upsampling,
                         int64_t planes, int64_t in_0, int64_t in_1, int64_t out) {
  return message_of(
      [=] { pack(convolution_of(element, alignment, upsampling, planes != 0, in_0, in_1, out), weight, packed); });
}

const char* pack_input_on_device(const float* weight, float* packed, int64_t channels, int64_t out_channels) {
  return message_of([=] { pyunetsep::cuda::pack_input_on_device(channels, out_channels, weight, packed, kQueue); });
}

const char* pack_input_on_host(const double* weight, float* packed, int64_t channels, int64_t out_channels) {
  return message_of([=] { pack_input(channels, out_channels, weight, packed); });
}

int64_t packed_size(int64_t element, int64_t upsampling, int64_t planes, int64_t in_0, int64_t in_1, int64_t out) {
  return packed_bytes(convolution_of(element, 0, upsampling, planes != 0, in_0, in_1, out));
}

// coarse [batch, rows, columns, channels], fine of twice the rows and columns, channels filled up; or, of `planes`,
// fine [batch, channels, rows, columns].
const char* weight_gradient(const void* coarse, const void* fine, float* gradient, int64_t element, int64_t alignment,
                            int64_t batch, int64_t rows, int64_t columns, int64_t coarse_channels,
                            int64_t fine_channels, int64_t planes, int64_t multiprocessors) {
  return message_of([=] {
    WeightGradientRun run{};
    run.element = static_cast<Element>(element);
    run.alignment = static_cast<Alignment>(alignment);
    run.coarse = coarse;
    run.fine = fine;
    run.batch = batch;
    run.rows = rows;
    run.columns = columns;
    run.coarse_channels = coarse_channels;
    run.fine_channels = fine_channels;
    run.gradient = gradient;
    DeviceFacts facts = device_facts(0);
    facts.multiprocessors = static_cast<int>(multiprocessors);
    PartialSums sums((planes ? plane_weight_gradient_bytes : weight_gradient_bytes)(run, facts));
    run.partial_sums = sums.data();
    (planes ? pyunetsep::cuda::plane_weight_gradient : pyunetsep::cuda::weight_gradient)(run, facts, kQueue);
    sums.check();
  });
}

// moments [parts, channels, 2] and counts [parts], as blocks leave them.
const char* join_statistics(const float* moments, const float* counts, float* mean, float* variance, int64_t parts,
                            int64_t channels) {
  return message_of([=] {
    PartialSums memory(PartStatistics::floats(parts, channels) * 4);
    const PartStatistics of_parts(memory.data(), parts, channels);
    std::copy_n(moments, parts * channels * 2, of_parts.moments);
    std::copy_n(counts, parts, of_parts.counts);
    pyunetsep::cuda::join_statistics(of_parts, {1.0f, mean, variance, memory.data()}, kQueue);
    memory.check();
  });
}

// x, y, gradient, of_x [batch, pixels of an image, channels] (of the gradient, so many elements a pixel); parameters
// and their gradients [channels]; seeds [batch] or null.
const char* norm(const void* x, const float* weight, const float* bias, const void* gradient, const int32_t* seeds,
                 void* y, float* mean, float* variance, void* of_x, float* of_weight, float* of_bias, int64_t element,
                 int64_t batch, int64_t of_image, int64_t channels, int64_t gradient_stride, double epsilon,
                 double inner_slope, double slope, double dropout) {
  return message_of([=] {
    NormRun run{};
    run.element = static_cast<Element>(element);
    run.x = x;
    run.batch = batch;
    run.pixels = batch * of_image;
    run.channels = channels;
    run.reading = {.weight = weight,
                   .bias = bias,
                   .mean = mean,
                   .variance = variance,
                   .epsilon = static_cast<float>(epsilon),
                   .inner_slope = static_cast<float>(inner_slope),
                   .slope = static_cast<float>(slope),
                   .dropout = cpu::dropout_of(seeds, dropout)};
    PartialSums parts(norm_parts_floats(run) * 4), others(norm_parts_floats(run) * 4);
    norm_statistics(run, {run.reading.inner_slope, mean, variance, parts.data()}, kQueue);
    norm_apply(run, y, kQueue);
    const NormGradientRun to{gradient, gradient_stride, of_weight, of_bias, of_x, others.data()};
    norm_sums(run, to, kQueue);
    norm_gradient(run, to, kQueue);
    parts.check();
    others.check();
  });
}

}  // extern "C"
