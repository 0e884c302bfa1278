#include "ops.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels.h"

#define TORCH_HAS_NATIVE_HANDLE (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 11)
#if !TORCH_HAS_NATIVE_HANDLE
// From torch's C interface, in its CUDA library; weak, because CPU-only builds of torch do not have that.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace pyunetsep {
namespace {

void check_dtype(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, name, ": got dtype ",
                   tensor.scalar_type(), ", wants float32 or float64");
}

void check_alike(const char* name, const at::Tensor& tensor, const char* like_name, const at::Tensor& like) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, ": got dtype ", tensor.scalar_type(),
                   ", wants that of ", like_name, ", ", like.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, ": got device ", tensor.device(), ", wants that of ",
                    like_name, ", ", like.device());
}

void check_positive(const char* name, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name, ": got ", value, ", wants a finite number above 0");
}

// The device's current stream, without a CUDA header, so that one binding compiles against CPU-only and CUDA builds of
// torch.
cuda::Queue current_queue(at::Device device) {
#if TORCH_HAS_NATIVE_HANDLE
  const c10::impl::VirtualGuardImpl guard(device.type());
  return {device.index(), guard.getStream(device).native_handle()};
#else
  void* stream = nullptr;
  TORCH_CHECK(aoti_torch_get_current_cuda_stream && aoti_torch_get_current_cuda_stream(device.index(), &stream) == 0,
              "torch does not tell the current stream of ", device);
  return {device.index(), stream};
#endif
}

// Calls body with a zero of the tensor's element type.
template <typename Body>
void with_dtype(const at::Tensor& tensor, Body body) {
  tensor.scalar_type() == at::kDouble ? body(double{}) : body(float{});
}

}  // namespace

at::Tensor ratio_mask(const at::Tensor& magnitudes, const std::optional<at::Tensor>& mixture, double power,
                      double epsilon) {
  check_dtype("magnitudes", magnitudes);
  TORCH_CHECK_VALUE(magnitudes.dim() >= 1 && magnitudes.size(0) >= 1, "magnitudes: got shape ", magnitudes.sizes(),
                    ", wants [stems, ...] with at least one stem");
  if (mixture) {
    check_alike("mixture", *mixture, "magnitudes", magnitudes);
    TORCH_CHECK_VALUE(mixture->sizes() == magnitudes.sizes().slice(1), "mixture: got shape ", mixture->sizes(),
                      ", wants that of one stem, ", magnitudes.sizes().slice(1));
  }
  check_positive("power", power);
  check_positive("epsilon", epsilon);

  const c10::DeviceGuard guard(magnitudes.device());
  const at::Tensor stems = magnitudes.contiguous();
  const at::Tensor whole = mixture ? mixture->contiguous() : at::Tensor();
  const at::Tensor masks = at::empty(stems.sizes(), stems.options());
  if (masks.numel() == 0) return masks;

  with_dtype(stems, [&](auto zero) {
    using T = decltype(zero);
    const RatioMask<T> args{.magnitudes = stems.const_data_ptr<T>(),
                            .mixture = mixture ? whole.const_data_ptr<T>() : nullptr,
                            .masks = masks.mutable_data_ptr<T>(),
                            .stems = stems.size(0),
                            .points = stems.numel() / stems.size(0),
                            .power = static_cast<T>(power),
                            .epsilon = static_cast<T>(epsilon)};
    stems.is_cuda() ? cuda::ratio_mask(args, current_queue(stems.device())) : cpu::ratio_mask(args);
  });
  return masks;
}

at::Tensor overlap_add(const at::Tensor& frames, const at::Tensor& window, int64_t hop_length) {
  check_dtype("frames", frames);
  TORCH_CHECK_VALUE(frames.dim() >= 2, "frames: got shape ", frames.sizes(), ", wants [..., frames, n_fft]");
  check_alike("window", window, "frames", frames);
  const int64_t frame_count = frames.size(-2), n_fft = frames.size(-1);
  TORCH_CHECK_VALUE(window.dim() == 1 && window.size(0) == n_fft, "window: got shape ", window.sizes(), ", wants [",
                    n_fft, "], the length of a frame");
  TORCH_CHECK_VALUE(1 <= hop_length && hop_length <= n_fft, "hop_length: got ", hop_length, ", wants 1 to n_fft, ",
                    n_fft);
  TORCH_CHECK_VALUE(n_fft <= std::numeric_limits<int32_t>::max(), "frames: got n_fft ", n_fft, ", wants below 2^31");

  const c10::DeviceGuard guard(frames.device());
  const at::Tensor rows = frames.contiguous();
  const at::Tensor weights = window.contiguous();
  std::vector<int64_t> shape(frames.sizes().begin(), frames.sizes().end() - 1);
  shape.back() = frame_count == 0 ? 0 : (frame_count - 1) * hop_length + n_fft;
  const at::Tensor wave = at::empty(shape, frames.options());
  if (wave.numel() == 0) return wave;

  with_dtype(rows, [&](auto zero) {
    using T = decltype(zero);
    const OverlapAdd<T> args{.frames = rows.const_data_ptr<T>(),
                             .window = weights.const_data_ptr<T>(),
                             .wave = wave.mutable_data_ptr<T>(),
                             .rows = wave.numel() / shape.back(),
                             .frame_count = frame_count,
                             .n_fft = n_fft,
                             .hop_length = hop_length,
                             .length = shape.back()};
    rows.is_cuda() ? cuda::overlap_add(args, current_queue(rows.device())) : cpu::overlap_add(args);
  });
  return wave;
}

}  // namespace pyunetsep
