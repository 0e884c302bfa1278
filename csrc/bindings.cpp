// The extension module pyunetsep._C: registers the ops with torch (torch.ops.pyunetsep.*; their fake and backward
// halves are in pyunetsep/ops/kernels.py), exposes the bare functions, and says what it was built with.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "block_ops.h"
#include "cuda_plan.h"
#include "kernels.h"
#include "ops.h"
#include "training_library.h"
#include "unet_plan.h"

// Facts that only the build knows; setup.py sets them.
#ifndef PYUNETSEP_CUDA_TOOLKIT
#define PYUNETSEP_CUDA_TOOLKIT ""
#define PYUNETSEP_CUDA_ARCHITECTURES ""
#endif

#define STRINGIFY_VALUE(x) #x
#define STRINGIFY(x) STRINGIFY_VALUE(x)
#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define COMPILER "msvc " STRINGIFY(_MSC_VER)
#else
#define COMPILER "unknown"
#endif

TORCH_LIBRARY(pyunetsep, library) {
  library.def("ratio_mask(Tensor magnitudes, Tensor? mixture, float power, float epsilon) -> Tensor");
  library.def("overlap_add(Tensor frames, Tensor window, int hop_length) -> Tensor");
  library.def("stft(Tensor wave, Tensor window, int hop_length, int first_bin, int bins) -> (Tensor, Tensor)");
  library.def("magnitudes(Tensor wave, Tensor window, int hop_length, int first_bin, int bins) -> Tensor");
  library.def(
      "masked_istft(Tensor spectrum, Tensor mask, Tensor gain, Tensor window, int hop_length, int first_bin) -> "
      "Tensor");
  library.def(
      "mask_wave(Tensor wave, Tensor mask, Tensor gain, Tensor window, Tensor synthesis_window, int hop_length, "
      "int first_bin) -> Tensor");
  library.def(
      "encoder_block(Tensor x, Tensor weight, Tensor bias, Tensor scale, Tensor shift, float slope, str alignment) -> "
      "(Tensor, Tensor)");
  library.def(
      "decoder_block(Tensor x, Tensor? skip, Tensor weight, Tensor bias, Tensor scale, Tensor shift, bool norm_first, "
      "str alignment, str upsampling) -> Tensor");
  library.def(
      "mask_block(Tensor x, Tensor? skip, Tensor weight, Tensor bias, str alignment, str upsampling) -> Tensor");
  library.def("dilated_head(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  pyunetsep::define_training_ops(library);
  library.def("training_head(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("training_head_weight_gradient(Tensor gradient, Tensor x) -> Tensor");
}

// One function for both devices: it chooses by the tensors it gets.
static void implement_on_both(torch::Library& library) {
  library.impl("ratio_mask", &pyunetsep::ratio_mask);
  library.impl("overlap_add", &pyunetsep::overlap_add);
  library.impl("stft", &pyunetsep::stft);
  library.impl("magnitudes", &pyunetsep::magnitudes);
  library.impl("masked_istft", &pyunetsep::masked_istft);
  library.impl("mask_wave", &pyunetsep::mask_wave);
  pyunetsep::implement_training_ops(library);
}

// Blocks for evaluation, and the head's training, are for the CPU alone.
TORCH_LIBRARY_IMPL(pyunetsep, CPU, library) {
  implement_on_both(library);
  library.impl("encoder_block", &pyunetsep::encoder_block);
  library.impl("decoder_block", &pyunetsep::decoder_block);
  library.impl("mask_block", &pyunetsep::mask_block);
  library.impl("dilated_head", &pyunetsep::dilated_head);
  library.impl("training_head", &pyunetsep::training_head);
  library.impl("training_head_weight_gradient", &pyunetsep::training_head_weight_gradient);
}

TORCH_LIBRARY_IMPL(pyunetsep, CUDA, library) { implement_on_both(library); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  // The same functions without torch's dispatcher: no autograd, no torch.compile, a tenth of the call's cost.
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.def("ratio_mask", &pyunetsep::ratio_mask, pybind11::arg("magnitudes"), pybind11::arg("mixture"),
             pybind11::arg("power"), pybind11::arg("epsilon"), without_gil);
  module.def("overlap_add", &pyunetsep::overlap_add, pybind11::arg("frames"), pybind11::arg("window"),
             pybind11::arg("hop_length"), without_gil);
  module.def("stft", &pyunetsep::stft, pybind11::arg("wave"), pybind11::arg("window"), pybind11::arg("hop_length"),
             pybind11::arg("first_bin"), pybind11::arg("bins"), without_gil);
  module.def("magnitudes", &pyunetsep::magnitudes, pybind11::arg("wave"), pybind11::arg("window"),
             pybind11::arg("hop_length"), pybind11::arg("first_bin"), pybind11::arg("bins"), without_gil);
  module.def("masked_istft", &pyunetsep::masked_istft, pybind11::arg("spectrum"), pybind11::arg("mask"),
             pybind11::arg("gain"), pybind11::arg("window"), pybind11::arg("hop_length"), pybind11::arg("first_bin"),
             without_gil);
  module.def("mask_wave", &pyunetsep::mask_wave, pybind11::arg("wave"), pybind11::arg("mask"), pybind11::arg("gain"),
             pybind11::arg("window"), pybind11::arg("synthesis_window"), pybind11::arg("hop_length"),
             pybind11::arg("first_bin"), without_gil);

  using pyunetsep::Block, pyunetsep::CudaPlan, pyunetsep::UNetDescription, pyunetsep::UNetPlan;
  namespace py = pybind11;
  py::class_<Block>(module, "Block")
      .def(py::init<at::Tensor, at::Tensor, std::optional<pyunetsep::Affine>, std::optional<pyunetsep::Affine>,
                    double>(),
           py::arg("weight"), py::arg("bias"), py::arg("before") = py::none(), py::arg("after") = py::none(),
           py::arg("slope") = 1.0)
      .def_readonly("weight", &Block::weight)
      .def_readonly("bias", &Block::bias)
      .def_readonly("before", &Block::before)
      .def_readonly("after", &Block::after)
      .def_readonly("slope", &Block::slope);
  py::class_<UNetDescription>(module, "UNetDescription")
      .def(py::init([](std::vector<Block> encoder, std::vector<Block> decoder, std::optional<Block> head,
                       const std::string& alignment, const std::string& upsampling, bool raw_skips) {
             return UNetDescription{std::move(encoder),
                                    std::move(decoder),
                                    std::move(head),
                                    pyunetsep::alignment_of(alignment),
                                    pyunetsep::upsampling_of(upsampling),
                                    raw_skips};
           }),
           py::arg("encoder"), py::arg("decoder"), py::arg("head"), py::arg("alignment"), py::arg("upsampling"),
           py::arg("raw_skips"))
      .def_readonly("encoder", &UNetDescription::encoder)
      .def_readonly("decoder", &UNetDescription::decoder)
      .def_readonly("head", &UNetDescription::head)
      .def_readonly("raw_skips", &UNetDescription::raw_skips);
  py::class_<UNetPlan>(module, "UNetPlan")
      .def(py::init([](const UNetDescription& description, std::array<int64_t, 3> usual_size) {
             const py::gil_scoped_release release;
             return std::make_unique<UNetPlan>(description,
                                               pyunetsep::Size{usual_size[0], usual_size[1], usual_size[2]});
           }),
           py::arg("description"), py::arg("usual_size"))
      .def("run", &UNetPlan::run, py::arg("magnitude"), py::arg("masked") = false, py::arg("out") = py::none(),
           without_gil)
      .def(
          "profile",
          [](const UNetPlan& plan, const at::Tensor& magnitude) {
            std::vector<std::pair<std::string, double>> times;
            const py::gil_scoped_release release;
            for (const pyunetsep::LayerTime& layer : plan.profile(magnitude))
              times.emplace_back(layer.name, layer.seconds);
            return times;
          },
          py::arg("magnitude"))
      .def_property_readonly("simd_level", &UNetPlan::simd_level)
      .def_property_readonly("packed_bytes", &UNetPlan::packed_bytes);
  py::class_<CudaPlan>(module, "CudaPlan")
      .def(py::init<std::vector<UNetDescription>, std::string, int64_t>(), py::arg("descriptions"),
           py::arg("precision"), py::arg("device"), without_gil)
      .def("run", &CudaPlan::run, py::arg("magnitude"), py::arg("first"), py::arg("networks"),
           py::arg("masked") = false, py::arg("out") = py::none(), without_gil)
      .def_property_readonly("packed_bytes", &CudaPlan::packed_bytes);

  module.def("multiply_adds", &pyunetsep::cpu::multiply_adds, py::arg("threads"), py::arg("rounds"), without_gil);
  module.def("simd_level", &pyunetsep::cpu::simd_level);
  module.def("has_matrix_products", &pyunetsep::cpu::has_matrix_products);
  module.def("simd_levels", &pyunetsep::cpu::simd_levels);
  module.def("set_simd_level", &pyunetsep::cpu::set_simd_level, pybind11::arg("name"));
  module.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = TORCH_VERSION;
    info["compiler"] = COMPILER;
    info["cuda"] = *PYUNETSEP_CUDA_TOOLKIT != '\0';
    info["cuda_toolkit"] = PYUNETSEP_CUDA_TOOLKIT;
    info["cuda_architectures"] = PYUNETSEP_CUDA_ARCHITECTURES;
    return info;
  });
}
