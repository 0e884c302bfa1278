// Everything the kernels need from the device: launch syntax, error checks, and all PTX. Kernel files use no more of
// CUDA than this, the built-in index variables and the plain functions that both CUDA and C++ have, so that
// ../emulation/device.cuh can run them on a CPU.
#pragma once
#include "device_facts.h"
#include "elements.h"
#ifdef PYUNETSEP_EMULATION
#include "../emulation/device.cuh"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace pyunetsep::cuda {

inline void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next launch would report this error again
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status) + " (" + file + ":" +
                           std::to_string(line) + ")");
}

}  // namespace pyunetsep::cuda

// Throws std::runtime_error with the call, CUDA's words, file and line.
#define CUDA_CHECK(call) ::pyunetsep::cuda::check((call), #call, __FILE__, __LINE__)

namespace pyunetsep::cuda {

inline DeviceFacts facts_of(int device) {
  DeviceFacts facts{};
  CUDA_CHECK(cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&facts.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&facts.shared_bytes_in_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  return facts;
}

// Lets a kernel ask for all the shared memory that a block may have. Always for the same: the permission is the
// function's, and another thread may be about to launch it with more.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, int device) {
  int bytes = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

}  // namespace pyunetsep::cuda

// kernel<<<grid, block, shared_bytes>>>(...) on the queue; a template kernel goes in parentheses for its commas.
// The device is set each time: this static CUDA runtime does not share the choice that torch's own runtime made.
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, queue, ...)                                         \
  do {                                                                                                     \
    CUDA_CHECK(cudaSetDevice((queue).device));                                                             \
    if ((shared_bytes) > 48 * 1024) ::pyunetsep::cuda::allow_shared_memory((kernel), (queue).device);      \
    (kernel)<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>((queue).stream)>>>(__VA_ARGS__); \
    CUDA_CHECK(cudaGetLastError());                                                                        \
  } while (false)

// The block's shared memory, as many bytes as the launch asked for, aligned to 128 of them.
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

namespace pyunetsep::cuda {

__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float widen(Bfloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

// Two neighbours in memory, the first in the lower bits.
template <typename T>
__device__ __forceinline__ uint32_t narrow_pair(float first, float second);
template <>
__device__ __forceinline__ uint32_t narrow_pair<Half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t narrow_pair<Bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// 8 or 16 bytes at an address that is a multiple of that, in any memory.
__device__ __forceinline__ uint2 load8(const void* p) { return *static_cast<const uint2*>(p); }
__device__ __forceinline__ void store8(void* p, uint2 x) { *static_cast<uint2*>(p) = x; }
__device__ __forceinline__ uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ void store16(void* p, uint4 x) { *static_cast<uint4*>(p) = x; }

// What another block has written meanwhile: past the first cache level.
__device__ __forceinline__ float load_fresh(const float* p) { return __ldcg(p); }

// x, of which the compiler knows nothing any more: what is made of it is not made ahead and kept in registers.
__device__ __forceinline__ int unknown(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- Together, all lanes of a warp:

// Four 8x8 matrices of 16-bit elements (or 8x4 of 32-bit ones) from shared memory; lane l gives the address of row l %
// 8 of matrix l / 8, and gets of each matrix the 32 bits at row l / 4, place l % 4.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same of 16-bit elements, each matrix turned: lane l gets the elements at places l / 4 of rows 2 (l % 4) and the
// next.
__device__ __forceinline__ void load_turned_matrices(uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// d += a b for a 16x16, b 16x8, d 16x8. Lane l = 4 g + t holds of a, in this order, rows g, g + 8, g, g + 8 and columns
// 2 t, 2 t, 2 t + 8, 2 t + 8 (and the next); of b rows 2 t and 2 t + 8 (and the next) of column g; of d rows g, g, g +
// 8, g + 8 and columns 2 t, 2 t + 1, 2 t, 2 t + 1.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<Half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<Bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                       uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Copies of 16 bytes from global to shared memory that go on by themselves.

// Zeros instead, where `inside` is false; nothing is read then.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(global), "r"(inside ? 16 : 0)
               : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last `kGroups` groups of this thread are on their way; the others are there for this thread,
// and after a barrier for all.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kGroups) : "memory");
}

}  // namespace pyunetsep::cuda

#endif

#include <cstdint>

namespace pyunetsep::cuda {

__device__ __forceinline__ float widen(float x) { return x; }

// Grid-stride loop over items: for (int64_t i = first_item(); i < n; i += item_stride()).
__device__ __forceinline__ int64_t first_item() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return int64_t{gridDim.x} * blockDim.x; }

// Blocks for n items, at most limit: the grid-stride loop does the rest.
inline unsigned blocks_for(int64_t n, int64_t items_a_block, int64_t limit) {
  const int64_t blocks = (n + items_a_block - 1) / items_a_block;
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

}  // namespace pyunetsep::cuda
