// What one SIMD level offers: table.cpp fills it in once a level, dispatch.cpp chooses among them.
#pragma once
#include "../kernels.h"

namespace pyunetsep::cpu {

template <typename T>
struct NormKernels {
  int64_t (*scratch_size)(const Normalisation<T>&);  // in doubles
  void (*statistics)(const Normalisation<T>&, const NormStatistics&);
  void (*apply)(const Normalisation<T>&, T* y);
  void (*sums)(const Normalisation<T>&, const NormGradient<T>&);
  void (*gradient)(const Normalisation<T>&, const NormGradient<T>&);
  void (*channel_sums)(const Normalisation<T>&, float* sums, double* scratch);  // of x itself
};

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
  int64_t (*dilated_head_gradient_scratch_size)(const DilatedHeadGradient&);  // in doubles
  void (*dilated_head_gradient)(const DilatedHeadGradient&);
  int64_t (*masked_l1_scratch_size)(int64_t size);  // in doubles
  double (*masked_l1)(const MaskedL1&);
  void (*masked_l1_gradient)(const MaskedL1&, float factor, float* of_mask);
  int64_t (*weight_gradient_scratch_size)(const WeightGradient&);
  void (*weight_gradient)(const WeightGradient&);
  int64_t (*plane_weight_gradient_scratch_size)(const PlaneWeightGradient&);
  void (*plane_weight_gradient)(const PlaneWeightGradient&);
  bool (*has_matrix_products)();  // see kernels.h
  // Sizes are in bytes.
  int64_t (*bfloat16_convolution_scratch_size)(const Bfloat16Convolution&);
  void (*bfloat16_convolution)(const Bfloat16Convolution&);
  int64_t (*bfloat16_upconvolution_scratch_size)(const Bfloat16Upconvolution&);
  void (*bfloat16_upconvolution)(const Bfloat16Upconvolution&);
  int64_t (*bfloat16_weight_gradient_scratch_size)(const Bfloat16WeightGradient&);
  void (*bfloat16_weight_gradient)(const Bfloat16WeightGradient&);
  const NormKernels<float>* norm;
  const NormKernels<Bfloat16>* bfloat16_norm;
};

const Level& level();  // the one in use

// Whether this processor, and its system, have AMX for bfloat16.
bool has_matrix_unit() noexcept;

}  // namespace pyunetsep::cpu
