// The U-Nets of a model on a GPU, without torch: packs their weights, lays out memory, and queues all layers of a call.
#pragma once
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "unet.h"

namespace pyunetsep::cuda {

// A convolution's parameters and what follows it, of all networks one behind the other:
// y = max(z, slope z) scale + shift of z = convolution + bias.
// But where skips are raw, y is what the next encoder block reads: max(z', slope z') of z' = scale z + shift.
struct LayerParameters {
  int64_t in_channels, out_channels;
  std::vector<double> weight;  // [networks, out, in, taps, taps]
  std::vector<double> bias;    // [networks, out]
  std::vector<double> scale;   // [networks, out], or none
  std::vector<double> shift;
  double slope = 1.0;
};

struct NetworkDescription {
  Element element;
  int64_t networks;
  std::vector<LayerParameters> encoder, decoder;  // of as many; the decoder's last makes the mask, or feeds the head
  std::optional<LayerParameters> head;            // a 4x4 convolution with dilation 2
  Alignment alignment;
  Upsampling upsampling;
  bool raw_skips;
};

struct NetworkCall {
  const void* packed;       // the device's copy of Network::packed
  void* workspace;          // workspace_bytes
  int64_t first, networks;  // which of the networks run
  const float* magnitude;   // [batch, channels, rows, columns], columns contiguous
  int64_t batch_stride, channel_stride, row_stride;
  int64_t batch, rows, columns;  // rows and columns are multiples of 2^blocks
  bool masked;                   // masks times magnitude, instead of masks
  Planes output;                 // [networks, batch, channels, rows, columns]
};

class Network {
 public:
  explicit Network(const NetworkDescription& description);

  // For the device, once: the plan itself has no more use for it.
  std::vector<unsigned char> take_packed() { return std::move(packed_); }
  int64_t channels() const { return channels_; }
  int64_t networks() const { return networks_; }
  int64_t stride() const { return int64_t{1} << encoder_.size(); }

  // What a call needs beside its input and output.
  int64_t workspace_bytes(int64_t networks, int64_t batch, int64_t rows, int64_t columns,
                          const DeviceFacts& facts) const;
  void run(const NetworkCall& call, const DeviceFacts& facts, Queue queue) const;

 private:
  // A layer's place in the packed memory, in bytes; networks lie one behind the other.
  struct Layer {
    Convolution conv;
    size_t weight, bias, scale, shift;
    bool has_scale;
    float slope;
  };
  struct Plan;

  Layer add_layer(const LayerParameters& parameters, const Convolution& conv, bool first);
  size_t add_parameters(const std::vector<double>& values, int64_t channels);
  size_t reserve(size_t bytes);
  Plan plan(const NetworkCall& call, const DeviceFacts& facts) const;
  ConvolutionRun run_of(const Layer& layer, const NetworkCall& call) const;

  int64_t channels_, networks_;
  Element element_;
  bool raw_skips_;
  std::vector<Layer> encoder_, decoder_;
  std::optional<Layer> head_;  // of its conv only the channels count
  std::vector<unsigned char> packed_;
};

}  // namespace pyunetsep::cuda
