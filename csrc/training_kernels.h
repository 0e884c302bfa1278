// What the training ops want of a device. The tensors have been checked: contiguous (but for gradients), at multiples
// of 16 bytes, all on one device, of shapes that fit together, parameters of float32.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "layers.h"
#include "phases.h"

namespace pyunetsep {

// Batch norm by given statistics, and what is around it: see training_norm. What channels have one of each is filled up
// to whole blocks.
struct TrainingNorm {
  at::Tensor mean, variance, weight, bias;
  int64_t channels;
  double epsilon, inner_slope, slope;
  at::Tensor seeds;  // int32, or undefined
  double dropout;
};

// A map, or planes.
struct Source {
  at::Tensor map;
  int64_t channels;
  std::optional<TrainingNorm> norm;  // what a map is read through
};

// Maps of one size that are read one behind the other.
using Sources = std::vector<Source>;

// To be made of max(x, inner_slope x) of a map's channels, which are filled up.
struct TrainingStatistics {
  double inner_slope;
  at::Tensor mean, variance;
};

// Of the loss: of one shape, contiguous.
struct LossPlanes {
  at::Tensor mask, magnitude, target;
};

inline cpu::Dropout dropout_of(const TrainingNorm& norm) {
  return cpu::dropout_of(norm.seeds.defined() ? norm.seeds.const_data_ptr<int32_t>() : nullptr, norm.dropout);
}

class TrainingKernels {
 public:
  virtual ~TrainingKernels() = default;

  virtual bool computes(at::ScalarType element) const = 0;  // whether maps may be of it
  // Maps of so many channels are [batch, blocks, rows, columns, channels of a block].
  virtual int64_t block(int64_t channels) const = 0;
  virtual at::Tensor empty_map(const Size& size, int64_t channels, const at::TensorOptions& options) const = 0;

  virtual bool reads_through_norms() const = 0;  // or sources have none

  // Convolutions, and if they are wanted the statistics of the map that they make.
  virtual void conv(const Source& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    Alignment alignment, const at::Tensor& y,
                    const std::optional<TrainingStatistics>& statistics) const = 0;
  virtual void upconv(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      Alignment alignment, const at::Tensor& y,
                      const std::optional<TrainingStatistics>& statistics) const = 0;
  virtual void upconv_to_planes(const Sources& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                Alignment alignment, const at::Tensor& y, bool sigmoid) const = 0;
  virtual void weight_gradient(const Sources& coarse, const Source& fine, Alignment alignment,
                               const at::Tensor& gradient) const = 0;
  virtual void channel_sums(const at::Tensor& map, const at::Tensor& sums) const = 0;
  virtual void norm_statistics(const at::Tensor& x, const TrainingStatistics& statistics) const = 0;
  virtual void norm(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& y) const = 0;
  // The gradient's images, and on a GPU its pixels too, may be further apart than they are long.
  virtual void norm_sums(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& gradient,
                         const at::Tensor& of_weight, const at::Tensor& of_bias) const = 0;
  virtual void norm_gradient(const at::Tensor& x, const TrainingNorm& norm, const at::Tensor& gradient,
                             const at::Tensor& of_weight, const at::Tensor& of_bias, const at::Tensor& of_x) const = 0;
  virtual void masked_l1(const LossPlanes& planes, const at::Tensor& loss) const = 0;
  virtual void masked_l1_gradient(const LossPlanes& planes, const at::Tensor& of_loss,
                                  const at::Tensor& of_mask) const = 0;
  virtual bool reads_in_place(const at::Tensor& gradient) const = 0;  // or it must be made contiguous
};

const TrainingKernels& training_kernels_of_cpu();
const TrainingKernels& training_kernels_of_cuda();
const TrainingKernels& training_kernels(const at::Device& device);

}  // namespace pyunetsep
