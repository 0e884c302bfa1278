// cuda/device.cuh for the host, for tests without a GPU: g++ -x c++ -DPYUNETSEP_EMULATION compiles the .cu files as
// they are, and emulation.cpp runs them. Blocks run one after another; each thread of a block is a fiber that runs
// until it waits for others: at a barrier, or where the lanes of a warp do something together. So one warp is as far
// ahead of the others as it can be, and a missing barrier shows as a wrong result, in one of the two orders of threads
// at least. Asynchronous copies happen as late as they may, or at once. Shared memory starts as NaN, and lies between
// NaNs.
//
// Checks what a launch may ask of each architecture, addresses in shared memory, alignment of wide accesses, and that
// threads that wait for each other meet in the same line. Says nothing of speed, of races between blocks, or of those
// finer than the above. tests/emulated/test_emulation.py tests all of it.
#pragma once
#include <math.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/device_facts.h"
#include "../cuda/elements.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace pyunetsep::emulation {

// How to run, for tests to choose.
inline bool reversed = false;      // blocks, warps and lanes from the last to the first
inline bool early_copies = false;  // asynchronous copies at once, not at the wait
inline int architecture = 0;       // the one that is played; 0: launches must be possible on all of kArchitectures
inline cuda::DeviceFacts facts{132, 163 * 1024, 164 * 1024};  // of the device that is played
inline std::string launched;  // the sources they came from, for tests/emulated/mutate.py

// What kernels are built for, and what differs in what a launch may ask.
struct Architecture {
  int number;
  size_t shared_bytes;  // a block's, at most
};
constexpr Architecture kArchitectures[] = {{80, 163 * 1024}, {90, 227 * 1024}, {100, 227 * 1024}};

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  int group;
};

struct Fiber {
  dim3 thread_index;
  int warp, lane;
  int group = 0;  // of copies, the one that is open
  std::vector<Copy> copies;
};

inline Fiber* running = nullptr;
inline dim3 grid_size, block_size, block_index;
inline unsigned char* shared_memory = nullptr;

// Stops the launch with an error, from inside a kernel too.
[[noreturn]] void fail(const std::string& why);
inline void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

void launch(const char* source, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// Where a kernel calls what threads do together. By default, as a last argument, that of the call itself.
using Line = int;

void sync_threads(Line line);

// Waits until all lanes of the warp have come to the same step in the same line; the last of them calls act(operands),
// where operands[lane] is what each lane brought.
void meet(const char* step, Line line, void* operand, void (*act)(void* const* operands));

void require_shared(const void* p, size_t bytes, const char* what);
inline void require_aligned(const void* p, const char* what, uintptr_t bytes = 16) {
  require(reinterpret_cast<uintptr_t>(p) % bytes == 0, what);
}

template <typename T>
T shuffled(T value, int from_lane, Line line) {  // from_lane: whose value, 0 ... 31
  struct Operand {
    T value, result;
    int from_lane;
  } mine{value, value, from_lane & 31};
  meet("shuffle", line, &mine, [](void* const* operands) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& operand = *static_cast<Operand*>(operands[lane]);
      operand.result = static_cast<Operand*>(operands[operand.from_lane])->value;
    }
  });
  return mine.result;
}

void load_matrices(uint32_t (&x)[4], const void* row, Line line);
void load_turned_matrices(uint32_t (&x)[4], const void* row, Line line);
void multiply_add_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Line line);
void multiply_add_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Line line);
void copy_async16(void* shared, const void* global, bool inside);
void wait_copies(int groups);

}  // namespace pyunetsep::emulation

#define gridDim (::pyunetsep::emulation::grid_size)
#define blockDim (::pyunetsep::emulation::block_size)
#define blockIdx (::pyunetsep::emulation::block_index)
#define threadIdx (::pyunetsep::emulation::running->thread_index)

#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, queue, ...) \
  ::pyunetsep::emulation::launch(__BASE_FILE__, (grid), (block), (shared_bytes), [&] { (kernel)(__VA_ARGS__); })
#define SHARED_MEMORY(name) unsigned char* const name = ::pyunetsep::emulation::shared_memory

inline void __syncthreads(int line = __builtin_LINE()) { ::pyunetsep::emulation::sync_threads(line); }
inline void __syncwarp(unsigned = 0xffffffff, int line = __builtin_LINE()) {
  ::pyunetsep::emulation::meet("__syncwarp", line, nullptr, [](void* const*) {});
}
inline void __threadfence() {}
template <typename T>
T __shfl_sync(unsigned, T value, int lane, int line = __builtin_LINE()) {
  return ::pyunetsep::emulation::shuffled(value, lane, line);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int line = __builtin_LINE()) {
  return ::pyunetsep::emulation::shuffled(value, ::pyunetsep::emulation::running->lane ^ mask, line);
}
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = before < value ? value : before;
  return before;
}
using std::max;
using std::min;
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }

namespace pyunetsep::cuda {

inline DeviceFacts facts_of(int) { return emulation::facts; }

inline float widen(Half x) { return float_of(x); }
inline float widen(Bfloat16 x) { return float_of(x); }

template <typename T>
uint32_t narrow_pair(float first, float second);
template <>
inline uint32_t narrow_pair<Half>(float first, float second) {
  return half_of(first).bits | uint32_t{half_of(second).bits} << 16;
}
template <>
inline uint32_t narrow_pair<Bfloat16>(float first, float second) {
  return bfloat16_of(first).bits | uint32_t{bfloat16_of(second).bits} << 16;
}

inline uint2 load8(const void* p) {
  emulation::require_aligned(p, "load8 wants an address that is a multiple of 8", 8);
  uint2 x;
  std::memcpy(&x, p, 8);
  return x;
}
inline void store8(void* p, uint2 x) {
  emulation::require_aligned(p, "store8 wants an address that is a multiple of 8", 8);
  std::memcpy(p, &x, 8);
}
inline float load_fresh(const float* p) { return *p; }
inline int unknown(int x) { return x; }
inline uint4 load16(const void* p) {
  emulation::require_aligned(p, "load16 wants an address that is a multiple of 16");
  uint4 x;
  std::memcpy(&x, p, 16);
  return x;
}
inline void store16(void* p, uint4 x) {
  emulation::require_aligned(p, "store16 wants an address that is a multiple of 16");
  std::memcpy(p, &x, 16);
}

inline void load_matrices(uint32_t (&x)[4], const void* row, int line = __builtin_LINE()) {
  emulation::load_matrices(x, row, line);
}
inline void load_turned_matrices(uint32_t (&x)[4], const void* row, int line = __builtin_LINE()) {
  emulation::load_turned_matrices(x, row, line);
}

template <typename T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE());
template <>
inline void multiply_add<Half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  emulation::multiply_add_half(d, a, b0, b1, line);
}
template <>
inline void multiply_add<Bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  emulation::multiply_add_bfloat16(d, a, b0, b1, line);
}

inline void copy_async16(void* shared, const void* global, bool inside) {
  emulation::copy_async16(shared, global, inside);
}
inline void commit_copies() { ++emulation::running->group; }
template <int kGroups>
void wait_copies() {
  emulation::wait_copies(kGroups);
}

}  // namespace pyunetsep::cuda
