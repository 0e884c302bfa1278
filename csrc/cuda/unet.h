// A U-Net's layers on a GPU, without torch: weights are packed on the host, and the launchers take device memory. All
// networks of a model, which have one shape, run together: each array is [networks, ...].
//
// Between layers, maps are [networks, batch, rows, columns, channels] of Half, Bfloat16 or float, the channels filled
// up with zeros to a multiple of kChannelUnit. Parameters of channels are floats, filled up to a multiple of
// kParameterUnit.
#pragma once
#include <cstdint>
#include <optional>

#include "../kernels.h"
#include "device_facts.h"

namespace pyunetsep::cuda {

enum class Element { half, bfloat16, single };
constexpr int64_t kChannelUnit = 16, kParameterUnit = 64;

constexpr int64_t size_of(Element element) { return element == Element::single ? 4 : 2; }
constexpr int64_t divided_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }
constexpr int64_t round_up(int64_t count, int64_t unit) { return divided_up(count, unit) * unit; }
constexpr int64_t padded_channels(int64_t channels) { return round_up(channels, kChannelUnit); }

// What is fixed when weights are packed.
struct Convolution {
  Element element;
  Alignment alignment;
  std::optional<Upsampling> upsampling;  // none: strided
  int64_t in_channels[2];                // of two maps, the one behind the other; the second may have none
  int64_t out_channels;
  bool planes;  // the network's last upsampling: few channels, stored as planes of floats
};

// One network's weights: from [out, in, 5, 5] on the host to what the kernels read.
int64_t packed_bytes(const Convolution& conv);
void pack(const Convolution& conv, const double* weight, void* packed);

// The same on the device, of floats [out, in, 5, 5], or [in, out, 5, 5] if they lie `by_input`; not for a repetition.
void pack_on_device(const Convolution& conv, const float* weight, bool by_input, void* packed, Queue queue);

// Planes of floats with contiguous columns, [networks, batch, channels, rows, columns].
struct Planes {
  float* data;
  int64_t network_stride, batch_stride, channel_stride, row_stride;
};

// What becomes of the last layer's sums, see cpu::Ending.
struct Output {
  cpu::Ending ending;
  Planes to;
  Planes magnitude;  // the network's input, read for Ending::masked
};

// What a map is read through: y = max(z, slope z), and of that what dropout leaves, of z = scale (p - mean) + bias and
// p = max(x, inner_slope x), where scale = weight / sqrt(variance + epsilon). Parameters are [networks, channels].
struct Reading {
  const float *weight, *bias;    // null: the map is read as it is
  const float *mean, *variance;  // null: 0, and scale = weight
  float epsilon, inner_slope, slope;
  cpu::Dropout dropout;
};

// Statistics of what a convolution stores, for a batch norm: mean and variance (of all, not of a sample) of p =
// max(x, inner_slope x) in each channel. The blocks leave those of their pixels, which are joined then.
struct StatisticsRun {
  float inner_slope;
  float *mean, *variance;  // [channels] each; null: not wanted
  float* parts;            // statistics_floats
};

struct ConvolutionRun {
  const Convolution* conv;
  const void* packed;  // [networks, packed_bytes]
  int64_t networks, batch;
  int64_t in_rows, in_columns;
  int64_t grid_rows, grid_columns;  // of the output, or of an input that is doubled
  const void* source[2];
  Reading reading[2];
  // y = max(z, slope z) scale + shift, z = x + bias; [networks, channels]; null: 1 and 0
  const float* bias;
  const float* scale;
  const float* shift;
  float slope;
  bool overflows;            // halves become infinite, as training wants, instead of the largest that they can be
  void* target;              // a map, or ...
  Output output;             // ... of Convolution::planes
  StatisticsRun statistics;  // of a map of one network
  // Few pixels make few blocks: then several share a sum. See partial_bytes.
  float* partial_sums;
  uint32_t* arrivals;  // kMaxArrivals zeros, which are zeros again afterwards
};
constexpr int64_t kMaxArrivals = 4096;

// The room for partial sums that a run takes on such a device.
int64_t partial_bytes(const ConvolutionRun& run, const DeviceFacts& facts);
int64_t statistics_floats(const ConvolutionRun& run, const DeviceFacts& facts);
void convolution(const ConvolutionRun& run, const DeviceFacts& facts, Queue queue);

// The network's first convolution, from planes of floats.
struct InputConvolutionRun {
  Element element;
  Alignment alignment;
  const float* source;  // [batch, channels, rows, columns], columns contiguous; the same for all networks
  int64_t batch_stride, channel_stride, row_stride;
  int64_t networks, batch, channels, rows, columns;
  int64_t out_channels, out_rows, out_columns;
  const float* weight;  // [networks, out_channels / kChannelUnit, channels, 25, kChannelUnit]
  const float* bias;    // [networks, channels]
  float slope;
  bool overflows;  // as in ConvolutionRun
  void* target;
  StatisticsRun statistics;  // as in ConvolutionRun
  uint32_t* arrivals;        // kMaxArrivals, zeroed for the layers to come; or null
};
int64_t packed_input_floats(int64_t channels, int64_t out_channels);  // of one network
void pack_input(int64_t channels, int64_t out_channels, const double* weight, float* packed);
void pack_input_on_device(int64_t channels, int64_t out_channels, const float* weight, float* packed, Queue queue);
int64_t input_statistics_floats(const InputConvolutionRun& run);
void input_convolution(const InputConvolutionRun& run, Queue queue);

// 4x4 convolution with dilation 2 of one plane, to masks: output o reads inputs o - 3, o - 1, o + 1, o + 3.
struct DilatedHeadRun {
  Planes source;  // of one channel
  int64_t networks, batch, rows, columns;
  const float* weight;  // [networks, out_channels, 4, 4]
  const float* bias;    // [networks, out_channels]
  int64_t out_channels;
  Output output;
};
void dilated_head(const DilatedHeadRun& run, Queue queue);

// The gradient of a 5x5 filter of stride 2 between a coarse map and a fine one of twice its size, of one network: the
// strided convolution's output (its gradient) and input, or the transposed one's input and output (its gradient).
struct WeightGradientRun {
  Element element;
  Alignment alignment;
  const void* coarse;                    // [batch, rows, columns, channels]
  const void* fine;                      // [batch, 2 rows, 2 columns, channels]
  Reading coarse_reading, fine_reading;  // the latter not of planes
  int64_t batch, rows, columns;
  int64_t coarse_channels, fine_channels;
  float* gradient;      // [coarse_channels, fine_channels, 5, 5]
  float* partial_sums;  // weight_gradient_bytes
};
int64_t weight_gradient_bytes(const WeightGradientRun& run, const DeviceFacts& facts);
void weight_gradient(const WeightGradientRun& run, const DeviceFacts& facts, Queue queue);

// The same where the fine map is planes of floats, [batch, fine_channels, 2 rows, 2 columns].
int64_t plane_weight_gradient_bytes(const WeightGradientRun& run, const DeviceFacts& facts);
void plane_weight_gradient(const WeightGradientRun& run, const DeviceFacts& facts, Queue queue);

// What follows a convolution in training; the channels are filled up to whole units, and so are all parameters.
struct NormRun {
  Element element;
  const void* x;  // [batch, rows, columns, channels]
  int64_t batch;
  int64_t pixels;  // of all images
  int64_t channels;
  Reading reading;  // all of it but for the statistics, where they are made
};

struct NormGradientRun {
  const void* gradient;     // of y: [pixels, channels], pixels so many elements apart
  int64_t gradient_stride;  // a multiple of 16 bytes
  float* of_weight;         // [channels]
  float* of_bias;
  void* of_x;    // as x
  float* parts;  // norm_parts_floats, of norm_sums
};

int64_t norm_parts_floats(const NormRun& run);
void norm_statistics(const NormRun& run, const StatisticsRun& to, Queue queue);  // parts: norm_parts_floats
void norm_apply(const NormRun& run, void* y, Queue queue);
void norm_sums(const NormRun& run, const NormGradientRun& to, Queue queue);      // of_weight and of_bias
void norm_gradient(const NormRun& run, const NormGradientRun& to, Queue queue);  // of_x, of these

// The loss, mean |mask magnitude - target|, and of its gradient that of the mask.
struct MaskedL1Run {
  const float *mask, *magnitude, *target;  // [size]
  int64_t size;
  double* parts;  // masked_l1_parts; neither they nor the loss are made by the gradient
  float* loss;    // one
};
int64_t masked_l1_parts(int64_t size);
void masked_l1(const MaskedL1Run& run, Queue queue);
void masked_l1_gradient(const MaskedL1Run& run, const float* of_loss, float* of_mask, Queue queue);

DeviceFacts device_facts(int device);

}  // namespace pyunetsep::cuda
