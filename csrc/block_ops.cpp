#include "block_ops.h"

#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <string>
#include <vector>

#include "checks.h"
#include "layers.h"

namespace pyunetsep {
namespace {

using cpu::kBlock;

// [batch, channels, rows, columns] -> the kernels' [batch, blocks, rows, columns, kBlock].
at::Tensor to_blocks(const at::Tensor& x) {
  const int64_t missing = blocks_of(x.size(1)) * kBlock - x.size(1);
  const at::Tensor whole = missing ? at::constant_pad_nd(x, {0, 0, 0, 0, 0, missing}) : x;
  return whole.unflatten(1, {-1, kBlock}).permute({0, 1, 3, 4, 2}).contiguous();
}

at::Tensor from_blocks(const at::Tensor& blocks, int64_t channels) {
  return blocks.permute({0, 1, 4, 2, 3}).flatten(1, 2).narrow(1, 0, channels).contiguous();
}

void check_map(const char* name, const at::Tensor& x) {
  check_cpu_float32(name, x);
  TORCH_CHECK_VALUE(x.dim() == 4, name, ": got shape ", x.sizes(), ", wants [batch, channels, bins, frames]");
}

// Weight, and the parameters of each output channel.
void check_parameters(const at::Tensor& weight, std::vector<int64_t> wanted, int out_at,
                      const std::vector<std::pair<const char*, const at::Tensor*>>& channels) {
  check_cpu_float32("weight", weight);
  if (weight.dim() == 4) wanted[out_at] = weight.size(out_at);
  TORCH_CHECK_VALUE(weight.sizes() == wanted && wanted[out_at] >= 1, "weight: got shape ", weight.sizes(), ", wants [",
                    out_at == 0 ? "out, " : "", wanted[1 - out_at], out_at == 1 ? ", out, " : ", ", wanted[2], ", ",
                    wanted[3], "]");
  for (const auto& [name, values] : channels) {
    check_cpu_float32(name, *values);
    TORCH_CHECK_VALUE(values->dim() == 1 && values->size(0) == wanted[out_at], name, ": got shape ", values->sizes(),
                      ", wants [", wanted[out_at], "], the channels out");
  }
}

// The maps that a decoder block reads, in the order of its weights.
std::vector<at::Tensor> checked_sources(const at::Tensor& x, const std::optional<at::Tensor>& skip) {
  check_map("x", x);
  TORCH_CHECK_VALUE(x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, "x: got shape ", x.sizes(),
                    ", wants a channel, a bin and a frame at least");
  if (!skip) return {x};
  check_map("skip", *skip);
  TORCH_CHECK_VALUE(size_of(*skip).batch == x.size(0) && skip->size(2) == x.size(2) && skip->size(3) == x.size(3),
                    "skip: got shape ", skip->sizes(), ", wants that of x but for the channels, ", x.sizes());
  return {*skip, x};
}

struct Sources {
  explicit Sources(const std::vector<at::Tensor>& maps) {
    for (const at::Tensor& map : maps) {
      blocked.push_back(to_blocks(map));
      pointers.push_back(blocked.back().const_data_ptr<float>());
      channels.push_back(map.size(1));
    }
  }
  std::vector<at::Tensor> blocked;
  std::vector<const float*> pointers;
  std::vector<int64_t> channels;
};

int64_t check_decoder(const std::vector<at::Tensor>& maps, const at::Tensor& weight, Upsampling upsampling,
                      const std::vector<std::pair<const char*, const at::Tensor*>>& channels) {
  int64_t in = 0;
  for (const at::Tensor& map : maps) in += map.size(1);
  const int out_at = upsampling == Upsampling::transposed ? 1 : 0;
  check_parameters(weight, {in, in, 5, 5}, out_at, channels);
  return weight.size(out_at);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> encoder_block(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                                 const at::Tensor& scale, const at::Tensor& shift, double slope,
                                                 std::string_view alignment_name) {
  check_map("x", x);
  check_parameters(weight, {0, x.size(1), 5, 5}, 0, {{"bias", &bias}, {"scale", &scale}, {"shift", &shift}});
  TORCH_CHECK_VALUE(0 <= slope && slope <= 1, "slope: got ", slope, ", wants 0 to 1");
  const Alignment alignment = alignment_of(std::string(alignment_name));
  TORCH_CHECK_VALUE(x.size(1) >= 1 && x.size(2) >= 2 && x.size(3) >= 2, "x: got shape ", x.sizes(),
                    ", wants a channel, two bins and two frames at least");

  const Block block{weight, bias, Affine{scale, shift}, std::nullopt, slope};
  const Size in = size_of(x), out{in.batch, halved(in.rows, alignment), halved(in.columns, alignment)};
  const int64_t channels = weight.size(0);
  const at::Tensor raw = empty_map(out, channels), activated = empty_map(out, channels);
  float* to_raw = raw.mutable_data_ptr<float>();
  float* to_activated = activated.mutable_data_ptr<float>();
  if (in.batch > 0 && x.size(1) < kBlock) {  // as the first layer of a network
    const InputLayer layer(cpu::level(), block, alignment);
    const Scratch scratch(layer.scratch_floats(out));
    layer.run(x.contiguous(), out, to_raw, to_activated, scratch.data(), scratch.stride, scratch.threads);
  } else if (in.batch > 0) {
    const ConvolutionLayer layer(cpu::level(), block, {x.size(1)}, alignment, std::nullopt, out);
    const Scratch scratch(layer.scratch_floats(out, at::get_num_threads()));
    const at::Tensor blocks = to_blocks(x);
    layer.run({blocks.const_data_ptr<float>()}, {}, in, out, to_raw, to_activated, scratch.data(), scratch.stride,
              scratch.threads);
  }
  return {from_blocks(raw, channels), from_blocks(activated, channels)};
}

at::Tensor decoder_block(const at::Tensor& x, const std::optional<at::Tensor>& skip, const at::Tensor& weight,
                         const at::Tensor& bias, const at::Tensor& scale, const at::Tensor& shift, bool norm_first,
                         std::string_view alignment_name, std::string_view upsampling_name) {
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const Upsampling upsampling = upsampling_of(std::string(upsampling_name));
  const std::vector<at::Tensor> maps = checked_sources(x, skip);
  const int64_t channels =
      check_decoder(maps, weight, upsampling, {{"bias", &bias}, {"scale", &scale}, {"shift", &shift}});

  const Sources sources(maps);
  const Size in = size_of(x), out{in.batch, 2 * in.rows, 2 * in.columns};
  Block block{weight, bias, std::nullopt, Affine{scale, shift}, 0.0};
  if (norm_first) std::swap(block.before, block.after);
  if (x.numel() == 0) return at::empty({out.batch, channels, out.rows, out.columns}, at::kFloat);
  if (channels == 1 && !norm_first) {  // as before a head
    const OutputLayer layer(cpu::level(), block, sources.channels, alignment, upsampling);
    const Scratch scratch(layer.scratch_floats(in));
    const at::Tensor result = at::empty({out.batch, channels, out.rows, out.columns}, at::kFloat);
    layer.run(sources.pointers, in, output_planes(cpu::Ending::activated, result, result), scratch.data(),
              scratch.stride, scratch.threads);
    return result;
  }
  const ConvolutionLayer layer(cpu::level(), block, sources.channels, alignment, upsampling, in);
  const Scratch scratch(layer.scratch_floats(in, at::get_num_threads()));
  const at::Tensor result = empty_map(out, channels);
  layer.run(sources.pointers, {}, in, in, nullptr, result.mutable_data_ptr<float>(), scratch.data(), scratch.stride,
            scratch.threads);
  return from_blocks(result, channels);
}

at::Tensor mask_block(const at::Tensor& x, const std::optional<at::Tensor>& skip, const at::Tensor& weight,
                      const at::Tensor& bias, std::string_view alignment_name, std::string_view upsampling_name) {
  const Alignment alignment = alignment_of(std::string(alignment_name));
  const Upsampling upsampling = upsampling_of(std::string(upsampling_name));
  const std::vector<at::Tensor> maps = checked_sources(x, skip);
  const int64_t channels = check_decoder(maps, weight, upsampling, {{"bias", &bias}});

  const Size in = size_of(x);
  const at::Tensor result = at::empty({in.batch, channels, 2 * in.rows, 2 * in.columns}, at::kFloat);
  if (x.numel() == 0) return result;
  const Sources sources(maps);
  const OutputLayer layer(cpu::level(), {weight, bias, std::nullopt, std::nullopt, 1.0}, sources.channels, alignment,
                          upsampling);
  const Scratch scratch(layer.scratch_floats(in));
  layer.run(sources.pointers, in, output_planes(cpu::Ending::sigmoid, result, result), scratch.data(), scratch.stride,
            scratch.threads);
  return result;
}

at::Tensor dilated_head(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  check_map("x", x);
  TORCH_CHECK_VALUE(x.size(1) == 1, "x: got shape ", x.sizes(), ", wants [batch, 1, bins, frames]");
  check_parameters(weight, {0, 1, 4, 4}, 0, {{"bias", &bias}});

  const Size size = size_of(x);
  const at::Tensor result = at::empty({size.batch, weight.size(0), size.rows, size.columns}, at::kFloat);
  if (x.numel() == 0) return result;
  const at::Tensor source = at::constant_pad_nd(x, {cpu::kHeadMargin, cpu::kHeadMargin}).contiguous();
  const HeadLayer layer(cpu::level(), weight, bias);
  const Scratch scratch(layer.scratch_floats(size));
  layer.run(source.mutable_data_ptr<float>(), size, output_planes(cpu::Ending::sigmoid, result, result), scratch.data(),
            scratch.stride, scratch.threads);
  return result;
}

}  // namespace pyunetsep
