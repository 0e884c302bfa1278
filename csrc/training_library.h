// The training ops of both devices as torch knows them, for whichever library registers them.
#pragma once
#include <torch/library.h>

#include "training_ops.h"

namespace pyunetsep {

inline void define_training_ops(torch::Library& library) {
  library.def(
      "training_conv(Tensor x, Tensor weight, Tensor? bias, str alignment, Tensor? norm=None, float[] numbers=[], "
      "float? inner_slope=None, *, ScalarType? element=None) -> (Tensor, Tensor)");
  library.def(
      "training_upconv(Tensor x, Tensor? skip, int skip_channels, Tensor weight, Tensor? bias, bool to_planes, "
      "str alignment, Tensor? norm=None, Tensor? seeds=None, float[] numbers=[], Tensor? skip_norm=None, "
      "float[] skip_numbers=[], float? inner_slope=None, bool sigmoid=False) -> (Tensor, Tensor)");
  library.def(
      "training_weight_gradient(Tensor coarse, Tensor? skip, Tensor fine, int[] channels, str alignment, "
      "Tensor? norm=None, Tensor? seeds=None, float[] numbers=[], Tensor? skip_norm=None, float[] skip_numbers=[], "
      "Tensor? fine_norm=None, float[] fine_numbers=[]) -> Tensor");
  library.def("training_channel_sums(Tensor map, int channels) -> Tensor");
  library.def("training_norm_statistics(Tensor x, int channels, float inner_slope) -> Tensor");
  library.def("training_norm(Tensor x, Tensor norm, Tensor? seeds, float[] numbers) -> Tensor");
  library.def("training_norm_sums(Tensor gradient, Tensor x, Tensor norm, Tensor? seeds, float[] numbers) -> Tensor");
  library.def(
      "training_norm_gradient(Tensor gradient, Tensor sums, Tensor x, Tensor norm, Tensor? seeds, float[] numbers) -> "
      "Tensor");
  library.def("training_masked_l1(Tensor mask, Tensor magnitude, Tensor target) -> Tensor");
  library.def("training_masked_l1_gradient(Tensor gradient, Tensor mask, Tensor magnitude, Tensor target) -> Tensor");
}

inline void implement_training_ops(torch::Library& library) {
  library.impl("training_conv", &training_conv);
  library.impl("training_upconv", &training_upconv);
  library.impl("training_weight_gradient", &training_weight_gradient);
  library.impl("training_channel_sums", &training_channel_sums);
  library.impl("training_norm_statistics", &training_norm_statistics);
  library.impl("training_norm", &training_norm);
  library.impl("training_norm_sums", &training_norm_sums);
  library.impl("training_norm_gradient", &training_norm_gradient);
  library.impl("training_masked_l1", &training_masked_l1);
  library.impl("training_masked_l1_gradient", &training_masked_l1_gradient);
}

}  // namespace pyunetsep
