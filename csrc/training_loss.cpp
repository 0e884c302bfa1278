#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include <utility>

#include "checks.h"
#include "training_kernels.h"
#include "training_ops.h"

namespace pyunetsep {
namespace {

void check_float32(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, name, ": got dtype ", tensor.scalar_type(), ", wants float32");
}

LossPlanes loss_planes(const at::Tensor& mask, const at::Tensor& magnitude, const at::Tensor& target) {
  check_float32("mask", mask);
  TORCH_CHECK_VALUE(mask.numel() > 0, "mask: got shape ", mask.sizes(), ", wants some elements");
  for (const auto& [name, planes] : {std::pair{"magnitude", &magnitude}, {"target", &target}}) {
    check_alike(name, *planes, "mask", mask);
    TORCH_CHECK_VALUE(planes->sizes() == mask.sizes(), name, ": got shape ", planes->sizes(),
                      ", wants that of the mask, ", mask.sizes());
  }
  return {mask.contiguous(), magnitude.contiguous(), target.contiguous()};
}

}  // namespace

at::Tensor training_masked_l1(const at::Tensor& mask, const at::Tensor& magnitude, const at::Tensor& target) {
  const LossPlanes planes = loss_planes(mask, magnitude, target);
  const c10::DeviceGuard guard(mask.device());
  const at::Tensor loss = at::empty({}, mask.options());
  training_kernels(mask.device()).masked_l1(planes, loss);
  return loss;
}

at::Tensor training_masked_l1_gradient(const at::Tensor& gradient, const at::Tensor& mask, const at::Tensor& magnitude,
                                       const at::Tensor& target) {
  const LossPlanes planes = loss_planes(mask, magnitude, target);
  check_alike("gradient", gradient, "mask", mask);
  TORCH_CHECK_VALUE(gradient.numel() == 1, "gradient: got shape ", gradient.sizes(), ", wants one element");
  const c10::DeviceGuard guard(mask.device());
  const at::Tensor of_mask = at::empty_like(planes.mask);
  training_kernels(mask.device()).masked_l1_gradient(planes, gradient, of_mask);
  return of_mask;
}

}  // namespace pyunetsep
