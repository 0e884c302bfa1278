// Stands in for the .cu files where there is no nvcc: the package works on the CPU, and a CUDA tensor hears why not.
#include <stdexcept>

#include "statistics.h"
#include "tiling.h"

namespace pyunetsep::cuda {
namespace {

[[noreturn]] void unavailable() {
  throw std::runtime_error(
      "pyunetsep was built without its CUDA kernels: install a CUDA toolkit (nvcc), then reinstall pyunetsep with "
      "`PYUNETSEP_CUDA=ON pip install --force-reinstall --no-deps --no-cache-dir ...`, move the tensors to the CPU, or "
      "set PYUNETSEP_KERNELS=0 to use plain PyTorch");
}

}  // namespace

void ratio_mask(const RatioMask<float>&, Queue) { unavailable(); }
void ratio_mask(const RatioMask<double>&, Queue) { unavailable(); }

void overlap_add(const OverlapAdd<float>&, Queue) { unavailable(); }
void overlap_add(const OverlapAdd<double>&, Queue) { unavailable(); }

std::vector<float> fft_roots(int64_t) { unavailable(); }
void stft(const Stft&, Queue) { unavailable(); }
void masked_istft(const MaskedIstft&, Queue) { unavailable(); }
void mask_wave(const MaskWave&, Queue) { unavailable(); }

DeviceFacts device_facts(int) { unavailable(); }
void launch_strided(const ConvolutionLaunch&, Queue) { unavailable(); }
void launch_transposed(const ConvolutionLaunch&, Queue) { unavailable(); }
void launch_dense(const ConvolutionLaunch&, Queue) { unavailable(); }
void launch_packing(const Packing&, Queue) { unavailable(); }
void pack_input_on_device(int64_t, int64_t, const float*, float*, Queue) { unavailable(); }
int64_t input_statistics_floats(const InputConvolutionRun&) { unavailable(); }
void input_convolution(const InputConvolutionRun&, Queue) { unavailable(); }
void join_statistics(const PartStatistics&, const StatisticsRun&, Queue) { unavailable(); }
void dilated_head(const DilatedHeadRun&, Queue) { unavailable(); }

int64_t weight_gradient_bytes(const WeightGradientRun&, const DeviceFacts&) { unavailable(); }
void weight_gradient(const WeightGradientRun&, const DeviceFacts&, Queue) { unavailable(); }
int64_t plane_weight_gradient_bytes(const WeightGradientRun&, const DeviceFacts&) { unavailable(); }
void plane_weight_gradient(const WeightGradientRun&, const DeviceFacts&, Queue) { unavailable(); }
int64_t norm_parts_floats(const NormRun&) { unavailable(); }
void norm_statistics(const NormRun&, const StatisticsRun&, Queue) { unavailable(); }
void norm_apply(const NormRun&, void*, Queue) { unavailable(); }
void norm_sums(const NormRun&, const NormGradientRun&, Queue) { unavailable(); }
void norm_gradient(const NormRun&, const NormGradientRun&, Queue) { unavailable(); }
int64_t masked_l1_parts(int64_t) { unavailable(); }
void masked_l1(const MaskedL1Run&, Queue) { unavailable(); }
void masked_l1_gradient(const MaskedL1Run&, const float*, float*, Queue) { unavailable(); }

}  // namespace pyunetsep::cuda
