// What the tensor layer checks before a kernel sees a tensor. Messages name the argument, what it got, what it wants.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace pyunetsep {

inline void check_alike(const char* name, const at::Tensor& tensor, const char* like_name, const at::Tensor& like) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, ": got dtype ", tensor.scalar_type(),
                   ", wants that of ", like_name, ", ", like.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, ": got device ", tensor.device(), ", wants that of ",
                    like_name, ", ", like.device());
}

inline void check_cpu_float32(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, name, ": got dtype ", tensor.scalar_type(), ", wants float32");
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, ": got device ", tensor.device(), ", wants cpu");
}

}  // namespace pyunetsep
