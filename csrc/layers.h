// The U-Net's layers on the CPU: each holds its weights, packed once for the SIMD level in use, and runs on raw maps in
// the kernels' blocked layout. Whoever owns a layer brings the memory for maps and scratch.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/level.h"
#include "names.h"
#include "phases.h"

namespace pyunetsep {

// Scale and shift of each channel.
using Affine = std::pair<at::Tensor, at::Tensor>;

// A convolution's parameters, float32 or float64, and what follows it:
// y = max(z, slope z) after.scale + after.shift, z = before.scale x + before.shift, x = convolution + bias.
struct Block {
  at::Tensor weight;  // [out, in, 5, 5], or [in, out, 5, 5] of a transposed convolution
  at::Tensor bias;    // [out]
  std::optional<Affine> before;
  std::optional<Affine> after;
  double slope = 1.0;
  bool training = false;  // weights serve one call: packed in float32, in tiles that lose as little as PyTorch does
};

struct Size {
  int64_t batch, rows, columns;
};

inline Size size_of(const at::Tensor& x) { return {x.size(0), x.size(2), x.size(3)}; }  // of planes or a blocked map

// [channels] -> [channels padded to whole blocks], float32, zeros behind.
at::Tensor padded(const at::Tensor& values, int64_t channels);

// Zeroed nowhere, aligned to cache lines, on large pages where the system has them: the kernels walk over many lines
// that lie far apart.
at::Tensor allocate_floats(int64_t count);

inline int64_t blocks_of(int64_t channels) { return (channels + cpu::kBlock - 1) / cpu::kBlock; }
int64_t whole_lines(int64_t floats);                     // rounded up to cache lines
int64_t map_floats(const Size& size, int64_t channels);  // of a map in blocks of channels

// A blocked map [batch, blocks, rows, columns, kBlock] of so many channels, zeroed nowhere.
at::Tensor empty_map(const Size& size, int64_t channels);

// Memory for the scratch of a layer that runs on all threads.
struct Scratch {
  explicit Scratch(int64_t floats);  // a thread
  float* data() const { return memory.mutable_data_ptr<float>(); }

  int64_t threads, stride;
  at::Tensor memory;
};

// Rows or columns of a strided convolution's output.
int64_t halved(int64_t size, Alignment alignment);

// The parameters that follow a convolution, padded to whole blocks of channels.
class ActivationParameters {
 public:
  ActivationParameters(const Block& block, int64_t channels);
  // To maps of `out`'s size.
  cpu::Activation writing(float* raw, float* activated, const Size& out) const;
  // What the next layer reads the raw map through, where the activated one is not written.
  cpu::Reading reading() const;

 private:
  int64_t channels_;
  at::Tensor bias_, before_scale_, before_shift_, after_scale_, after_shift_;  // undefined: none
  float slope_;
};

constexpr int kLargestTile = 16;

// The tile, rows and columns, of at most `largest` outputs, with the least work on a grid of outputs.
std::pair<int, int> best_tile(const Phases& phases, const Size& grid, int largest = kLargestTile);

// A strided or an upsampling convolution between blocked maps.
class ConvolutionLayer {
 public:
  // `in_channels`: of the one or two maps it reads. The tiles are chosen for outputs (or phases of them) of size
  // `grid`, which runs need not keep to.
  ConvolutionLayer(const cpu::Level& level, const Block& block, std::vector<int64_t> in_channels, Alignment alignment,
                   std::optional<Upsampling> upsampling, Size grid);

  int64_t out_channels() const { return conv_.out_channels; }
  int64_t packed_floats() const { return packed_.numel(); }
  int64_t scratch_floats(const Size& grid, int64_t threads) const;  // a thread
  void run(const std::vector<const float*>& sources, const cpu::Reading& reading, const Size& in, const Size& grid,
           float* raw, float* activated, float* scratch, int64_t scratch_stride, int64_t threads) const;
  cpu::Reading reading() const { return activation_.reading(); }  // of its own output

 private:
  int64_t tiles(const Size& grid) const;
  bool few_tiles(const Size& grid) const;
  int64_t tiles_a_task(const Size& grid, int64_t threads) const;

  const cpu::Level& level_;
  cpu::Convolution conv_;
  at::Tensor weight_, packed_;  // the one or the other
  ActivationParameters activation_;
};

// The first convolution, from planes to blocks.
class InputLayer {
 public:
  InputLayer(const cpu::Level& level, const Block& block, Alignment alignment);

  int64_t in_channels() const { return in_channels_; }
  int64_t out_channels() const { return out_channels_; }
  int64_t scratch_floats(const Size& out) const;
  cpu::Reading reading() const { return activation_.reading(); }  // of its own output
  // `source` [batch, channels, rows, columns], columns contiguous.
  void run(const at::Tensor& source, const Size& out, float* raw, float* activated, float* scratch,
           int64_t scratch_stride, int64_t threads) const;

 private:
  const cpu::Level& level_;
  int64_t in_channels_, out_channels_, pad_;
  at::Tensor packed_;
  ActivationParameters activation_;
};

// Where the last layer's planes go, as views with contiguous columns, and what they are multiplied by.
cpu::OutputPlanes output_planes(cpu::Ending ending, const at::Tensor& output, const at::Tensor& magnitude);

// The last upsampling convolution, from blocks to planes.
class OutputLayer {
 public:
  OutputLayer(const cpu::Level& level, const Block& block, std::vector<int64_t> in_channels, Alignment alignment,
              Upsampling upsampling);

  int64_t out_channels() const { return out_channels_; }
  int64_t scratch_floats(const Size& in) const;
  void run(const std::vector<const float*>& sources, const Size& in, const cpu::OutputPlanes& to, float* scratch,
           int64_t scratch_stride, int64_t threads) const;

 private:
  const cpu::Level& level_;
  Phases phases_;
  std::vector<int64_t> in_channels_;
  int64_t out_channels_;
  at::Tensor packed_, bias_, after_scale_, after_shift_;
};

// Spleeter's last layer.
class HeadLayer {
 public:
  HeadLayer(const cpu::Level& level, const at::Tensor& weight, const at::Tensor& bias);

  int64_t out_channels() const { return weight_.size(0); }
  static int64_t source_floats(const Size& size);                           // of the plane between its margins
  static cpu::OutputPlanes source_planes(float* source, const Size& size);  // for the layer that writes it
  int64_t scratch_floats(const Size& size) const;
  // Zeroes the margins of `source` first.
  void run(float* source, const Size& size, const cpu::OutputPlanes& to, float* scratch, int64_t scratch_stride,
           int64_t threads) const;

 private:
  const cpu::Level& level_;
  at::Tensor weight_, bias_;
};

}  // namespace pyunetsep
