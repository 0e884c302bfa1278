#pragma once
#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace pyunetsep {

// The device's current stream, without a CUDA header, so that one binding compiles against CPU-only and CUDA builds of
// torch.
cuda::Queue current_queue(at::Device device);

// The tensor's memory is not given to others before what its device's current stream has queued so far is done.
void outlives_current_stream(const at::Tensor& tensor);

}  // namespace pyunetsep
