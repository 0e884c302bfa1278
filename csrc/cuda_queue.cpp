#include "cuda_queue.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#define TORCH_HAS_NATIVE_HANDLE (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 11)
#if !TORCH_HAS_NATIVE_HANDLE
// From torch's C interface, in its CUDA library; weak, because CPU-only builds of torch do not have that.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace pyunetsep {

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

void outlives_current_stream(const at::Tensor& tensor) {
  const c10::impl::VirtualGuardImpl guard(tensor.device().type());
  tensor.record_stream(guard.getStream(tensor.device()));
}

}  // namespace pyunetsep
