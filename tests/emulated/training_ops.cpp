// The training ops as they are on a GPU, for tensors on the CPU: with the emulated kernels, as pyunetsep_emulated::*.
#include <torch/library.h>

#include "cuda_queue.h"
#include "training_kernels.h"
#include "training_ops.h"

namespace pyunetsep {

cuda::Queue current_queue(at::Device) { return {0, nullptr}; }
const TrainingKernels& training_kernels(const at::Device&) { return training_kernels_of_cuda(); }

}  // namespace pyunetsep

TORCH_LIBRARY(pyunetsep_emulated, library) {
  library.def("training_conv", &pyunetsep::training_conv);
  library.def("training_upconv", &pyunetsep::training_upconv);
  library.def("training_weight_gradient", &pyunetsep::training_weight_gradient);
  library.def("training_channel_sums", &pyunetsep::training_channel_sums);
  library.def("training_norm_statistics", &pyunetsep::training_norm_statistics);
  library.def("training_norm", &pyunetsep::training_norm);
  library.def("training_norm_sums", &pyunetsep::training_norm_sums);
  library.def("training_norm_gradient", &pyunetsep::training_norm_gradient);
}
