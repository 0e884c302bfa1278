// What one SIMD level offers: table.cpp fills it in once a level, dispatch.cpp chooses among them.
#pragma once
#include "../kernels.h"

namespace pyunetsep::cpu {

struct Level {
  const char* name;
  void (*ratio_mask_float)(const RatioMask<float>&);
  void (*ratio_mask_double)(const RatioMask<double>&);
  void (*overlap_add_float)(const OverlapAdd<float>&);
  void (*overlap_add_double)(const OverlapAdd<double>&);
  void (*stft)(const Stft&);
  void (*masked_istft)(const MaskedIstft&);
  int64_t (*multiply_adds)(int64_t threads, int64_t rounds);

  int64_t gemm_rows;  // tiles that are multiplied together: tasks should have a multiple of it
  // Sizes are in floats.
  int64_t (*convolution_packed_size)(const Convolution&);
  int64_t (*convolution_scratch_size)(const Convolution&, int64_t tiles_a_task, int64_t threads);  // of one of them
  // `precise`: as exactly as float can hold them; otherwise quickly
  void (*convolution_pack_float)(const Convolution&, const float* weight, bool precise, float* packed);
  void (*convolution_pack_double)(const Convolution&, const double* weight, float* packed);
  void (*convolution_run)(const ConvolutionRun&);
  int64_t (*input_convolution_scratch_size)(int64_t channels, int64_t out_columns);
  void (*input_convolution_run)(const InputConvolution&);
  int64_t (*output_convolution_scratch_size)(int64_t columns);
  void (*output_convolution_run)(const OutputConvolution&);
  int64_t (*dilated_head_scratch_size)(int64_t columns);
  void (*dilated_head_run)(const DilatedHead&);
  int64_t (*weight_gradient_scratch_size)(const WeightGradient&);
  void (*weight_gradient)(const WeightGradient&);
  int64_t (*plane_weight_gradient_scratch_size)(const PlaneWeightGradient&);
  void (*plane_weight_gradient)(const PlaneWeightGradient&);
  int64_t (*norm_scratch_size)(const Normalisation&);  // in doubles
  void (*norm_statistics)(const Normalisation&, const NormStatistics&);
  void (*norm_apply)(const Normalisation&, float* y);
  void (*norm_sums)(const Normalisation&, const NormGradient&);
  void (*norm_gradient)(const Normalisation&, const NormGradient&);
};

const Level& level();  // the one in use

}  // namespace pyunetsep::cpu
