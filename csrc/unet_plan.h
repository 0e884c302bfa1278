// A whole U-Net on the CPU: weights packed once, all maps in one arena, all layers run in one call.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers.h"

namespace pyunetsep {

struct UNetDescription {
  std::vector<Block> encoder, decoder;  // of as many blocks; the decoder's last makes the mask, or feeds the head
  std::optional<Block> head;            // a 4x4 convolution with dilation 2, [out, 1, 4, 4]
  Alignment alignment;
  Upsampling upsampling;
  bool raw_skips;  // decoder blocks read the encoder's convolutions, not its activations
};

// Throws c10::TypeError or c10::ValueError if the blocks do not fit together.
const UNetDescription& checked(const UNetDescription& description);

struct LayerTime {
  std::string name;
  double seconds;
};

class UNetPlan {
 public:
  // Tiles are chosen for calls of size `usual`; other sizes work, if not quite as fast. Throws c10::TypeError and
  // c10::ValueError if the blocks do not fit together.
  UNetPlan(const UNetDescription& description, Size usual);
  ~UNetPlan();

  // float32 [batch, channels, rows, columns] -> masks of that shape, times the input if `masked`, in `out` if there is
  // one. Rows and columns are multiples of 2^blocks. Threads may call at the same time; each call has its own arena.
  at::Tensor run(const at::Tensor& magnitude, bool masked, const std::optional<at::Tensor>& out) const;

  // How long each layer of a run takes.
  std::vector<LayerTime> profile(const at::Tensor& magnitude) const;

  std::string simd_level() const;
  int64_t packed_bytes() const;

 private:
  class Network;
  std::unique_ptr<Network> network_;
};

}  // namespace pyunetsep
