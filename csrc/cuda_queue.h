#pragma once
#include <c10/core/Device.h>

#include "kernels.h"

namespace pyunetsep {

// The device's current stream, without a CUDA header, so that one binding compiles against CPU-only and CUDA builds of
// torch.
cuda::Queue current_queue(at::Device device);

}  // namespace pyunetsep
