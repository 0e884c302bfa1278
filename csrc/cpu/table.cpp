#include "gemm.h"
#include "level.h"
#include "simd.h"

#define STRINGIFY_VALUE(x) #x
#define STRINGIFY(x) STRINGIFY_VALUE(x)

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

void ratio_mask(const RatioMask<float>& args);
void ratio_mask(const RatioMask<double>& args);
void overlap_add(const OverlapAdd<float>& args);
void overlap_add(const OverlapAdd<double>& args);
void stft(const Stft& args);
void masked_istft(const MaskedIstft& args);
int64_t multiply_adds(int64_t threads, int64_t rounds);
int64_t convolution_packed_size(const Convolution& conv);
int64_t convolution_scratch_size(const Convolution& conv, int64_t tiles_a_task, int64_t threads);
void convolution_pack(const Convolution& conv, const float* weight, bool precise, float* packed);
void convolution_pack(const Convolution& conv, const double* weight, float* packed);
void convolution_run(const ConvolutionRun& args);
int64_t input_convolution_scratch_size(int64_t channels, int64_t out_columns);
void input_convolution_run(const InputConvolution& args);
int64_t output_convolution_scratch_size(int64_t columns);
void output_convolution_run(const OutputConvolution& args);
int64_t dilated_head_scratch_size(int64_t columns);
void dilated_head_run(const DilatedHead& args);
int64_t dilated_head_gradient_scratch_size(const DilatedHeadGradient& args);
void dilated_head_gradient(const DilatedHeadGradient& args);
int64_t masked_l1_scratch_size(int64_t size);
double masked_l1(const MaskedL1& args);
void masked_l1_gradient(const MaskedL1& args, float factor, float* of_mask);
int64_t weight_gradient_scratch_size(const WeightGradient& args);
void weight_gradient(const WeightGradient& args);
int64_t plane_weight_gradient_scratch_size(const PlaneWeightGradient& args);
void plane_weight_gradient(const PlaneWeightGradient& args);
bool has_matrix_products();
int64_t bfloat16_convolution_scratch_size(const Bfloat16Convolution& args);
void bfloat16_convolution(const Bfloat16Convolution& args);
int64_t bfloat16_upconvolution_scratch_size(const Bfloat16Upconvolution& args);
void bfloat16_upconvolution(const Bfloat16Upconvolution& args);
int64_t bfloat16_weight_gradient_scratch_size(const Bfloat16WeightGradient& args);
void bfloat16_weight_gradient(const Bfloat16WeightGradient& args);
extern const NormKernels<float> kNorm;
extern const NormKernels<Bfloat16> kBfloat16Norm;

extern const Level kLevel;
const Level kLevel{
    .name = STRINGIFY(PYUNETSEP_SIMD),
    .ratio_mask_float = &ratio_mask,
    .ratio_mask_double = &ratio_mask,
    .overlap_add_float = &overlap_add,
    .overlap_add_double = &overlap_add,
    .stft = &stft,
    .masked_istft = &masked_istft,
    .multiply_adds = &multiply_adds,
    .gemm_rows = kMaxRows,
    .convolution_packed_size = &convolution_packed_size,
    .convolution_scratch_size = &convolution_scratch_size,
    .convolution_pack_float = &convolution_pack,
    .convolution_pack_double = &convolution_pack,
    .convolution_run = &convolution_run,
    .input_convolution_scratch_size = &input_convolution_scratch_size,
    .input_convolution_run = &input_convolution_run,
    .output_convolution_scratch_size = &output_convolution_scratch_size,
    .output_convolution_run = &output_convolution_run,
    .dilated_head_scratch_size = &dilated_head_scratch_size,
    .dilated_head_run = &dilated_head_run,
    .dilated_head_gradient_scratch_size = &dilated_head_gradient_scratch_size,
    .dilated_head_gradient = &dilated_head_gradient,
    .masked_l1_scratch_size = &masked_l1_scratch_size,
    .masked_l1 = &masked_l1,
    .masked_l1_gradient = &masked_l1_gradient,
    .weight_gradient_scratch_size = &weight_gradient_scratch_size,
    .weight_gradient = &weight_gradient,
    .plane_weight_gradient_scratch_size = &plane_weight_gradient_scratch_size,
    .plane_weight_gradient = &plane_weight_gradient,
    .has_matrix_products = &has_matrix_products,
    .bfloat16_convolution_scratch_size = &bfloat16_convolution_scratch_size,
    .bfloat16_convolution = &bfloat16_convolution,
    .bfloat16_upconvolution_scratch_size = &bfloat16_upconvolution_scratch_size,
    .bfloat16_upconvolution = &bfloat16_upconvolution,
    .bfloat16_weight_gradient_scratch_size = &bfloat16_weight_gradient_scratch_size,
    .bfloat16_weight_gradient = &bfloat16_weight_gradient,
    .norm = &kNorm,
    .bfloat16_norm = &kBfloat16Norm,
};

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
