// The U-Nets of a model on a GPU: weights packed once, all networks and layers of a call queued at once.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "unet_plan.h"

namespace pyunetsep {

class CudaPlan {
 public:
  // One description a network, all of one shape, with parameters on the CPU; precision: "float16", "bfloat16" or
  // "float32". Throws c10::TypeError and c10::ValueError if the blocks do not fit together.
  CudaPlan(const std::vector<UNetDescription>& descriptions, const std::string& precision, int64_t device);
  ~CudaPlan();

  // float32 [batch, channels, rows, columns] on the device -> masks of the networks first ... first + networks, each of
  // that shape, times the input if `masked`: [networks, batch, channels, rows, columns], in `out` if there is one.
  // Rows and columns are multiples of 2^blocks. Queued on the device's current stream.
  at::Tensor run(const at::Tensor& magnitude, int64_t first, int64_t networks, bool masked,
                 const std::optional<at::Tensor>& out) const;

  int64_t packed_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pyunetsep
