// The training ops as they are on a GPU, for tensors on the CPU: with the emulated kernels, as pyunetsep_emulated::*.
#include "cuda_queue.h"
#include "training_kernels.h"
#include "training_library.h"

namespace pyunetsep {

cuda::Queue current_queue(at::Device) { return {0, nullptr}; }
const TrainingKernels& training_kernels(const at::Device&) { return training_kernels_of_cuda(); }

}  // namespace pyunetsep

TORCH_LIBRARY(pyunetsep_emulated, library) { pyunetsep::define_training_ops(library); }
TORCH_LIBRARY_IMPL(pyunetsep_emulated, CPU, library) { pyunetsep::implement_training_ops(library); }
