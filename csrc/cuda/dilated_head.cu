#include "channels.cuh"

// One block makes 16 x 64 outputs of an image, of all channels one after the other; one thread eight of them, every
// other row of a column, whose 4 x 4 taps (two rows and columns apart) overlap. The patch lies in shared memory. Bytes:
// the plane once with a margin of 6 in 64, each output and the magnitude that it is multiplied by once. Bound by
// memory.

namespace pyunetsep::cuda {
namespace {

constexpr int kColumns = 64, kRows = 16, kOutputs = kColumns * kRows / kThreads;
constexpr int kMargin = 3, kPatchRows = kRows + 2 * kMargin, kPatchColumns = kColumns + 2 * kMargin;

__global__ void __launch_bounds__(kThreads)
    dilated_head_kernel(const DilatedHeadRun a, int tiles_across, int tiles_down) {
  SHARED_MEMORY(shared);
  float* const patch = reinterpret_cast<float*>(shared);  // [kPatchRows, kPatchColumns]
  const int network = blockIdx.y;
  const int image = blockIdx.x / (tiles_across * tiles_down);
  const int first_row = blockIdx.x / tiles_across % tiles_down * kRows;
  const int first_column = blockIdx.x % tiles_across * kColumns;

  const float* const plane = place_in(a.source, network, image, 0, 0, 0);
  for (int i = threadIdx.x; i < kPatchRows * kPatchColumns; i += kThreads) {
    const int row = first_row - kMargin + i / kPatchColumns, column = first_column - kMargin + i % kPatchColumns;
    const bool inside = 0 <= row && row < a.rows && 0 <= column && column < a.columns;
    patch[i] = inside ? plane[row * a.source.row_stride + column] : 0.0f;
  }
  __syncthreads();

  const int column = threadIdx.x % kColumns, parity = threadIdx.x / kColumns;  // rows 2 i + parity
  if (first_column + column >= a.columns) return;
  for (int channel = 0; channel < a.out_channels; ++channel) {
    const float* const weight = a.weight + (int64_t{network} * a.out_channels + channel) * 16;
    float sums[kOutputs] = {};
#pragma unroll
    for (int kx = 0; kx < 4; ++kx) {
      float w[4];
#pragma unroll
      for (int ky = 0; ky < 4; ++ky) w[ky] = weight[ky * 4 + kx];
#pragma unroll
      for (int i = 0; i < kOutputs + 3; ++i) {  // row 2 i + parity of the patch, tap ky of output i - ky
        const float x = patch[(2 * i + parity) * kPatchColumns + column + 2 * kx];
#pragma unroll
        for (int ky = 0; ky < 4; ++ky) {
          if (0 <= i - ky && i - ky < kOutputs) sums[i - ky] += x * w[ky];
        }
      }
    }
    const float bias = a.bias[int64_t{network} * a.out_channels + channel];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int row = first_row + 2 * i + parity;
      if (row >= a.rows) continue;
      const float x[1] = {sums[i] + bias};
      store_outputs(a.output, network, image, channel, row, first_column + column, x);
    }
  }
}

}  // namespace

void dilated_head(const DilatedHeadRun& run, Queue queue) {
  const int across = static_cast<int>((run.columns + kColumns - 1) / kColumns);
  const int down = static_cast<int>((run.rows + kRows - 1) / kRows);
  const dim3 grid(static_cast<unsigned>(across * down * run.batch), static_cast<unsigned>(run.networks));
  const int bytes = kPatchRows * kPatchColumns * static_cast<int>(sizeof(float));
  CUDA_LAUNCH(dilated_head_kernel, grid, kThreads, bytes, queue, run, across, down);
}

}  // namespace pyunetsep::cuda
