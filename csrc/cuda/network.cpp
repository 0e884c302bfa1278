#include "network.h"

#include <algorithm>
#include <cstring>

#include "../layout.h"

namespace pyunetsep::cuda {
namespace {

constexpr int64_t kPlaceUnit = 256;  // bytes that maps and weights are aligned to

// Packed floats of the networks that the call names, of which each has so many.
const float* floats_of(const NetworkCall& call, size_t at, int64_t a_network) {
  const auto* const packed = static_cast<const unsigned char*>(call.packed);
  return reinterpret_cast<const float*>(packed + at) + call.first * a_network;
}

}  // namespace

// What a call runs, and where its maps are: in bytes of the workspace.
struct Network::Plan {
  std::vector<ConvolutionRun> encoder;  // from the second block on
  std::vector<ConvolutionRun> decoder;
  Layout layout;
  std::vector<size_t> encoded, decoded;  // maps
  size_t plane = 0, partial_sums = 0, arrivals = 0;
  int64_t bytes = 0;
};

size_t Network::reserve(size_t bytes) {
  const size_t at = packed_.size();
  packed_.resize(static_cast<size_t>(round_up(static_cast<int64_t>(at + bytes), kPlaceUnit)));
  return at;
}

// [networks, channels] as floats, each network's filled up with zeros.
size_t Network::add_parameters(const std::vector<double>& values, int64_t channels) {
  const int64_t stride = round_up(channels, kParameterUnit);
  const size_t at = reserve(static_cast<size_t>(networks_ * stride) * sizeof(float));
  auto* const floats = reinterpret_cast<float*>(packed_.data() + at);
  for (int64_t n = 0; n < networks_; ++n) {
    for (int64_t c = 0; c < channels; ++c) floats[n * stride + c] = static_cast<float>(values[n * channels + c]);
  }
  return at;
}

Network::Layer Network::add_layer(const LayerParameters& parameters, const Convolution& conv, bool first) {
  Layer layer{};
  layer.conv = conv;
  layer.slope = static_cast<float>(parameters.slope);
  layer.has_scale = !parameters.scale.empty();
  const int64_t in = parameters.in_channels, out = parameters.out_channels;
  if (first) {
    const int64_t floats = packed_input_floats(in, out);
    layer.weight = reserve(static_cast<size_t>(networks_ * floats) * sizeof(float));
    for (int64_t n = 0; n < networks_; ++n) {
      pack_input(in, out, parameters.weight.data() + n * out * in * 25,
                 reinterpret_cast<float*>(packed_.data() + layer.weight) + n * floats);
    }
  } else {
    const int64_t bytes = packed_bytes(conv);
    layer.weight = reserve(static_cast<size_t>(networks_ * bytes));
    for (int64_t n = 0; n < networks_; ++n) {
      pack(conv, parameters.weight.data() + n * out * in * 25, packed_.data() + layer.weight + n * bytes);
    }
  }
  layer.bias = add_parameters(parameters.bias, out);
  if (layer.has_scale) {
    layer.scale = add_parameters(parameters.scale, out);
    layer.shift = add_parameters(parameters.shift, out);
  }
  return layer;
}

Network::Network(const NetworkDescription& description)
    : channels_(description.encoder.at(0).in_channels),
      networks_(description.networks),
      element_(description.element),
      raw_skips_(description.raw_skips) {
  const size_t depth = description.encoder.size();
  Convolution conv{};
  conv.element = element_;
  conv.alignment = description.alignment;
  for (size_t i = 0; i < depth; ++i) {
    const LayerParameters& parameters = description.encoder[i];
    conv.in_channels[0] = parameters.in_channels;
    conv.out_channels = parameters.out_channels;
    encoder_.push_back(add_layer(parameters, conv, i == 0));
  }
  conv.upsampling = description.upsampling;
  for (size_t j = 0; j < depth; ++j) {
    const LayerParameters& parameters = description.decoder[j];
    conv.in_channels[0] = description.encoder[depth - 1 - j].out_channels;
    conv.in_channels[1] = parameters.in_channels - conv.in_channels[0];
    conv.out_channels = parameters.out_channels;
    conv.planes = j == depth - 1;
    decoder_.push_back(add_layer(parameters, conv, false));
  }
  if (description.head) {
    Layer layer{};
    const LayerParameters& parameters = *description.head;
    layer.conv.out_channels = parameters.out_channels;
    const auto add_floats = [&](const std::vector<double>& values) {
      const size_t at = reserve(values.size() * sizeof(float));
      std::copy(values.begin(), values.end(), reinterpret_cast<float*>(packed_.data() + at));
      return at;
    };
    layer.weight = add_floats(parameters.weight);
    layer.bias = add_floats(parameters.bias);
    head_ = layer;
  }
}

// The layer's own share of a run, for the networks that the call names.
ConvolutionRun Network::run_of(const Layer& layer, const NetworkCall& call) const {
  const int64_t stride = round_up(layer.conv.out_channels, kParameterUnit);
  ConvolutionRun run{};
  run.conv = &layer.conv;
  run.packed = static_cast<const unsigned char*>(call.packed) + layer.weight + call.first * packed_bytes(layer.conv);
  run.networks = call.networks;
  run.batch = call.batch;
  run.bias = floats_of(call, layer.bias, stride);
  run.scale = layer.has_scale ? floats_of(call, layer.scale, stride) : nullptr;
  run.shift = layer.has_scale ? floats_of(call, layer.shift, stride) : nullptr;
  run.slope = layer.slope;
  return run;
}

Network::Plan Network::plan(const NetworkCall& call, const DeviceFacts& facts) const {
  Plan plan;
  const int depth = static_cast<int>(encoder_.size()), last_step = 2 * depth;
  const auto map_bytes = [&](const Layer& layer, int64_t rows, int64_t columns) {
    const int64_t elements = call.networks * call.batch * rows * columns * padded_channels(layer.conv.out_channels);
    return round_up(elements * size_of(element_), kPlaceUnit);
  };
  int64_t partial = 0;
  const auto add_run = [&](const Layer& layer, int64_t in_rows, int64_t in_columns, int64_t grid_rows,
                           int64_t grid_columns) {
    ConvolutionRun run = run_of(layer, call);
    run.in_rows = in_rows;
    run.in_columns = in_columns;
    run.grid_rows = grid_rows;
    run.grid_columns = grid_columns;
    partial = std::max(partial, partial_bytes(run, facts));
    return run;
  };

  // Step i encodes, step depth + j decodes, the last runs the head. A skip is read last.
  int64_t rows = call.rows, columns = call.columns;
  for (int i = 0; i < depth; ++i, rows /= 2, columns /= 2) {
    if (i > 0) {
      ConvolutionRun run = add_run(encoder_[i], rows, columns, rows / 2, columns / 2);
      if (raw_skips_) {  // what follows a convolution is done where it is read
        const ConvolutionRun before = run_of(encoder_[i - 1], call);
        run.reading[0] = {.weight = before.scale,
                          .bias = before.shift,
                          .mean = nullptr,
                          .variance = nullptr,
                          .epsilon = 0.0f,
                          .inner_slope = 1.0f,
                          .slope = before.slope,
                          .dropout = {}};
        run.scale = run.shift = nullptr;
        run.slope = 1.0f;
      }
      plan.encoder.push_back(run);
    }
    plan.encoded.push_back(plan.layout.add(map_bytes(encoder_[i], rows / 2, columns / 2), i, last_step - 1 - i));
  }
  for (int j = 0; j < depth; ++j, rows *= 2, columns *= 2) {
    plan.decoder.push_back(add_run(decoder_[j], rows, columns, rows, columns));
    if (j == depth - 1) break;
    plan.decoded.push_back(plan.layout.add(map_bytes(decoder_[j], 2 * rows, 2 * columns), depth + j, depth + j + 1));
  }
  if (head_) {
    const int64_t floats = call.networks * call.batch * call.rows * call.columns;
    plan.plane = plan.layout.add(round_up(floats * 4, kPlaceUnit), last_step - 1, last_step);
  }
  plan.partial_sums = plan.layout.add(round_up(partial, kPlaceUnit), 0, last_step);
  plan.arrivals = plan.layout.add(kMaxArrivals * 4, 0, last_step);
  plan.bytes = plan.layout.place();
  return plan;
}

int64_t Network::workspace_bytes(int64_t networks, int64_t batch, int64_t rows, int64_t columns,
                                 const DeviceFacts& facts) const {
  NetworkCall call{};
  call.networks = networks;
  call.batch = batch;
  call.rows = rows;
  call.columns = columns;
  return plan(call, facts).bytes;
}

void Network::run(const NetworkCall& call, const DeviceFacts& facts, Queue queue) const {
  Plan plan = this->plan(call, facts);
  const size_t depth = encoder_.size();
  auto* const workspace = static_cast<unsigned char*>(call.workspace);
  const auto map = [&](size_t number) { return workspace + plan.layout[number]; };
  auto* const arrivals = reinterpret_cast<uint32_t*>(map(plan.arrivals));
  const auto convolve = [&](ConvolutionRun& run) {
    run.partial_sums = reinterpret_cast<float*>(map(plan.partial_sums));
    run.arrivals = arrivals;
    convolution(run, facts, queue);
  };

  const ConvolutionRun first = run_of(encoder_[0], call);
  InputConvolutionRun input{};
  input.element = element_;
  input.alignment = encoder_[0].conv.alignment;
  input.source = call.magnitude;
  input.batch_stride = call.batch_stride;
  input.channel_stride = call.channel_stride;
  input.row_stride = call.row_stride;
  input.networks = call.networks;
  input.batch = call.batch;
  input.channels = channels_;
  input.rows = call.rows;
  input.columns = call.columns;
  input.out_channels = encoder_[0].conv.out_channels;
  input.out_rows = call.rows / 2;
  input.out_columns = call.columns / 2;
  input.weight = floats_of(call, encoder_[0].weight, packed_input_floats(channels_, input.out_channels));
  input.bias = first.bias;
  input.slope = raw_skips_ ? 1.0f : first.slope;
  input.target = map(plan.encoded[0]);
  input.arrivals = arrivals;
  input_convolution(input, queue);

  for (size_t i = 1; i < depth; ++i) {
    ConvolutionRun& run = plan.encoder[i - 1];
    run.source[0] = map(plan.encoded[i - 1]);
    run.target = map(plan.encoded[i]);
    convolve(run);
  }
  Output output{call.masked ? cpu::Ending::masked : cpu::Ending::sigmoid,
                call.output,
                {const_cast<float*>(call.magnitude), 0, call.batch_stride, call.channel_stride, call.row_stride}};
  Planes plane{};
  if (head_) {
    plane = {reinterpret_cast<float*>(map(plan.plane)), call.batch * call.rows * call.columns, call.rows * call.columns,
             0, call.columns};
  }
  for (size_t j = 0; j < depth; ++j) {
    ConvolutionRun& run = plan.decoder[j];
    run.source[0] = map(plan.encoded[depth - 1 - j]);
    run.source[1] = j > 0 ? map(plan.decoded[j - 1]) : nullptr;
    if (j + 1 < depth) {
      run.target = map(plan.decoded[j]);
    } else {
      run.output = head_ ? Output{cpu::Ending::activated, plane, plane} : output;
    }
    convolve(run);
  }
  if (!head_) return;
  DilatedHeadRun run{};
  run.source = plane;
  run.networks = call.networks;
  run.batch = call.batch;
  run.rows = call.rows;
  run.columns = call.columns;
  run.out_channels = head_->conv.out_channels;
  run.weight = floats_of(call, head_->weight, run.out_channels * 16);
  run.bias = floats_of(call, head_->bias, run.out_channels);
  run.output = output;
  dilated_head(run, queue);
}

}  // namespace pyunetsep::cuda
