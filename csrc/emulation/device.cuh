// cuda/device.cuh for the host, for tests without a GPU: g++ -x c++ -DPYUNETSEP_EMULATION compiles the .cu files as
// they are. Blocks run one after another, and the threads of a block too, in both orders: enough for kernels without
// barriers. (Kernels with barriers need a launch() whose threads are fibers; nothing else here would change.)
// Checks what a launch may ask of a device; it says nothing of speed or of races between blocks.
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace pyunetsep::emulation {

inline bool reversed = false;  // run blocks and threads from the last to the first

inline void require(bool holds, const char* limit) {
  if (!holds) throw std::runtime_error(std::string("emulated launch: ") + limit);
}

// Calls body with each index below size.
template <typename Body>
void for_each(dim3 size, Body body) {
  const uint64_t count = uint64_t{size.x} * size.y * size.z;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = reversed ? count - 1 - i : i;
    body(dim3(at % size.x, at / size.x % size.y, at / size.x / size.y));
  }
}

template <typename Thread>
void launch(dim3 grid, dim3 block, size_t shared_bytes, Thread thread) {
  require(grid.x >= 1 && grid.y >= 1 && grid.z >= 1, "a grid has at least one block");
  require(grid.x <= 2147483647 && grid.y <= 65535 && grid.z <= 65535,
          "a grid has at most 2^31 - 1, 65535, 65535 blocks");
  require(block.x >= 1 && block.y >= 1 && block.z >= 1, "a block has at least one thread");
  require(uint64_t{block.x} * block.y * block.z <= 1024 && block.z <= 64, "a block has at most 1024 threads, 64 deep");
  require(shared_bytes == 0, "shared memory is not emulated yet");
  gridDim = grid;
  blockDim = block;
  for_each(grid, [&](dim3 index) {
    blockIdx = index;
    for_each(block, [&](dim3 thread_index) {
      threadIdx = thread_index;
      thread();
    });
  });
}

}  // namespace pyunetsep::emulation

#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, queue, ...) \
  ::pyunetsep::emulation::launch((grid), (block), (shared_bytes), [&] { kernel(__VA_ARGS__); })
