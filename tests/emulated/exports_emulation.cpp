// How the emulation is to run, and tiny kernels that put the emulation itself to the test, right ones and ones with a
// planted bug.
#ifdef PYUNETSEP_EMULATION
#include <cstring>
#include <vector>

#include "cuda/device.cuh"
#include "exports.h"

using exports::kQueue, exports::message_of;
using namespace pyunetsep::cuda;

namespace {

// y[i] = x[n - 1 - i], through shared memory.
__global__ void reverse_kernel(const float* x, float* y, bool barrier) {
  SHARED_MEMORY(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  y[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// The same within each warp.
__global__ void reverse_warps_kernel(const float* x, float* y, bool barrier) {
  SHARED_MEMORY(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  const int i = threadIdx.x;
  shared[i] = x[i];
  if (barrier) __syncwarp();
  y[i] = shared[i ^ 31];
}

enum Bug { kNone, kWeakWait, kNoWait, kNoCommit, kNoBarrier, kShortRing };

// y[i] = the sum over tiles of x[tile, n - 1 - i]. Each thread brings 4 floats of a tile, two tiles ahead.
template <Bug kBug>
__global__ void pipeline_kernel(const float* x, float* y, int tiles) {
  constexpr int kRing = kBug == kShortRing ? 2 : 3;
  SHARED_MEMORY(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  const int n = blockDim.x * 4, mine = threadIdx.x * 4;
  const auto load = [&](int tile) {
    if (tile < tiles) copy_async16(shared + tile % kRing * n + mine, x + tile * n + mine, true);
    if (kBug != kNoCommit) commit_copies();
  };
  load(0);
  load(1);
  float sums[4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    if (kBug != kNoWait) wait_copies<kBug == kWeakWait ? 2 : 1>();
    if (kBug != kNoBarrier) __syncthreads();
    for (int i = 0; i < 4; ++i) sums[i] += shared[tile % kRing * n + n - 1 - mine - i];
    load(tile + 2);  // over the tile before, which all are done with
  }
  wait_copies<0>();
  for (int i = 0; i < 4; ++i) y[mine + i] = sums[i];
}

// A ring of one stage, which takes a second barrier: nobody may load a tile that others still read.
__global__ void one_stage_kernel(const float* x, float* y, int tiles, bool barrier) {
  SHARED_MEMORY(bytes);
  auto* const shared = reinterpret_cast<float*>(bytes);
  const int n = blockDim.x * 4;
  float sums[4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async16(shared + threadIdx.x * 4, x + tile * n + threadIdx.x * 4, true);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) sums[i] += shared[n - 1 - threadIdx.x * 4 - i];
    if (barrier) __syncthreads();
  }
  for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = sums[i];
}

enum Step {
  kNothing,
  kBarrier,
  kWarpBarrier,
  kShuffle,
  kLoadMatrices,
  kMultiplyHalf,
  kMultiplyBfloat16,
  kOtherBarrier
};

__device__ void take(int step, unsigned char* shared) {
  uint32_t x[4] = {};
  float d[4] = {};
  if (step == kBarrier) __syncthreads();
  if (step == kWarpBarrier) __syncwarp();
  if (step == kShuffle) __shfl_xor_sync(0xffffffff, 1.0f, 1);
  if (step == kLoadMatrices) load_matrices(x, shared + threadIdx.x % 32 * 16);
  if (step == kMultiplyHalf) multiply_add<Half>(d, x, 0, 0);
  if (step == kMultiplyBfloat16) multiply_add<Bfloat16>(d, x, 0, 0);
  if (step == kOtherBarrier) __syncthreads();
}

// Threads `first` to `last` take one step, the others another.
__global__ void divergent_kernel(int first, int last, int step, int other_step) {
  SHARED_MEMORY(shared);
  const int i = threadIdx.x;
  take(first <= i && i <= last ? step : other_step, shared);
}

}  // namespace

extern "C" {

void set_order(int reversed, int early_copies) {
  pyunetsep::emulation::reversed = reversed != 0;
  pyunetsep::emulation::early_copies = early_copies != 0;
}
void set_architecture(int number) { pyunetsep::emulation::architecture = number; }
void set_facts(int multiprocessors, int shared_bytes) {
  pyunetsep::emulation::facts = {multiprocessors, shared_bytes, shared_bytes + 1024};
}

// The sources that launched kernels since the last call, a line each.
const char* take_launched() {
  static std::string taken;
  taken.clear();
  taken.swap(pyunetsep::emulation::launched);
  return taken.c_str();
}

// ---- Conversions, 0: of halves, 1: of bfloat16s.

const char* test_widen(const uint16_t* bits, float* values, int64_t n, int64_t kind) {
  for (int64_t i = 0; i < n; ++i) values[i] = kind == 0 ? float_of(Half{bits[i]}) : float_of(Bfloat16{bits[i]});
  return nullptr;
}
const char* test_narrow(const float* values, uint16_t* bits, int64_t n, int64_t kind) {
  for (int64_t i = 0; i < n; ++i) bits[i] = kind == 0 ? half_of(values[i]).bits : bfloat16_of(values[i]).bits;
  return nullptr;
}
const char* test_narrow_pair(const float* values, uint32_t* pairs, int64_t n, int64_t kind) {
  for (int64_t i = 0; i < n; ++i) {
    const float first = values[2 * i], second = values[2 * i + 1];
    pairs[i] = kind == 0 ? narrow_pair<Half>(first, second) : narrow_pair<Bfloat16>(first, second);
  }
  return nullptr;
}

// ---- What threads find out about themselves: a row (thread x y z, block x y z, grid x, lane) each, in order.

const char* test_indices(float* rows, int64_t gx, int64_t gy, int64_t gz, int64_t bx, int64_t by, int64_t bz) {
  return message_of([=] {
    const auto kernel = [=] {
      const int64_t block = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      const int64_t thread = (int64_t{threadIdx.z} * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      float* row = rows + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 8;
      for (unsigned value : {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x}) {
        *row++ = static_cast<float>(value);
      }
      *row = static_cast<float>(pyunetsep::emulation::running->lane);
    };
    CUDA_LAUNCH(kernel, dim3(gx, gy, gz), dim3(bx, by, bz), 0, kQueue);
  });
}

// ---- What the lanes of a warp do together.

// x is 4 matrices [8, 8] of 16 bits; pairs [32, 4].
const char* test_load_matrices(const uint16_t* x, uint32_t* pairs, int64_t turned) {
  return message_of([=] {
    const auto kernel = [=] {
      SHARED_MEMORY(shared);
      const int lane = threadIdx.x;
      std::memcpy(shared + lane * 16, x + lane * 8, 16);
      __syncwarp();
      uint32_t mine[4];
      turned ? load_turned_matrices(mine, shared + lane * 16) : load_matrices(mine, shared + lane * 16);
      for (int i = 0; i < 4; ++i) pairs[lane * 4 + i] = mine[i];
    };
    CUDA_LAUNCH(kernel, 1, 32, 512, kQueue);
  });
}

// d [16, 8] = c [16, 8] + a [16, 16] b [16, 8]; a and b of 16 bits. Fragments as in the PTX ISA's figures for
// m16n8k16, element by element. The second of two warps waits with nothing to do.
const char* test_multiply_add(const uint16_t* a, const uint16_t* b, const float* c, float* d, int64_t kind) {
  return message_of([=] {
    const auto kernel = [=] {
      if (threadIdx.x >= 32) return;
      const int group = threadIdx.x >> 2, in_group = threadIdx.x % 4;
      uint32_t as[4] = {}, bs[2] = {};
      float ds[4];
      for (int i = 0; i < 8; ++i) {
        const int row = (i < 2 || (4 <= i && i < 6)) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        as[i / 2] |= uint32_t{a[row * 16 + column]} << i % 2 * 16;
      }
      for (int i = 0; i < 4; ++i) {
        const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
        bs[i / 2] |= uint32_t{b[row * 8 + group]} << i % 2 * 16;
      }
      const auto at = [=](int i) { return (i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1); };
      for (int i = 0; i < 4; ++i) ds[i] = c[at(i)];
      if (kind == 0) {
        multiply_add<Half>(ds, as, bs[0], bs[1]);
      } else {
        multiply_add<Bfloat16>(ds, as, bs[0], bs[1]);
      }
      for (int i = 0; i < 4; ++i) d[at(i)] = ds[i];
    };
    CUDA_LAUNCH(kernel, 1, 64, 0, kQueue);
  });
}

// Each lane of two warps gets the value of the lane that `from` says, and of the one whose number differs by `mask`.
const char* test_shuffle(const float* x, const float* from, float* by_lane, float* by_mask, int64_t mask) {
  return message_of([=] {
    const auto kernel = [=] {
      const int i = threadIdx.x;
      by_lane[i] = __shfl_sync(0xffffffff, x[i], static_cast<int>(from[i]));
      by_mask[i] = __shfl_xor_sync(0xffffffff, x[i], static_cast<int>(mask));
    };
    CUDA_LAUNCH(kernel, 1, 64, 0, kQueue);
  });
}

// Each thread of 3 blocks of 64 adds 1; before[thread] is what it found.
const char* test_atomics(float* before, float* sum_and_largest) {
  return message_of([=] {
    uint32_t count = 0;
    int largest = -1;
    const auto kernel = [&] {
      const int64_t i = first_item();
      before[i] = static_cast<float>(atomicAdd(&count, 1u));
      atomicMax(&largest, static_cast<int>(i * 7 % 192));
    };
    CUDA_LAUNCH(kernel, 3, 64, 0, kQueue);
    sum_and_largest[0] = static_cast<float>(count), sum_and_largest[1] = static_cast<float>(largest);
  });
}

// ---- Barriers and copies.

const char* test_reverse(const float* x, float* y, int64_t n, int64_t barrier) {
  return message_of([=] { CUDA_LAUNCH(reverse_kernel, 1, n, n * 4, kQueue, x, y, barrier != 0); });
}
const char* test_reverse_warps(const float* x, float* y, int64_t n, int64_t barrier) {
  return message_of([=] { CUDA_LAUNCH(reverse_warps_kernel, 1, n, n * 4, kQueue, x, y, barrier != 0); });
}
const char* test_pipeline(const float* x, float* y, int64_t tiles, int64_t threads, int64_t bug) {
  return message_of([=] {
    const auto kernels = {pipeline_kernel<kNone>,     pipeline_kernel<kWeakWait>,  pipeline_kernel<kNoWait>,
                          pipeline_kernel<kNoCommit>, pipeline_kernel<kNoBarrier>, pipeline_kernel<kShortRing>};
    CUDA_LAUNCH(kernels.begin()[bug], 1, threads, 3 * threads * 16, kQueue, x, y, static_cast<int>(tiles));
  });
}
const char* test_one_stage(const float* x, float* y, int64_t tiles, int64_t threads, int64_t barrier) {
  return message_of([=] {
    CUDA_LAUNCH(one_stage_kernel, 1, threads, threads * 16, kQueue, x, y, static_cast<int>(tiles), barrier != 0);
  });
}

// A copy of 16 bytes, or of zeros.
const char* test_copy(const float* x, float* y, int64_t inside) {
  return message_of([=] {
    const auto kernel = [=] {
      SHARED_MEMORY(shared);
      copy_async16(shared, inside ? x : nullptr, inside != 0);
      commit_copies();
      wait_copies<0>();
      std::memcpy(y, shared, 16);
    };
    CUDA_LAUNCH(kernel, 1, 1, 16, kQueue);
  });
}
const char* test_copies_in_flight(const float* x) {
  return message_of([=] {
    const auto kernel = [=] {
      SHARED_MEMORY(shared);
      copy_async16(shared, x, true);
      commit_copies();
    };
    CUDA_LAUNCH(kernel, 1, 1, 16, kQueue);
  });
}
const char* test_divergent(int64_t threads, int64_t first, int64_t last, int64_t step, int64_t other_step) {
  return message_of([=] {
    CUDA_LAUNCH(divergent_kernel, 1, threads, 512, kQueue, static_cast<int>(first), static_cast<int>(last),
                static_cast<int>(step), static_cast<int>(other_step));
  });
}

// ---- Memory.

// Writes 4 bytes at an offset of shared memory, or reads them to y.
const char* test_write_shared(int64_t bytes, int64_t offset) {
  return message_of([=] {
    const auto kernel = [=] {
      SHARED_MEMORY(shared);
      const float one = 1.0f;
      std::memcpy(shared + offset, &one, 4);
    };
    CUDA_LAUNCH(kernel, 1, 1, bytes, kQueue);
  });
}
const char* test_read_shared(float* y, int64_t bytes, int64_t offset, int64_t kind) {
  return message_of([=] {
    const auto kernel = [=] {
      SHARED_MEMORY(shared);
      const unsigned char* at = shared + offset;
      double wide;
      float single;
      uint16_t bits;
      std::memcpy(&wide, at, 8), std::memcpy(&single, at, 4), std::memcpy(&bits, at, 2);
      y[0] = kind == 0   ? single
             : kind == 1 ? static_cast<float>(wide)
             : kind == 2 ? widen(Half{bits})
                         : widen(Bfloat16{bits});
    };
    CUDA_LAUNCH(kernel, 1, 1, bytes, kQueue);
  });
}
const char* test_read_global(const float* x, float* y, int64_t index) {
  return message_of([=] {
    const auto kernel = [=] { y[0] = x[index] * 0 + 1; };
    CUDA_LAUNCH(kernel, 1, 1, 0, kQueue);
  });
}
const char* test_index(float* y, int64_t index) {
  return message_of([=] {
    const auto kernel = [=] {
      float registers[4] = {1, 2, 3, 4};
      y[0] = registers[index];
    };
    CUDA_LAUNCH(kernel, 1, 1, 0, kQueue);
  });
}
// Wide accesses to shared memory, `offset` bytes from its start, which is 512 bytes before its end.
const char* test_wide_access(const float* x, int64_t offset, int64_t kind) {
  return message_of([=] {
    const auto kernel = [=] {
      SHARED_MEMORY(shared);
      uint32_t loaded[4];
      unsigned char* const at = shared + offset;
      if (kind == 0) load16(at);
      if (kind == 1) store16(at, make_uint4(1, 2, 3, 4));
      if (kind == 2) load8(at);
      if (kind == 3) store8(at, make_uint2(1, 2));
      if (kind == 4) copy_async16(at, x, true);
      if (kind == 5) copy_async16(shared, reinterpret_cast<const unsigned char*>(x) + offset, true);
      if (kind == 6) load_matrices(loaded, at + threadIdx.x * 16 % 496);
      commit_copies();
      wait_copies<0>();
    };
    CUDA_LAUNCH(kernel, 1, 32, 512, kQueue);
  });
}

// ---- What a launch may ask.

const char* test_launch(int64_t gx, int64_t gy, int64_t gz, int64_t bx, int64_t by, int64_t bz, int64_t shared_bytes) {
  return message_of([=] {
    const auto kernel = [] {};
    CUDA_LAUNCH(kernel, dim3(gx, gy, gz), dim3(bx, by, bz), shared_bytes, kQueue);
  });
}

}  // extern "C"
#endif
