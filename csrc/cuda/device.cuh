// Everything the kernels need from the device: launch syntax, error checks, and (where they come) PTX. Kernel files use
// no more of CUDA than this and the built-in index variables, so that ../emulation/device.cuh can run them on a CPU.
#pragma once
#ifdef PYUNETSEP_EMULATION
#include "../emulation/device.cuh"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace pyunetsep::cuda {

inline void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status) + " (" + file + ":" +
                           std::to_string(line) + ")");
}

}  // namespace pyunetsep::cuda

// Throws std::runtime_error with the call, CUDA's words, file and line.
#define CUDA_CHECK(call) ::pyunetsep::cuda::check((call), #call, __FILE__, __LINE__)

// kernel<<<grid, block, shared_bytes>>>(...) on the queue; a template kernel goes in parentheses for its commas.
// The device is set each time: this static CUDA runtime does not share the choice that torch's own runtime made.
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, queue, ...)                                       \
  do {                                                                                                   \
    CUDA_CHECK(cudaSetDevice((queue).device));                                                           \
    kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>((queue).stream)>>>(__VA_ARGS__); \
    CUDA_CHECK(cudaGetLastError());                                                                      \
  } while (false)

#endif

#include <cstdint>

namespace pyunetsep::cuda {

// Grid-stride loop over items: for (int64_t i = first_item(); i < n; i += item_stride()).
__device__ __forceinline__ int64_t first_item() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return int64_t{gridDim.x} * blockDim.x; }

// Blocks for n items, at most limit: the grid-stride loop does the rest.
inline unsigned blocks_for(int64_t n, int64_t items_a_block, int64_t limit) {
  const int64_t blocks = (n + items_a_block - 1) / items_a_block;
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

}  // namespace pyunetsep::cuda
