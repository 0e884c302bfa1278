#include "training_kernels.h"

namespace pyunetsep {

const TrainingKernels& training_kernels(const at::Device& device) {
  return device.is_cuda() ? training_kernels_of_cuda() : training_kernels_of_cpu();
}

}  // namespace pyunetsep
