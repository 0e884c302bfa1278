#include "layers.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pyunetsep {
namespace {

using cpu::kBlock;

const float* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

constexpr int64_t kKiB = 1024 / sizeof(float);  // floats
// What a task should keep of the second cache level, and packed weights that will not stay even in the third.
constexpr int64_t kTaskFloats = 768 * kKiB, kLargeWeights = 20 * 1024 * kKiB;
// Weights for one call are packed task by task where they are at least so large and serve at most so many tiles, whose
// transforms lie in memory all at once.
constexpr int64_t kLateWeights = 512 * kKiB, kLateTiles = 128;
constexpr int64_t kStreamedFloats = 2048 * kKiB;  // a map that the next layer would not find in the cache

// Points of one dimension of a tile, summed over the phases: each has size + 2, or one less if its filter has two taps.
int64_t points(const Phases& phases, int64_t size) {
  int64_t sum = 0;
  for (const auto& taps : phases.taps) sum += size + (taps[0] && taps[2] ? 2 : 1);
  return sum;
}

// Outputs of a tile that loses at most twice as much to rounding as a plain sum, of a phase of an upsampling
// convolution: the fewer products, the less that sum loses, while what the transforms lose stays. It costs a step of
// training 3 %.
int precise_tile(int64_t channels) { return channels <= 64 ? 4 : channels <= 128 ? 8 : kLargestTile; }

}  // namespace

// Beside its products, each weight costs about as much as kWeightTiles tiles: it is read from memory, once for all
// tiles. Small tiles have fewer weights, large ones fewer products an output, and at the edge of a small map whole
// tiles go over it.
std::pair<int, int> best_tile(const Phases& phases, const Size& grid, int largest) {
  constexpr int64_t kWeightTiles = 16;
  std::pair<int, int> best;
  double least = 0;
  for (const auto& [rows, columns] : {std::pair{4, 4}, {2, 4}, {4, 2}, {2, 2}, {1, 1}}) {
    if (rows * columns > largest) continue;
    const int64_t tiles = grid.batch * ((grid.rows + rows - 1) / rows) * ((grid.columns + columns - 1) / columns);
    const int64_t products = points(phases, rows) * points(phases, columns);
    const double work = static_cast<double>(products) * static_cast<double>(tiles + kWeightTiles);
    if (least == 0 || work < least) {
      least = work;
      best = {rows, columns};
    }
  }
  return best;
}

at::Tensor padded(const at::Tensor& values, int64_t channels) {
  at::Tensor result = at::zeros({blocks_of(channels) * kBlock}, at::kFloat);
  result.narrow(0, 0, channels).copy_(values);
  return result;
}

at::Tensor allocate_floats(int64_t count) {
  const at::Tensor memory = at::empty({count}, at::kFloat);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kLargePage = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(memory.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
  const auto end = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr<float>() + count) / kPage * kPage;
  if (begin + kLargePage <= end)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish, no matter if refused
#endif
  return memory;
}

int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

int64_t map_floats(const Size& size, int64_t channels) {
  return size.batch * blocks_of(channels) * size.rows * size.columns * kBlock;
}

at::Tensor empty_map(const Size& size, int64_t channels) {
  return allocate_floats(map_floats(size, channels))
      .view({size.batch, blocks_of(channels), size.rows, size.columns, kBlock});
}

Scratch::Scratch(int64_t floats)
    : threads(at::get_num_threads()), stride(whole_lines(floats)), memory(allocate_floats(threads * stride)) {}

int64_t halved(int64_t size, Alignment alignment) {
  return alignment == Alignment::pytorch ? (size + 1) / 2 : size / 2;
}

// ---- ActivationParameters

ActivationParameters::ActivationParameters(const Block& block, int64_t channels)
    : channels_(channels), bias_(padded(block.bias, channels)), slope_(static_cast<float>(block.slope)) {
  if (block.before) {
    before_scale_ = padded(block.before->first, channels);
    before_shift_ = padded(block.before->second, channels);
  }
  if (block.after) {
    after_scale_ = padded(block.after->first, channels);
    after_shift_ = padded(block.after->second, channels);
  }
}

cpu::Activation ActivationParameters::writing(float* raw, float* activated, const Size& out) const {
  return {.bias = data_or_null(bias_),
          .before_scale = data_or_null(before_scale_),
          .before_shift = data_or_null(before_shift_),
          .after_scale = data_or_null(after_scale_),
          .after_shift = data_or_null(after_shift_),
          .slope = slope_,
          .raw = raw,
          .activated = activated,
          .stream = map_floats(out, channels_) >= kStreamedFloats};
}

cpu::Reading ActivationParameters::reading() const {
  return {.scale = data_or_null(before_scale_), .shift = data_or_null(before_shift_), .slope = slope_};
}

// ---- ConvolutionLayer

ConvolutionLayer::ConvolutionLayer(const cpu::Level& level, const Block& block, std::vector<int64_t> in_channels,
                                   Alignment alignment, std::optional<Upsampling> upsampling, Size grid)
    : level_(level), activation_(block, block.bias.size(0)) {
  in_channels.resize(2);
  const Phases phases = phases_of(alignment, upsampling);
  const int64_t channels = in_channels[0] + in_channels[1];
  const auto [tile_rows, tile_columns] =
      best_tile(phases, grid, block.training && upsampling ? precise_tile(channels) : kLargestTile);
  conv_ = {.phases = phases,
           .upsampling = upsampling.has_value(),
           .weight_by_input = upsampling == Upsampling::transposed,
           .in_channels = {in_channels[0], in_channels[1]},
           .out_channels = block.bias.size(0),
           .tile_rows = tile_rows,
           .tile_columns = tile_columns,
           .blocks_a_task = 1,
           .packs_late = false};
  // All channels in one task transform the input once. But where the weights will not stay in the cache, or there are
  // too few tiles to share, the channels are shared: then each weight is read by one thread.
  const int64_t blocks = blocks_of(conv_.out_channels);
  conv_.blocks_a_task = blocks;
  if (level_.convolution_packed_size(conv_) > kLargeWeights) conv_.blocks_a_task = std::min<int64_t>(blocks, 8);
  if (few_tiles(grid)) {
    const int64_t threads = at::get_num_threads();
    conv_.blocks_a_task = std::max(std::min<int64_t>(blocks, 2), (blocks + threads - 1) / threads);
  }
  const at::Tensor weight = block.weight.contiguous();
  if (block.training && tiles(grid) <= kLateTiles && level_.convolution_packed_size(conv_) >= kLateWeights) {
    conv_.packs_late = true;
    conv_.blocks_a_task = std::min<int64_t>(blocks, 2);
    weight_ = weight;
    return;
  }
  packed_ = allocate_floats(level_.convolution_packed_size(conv_));
  float* packed = packed_.mutable_data_ptr<float>();
  if (weight.scalar_type() == at::kDouble) {
    level_.convolution_pack_double(conv_, weight.const_data_ptr<double>(), packed);
  } else {
    level_.convolution_pack_float(conv_, weight.const_data_ptr<float>(), !block.training, packed);
  }
}

int64_t ConvolutionLayer::tiles(const Size& grid) const {
  const int64_t rows = (grid.rows + conv_.tile_rows - 1) / conv_.tile_rows;
  return grid.batch * rows * ((grid.columns + conv_.tile_columns - 1) / conv_.tile_columns);
}

bool ConvolutionLayer::few_tiles(const Size& grid) const { return tiles(grid) <= 2 * level_.gemm_rows; }

int64_t ConvolutionLayer::tiles_a_task(const Size& grid, int64_t threads) const {
  const int64_t all = std::max<int64_t>(tiles(grid), 1);
  if (conv_.packs_late || few_tiles(grid)) return all;
  const int64_t rows = level_.gemm_rows;
  int64_t wanted = 2 * rows;  // each pass over large weights should serve many tiles
  if (packed_.numel() <= kLargeWeights) {
    const int64_t floats = level_.convolution_scratch_size(conv_, rows, threads) / rows;
    wanted = std::clamp<int64_t>(kTaskFloats / floats / rows, 1, 4) * rows;
  }
  const int64_t groups = (blocks_of(conv_.out_channels) + conv_.blocks_a_task - 1) / conv_.blocks_a_task;
  int64_t chunks = (all + wanted - 1) / wanted;
  while (groups * chunks % threads && chunks < all && chunks < 2 * threads) ++chunks;  // an equal share for each
  return (all + chunks - 1) / chunks;
}

int64_t ConvolutionLayer::scratch_floats(const Size& grid, int64_t threads) const {
  return level_.convolution_scratch_size(conv_, tiles_a_task(grid, threads), threads);
}

void ConvolutionLayer::run(const std::vector<const float*>& sources, const cpu::Reading& reading, const Size& in,
                           const Size& grid, float* raw, float* activated, float* scratch, int64_t scratch_stride,
                           int64_t threads) const {
  if (grid.batch * grid.rows * grid.columns == 0) return;
  const int64_t scale = conv_.upsampling ? 2 : 1;
  level_.convolution_run(
      {.conv = &conv_,
       .packed = data_or_null(packed_),
       .weight = data_or_null(weight_),
       .source = {sources[0], sources.size() > 1 ? sources[1] : nullptr},
       .batch = in.batch,
       .in_rows = in.rows,
       .in_columns = in.columns,
       .grid_rows = grid.rows,
       .grid_columns = grid.columns,
       .reading = reading,
       .activation = activation_.writing(raw, activated, {grid.batch, scale * grid.rows, scale * grid.columns}),
       .tiles_a_task = tiles_a_task(grid, threads),
       .scratch = scratch,
       .scratch_stride = scratch_stride,
       .threads = threads});
}

// ---- InputLayer

InputLayer::InputLayer(const cpu::Level& level, const Block& block, Alignment alignment)
    : level_(level),
      in_channels_(block.weight.size(1)),
      out_channels_(block.weight.size(0)),
      pad_(zeros_before(alignment)),
      activation_(block, block.weight.size(0)) {
  // [out, in, 5, 5] -> [out blocks, in, 5, 5, kBlock]
  packed_ = at::zeros({blocks_of(out_channels_) * kBlock, in_channels_, 5, 5}, at::kFloat);
  packed_.narrow(0, 0, out_channels_).copy_(block.weight);
  packed_ = packed_.unflatten(0, {-1, kBlock}).permute({0, 2, 3, 4, 1}).contiguous();
}

int64_t InputLayer::scratch_floats(const Size& out) const {
  return level_.input_convolution_scratch_size(in_channels_, out.columns);
}

void InputLayer::run(const at::Tensor& source, const Size& out, float* raw, float* activated, float* scratch,
                     int64_t scratch_stride, int64_t threads) const {
  level_.input_convolution_run({.source = source.const_data_ptr<float>(),
                                .batch_stride = source.stride(0),
                                .channel_stride = source.stride(1),
                                .row_stride = source.stride(2),
                                .batch = out.batch,
                                .channels = in_channels_,
                                .rows = source.size(2),
                                .columns = source.size(3),
                                .packed = packed_.const_data_ptr<float>(),
                                .out_channels = out_channels_,
                                .out_rows = out.rows,
                                .out_columns = out.columns,
                                .pad = pad_,
                                .activation = activation_.writing(raw, activated, out),
                                .scratch = scratch,
                                .scratch_stride = scratch_stride,
                                .threads = threads});
}

// ---- OutputLayer

cpu::OutputPlanes output_planes(cpu::Ending ending, const at::Tensor& output, const at::Tensor& magnitude) {
  return {.ending = ending,
          .output = output.mutable_data_ptr<float>(),
          .batch_stride = output.stride(0),
          .channel_stride = output.stride(1),
          .row_stride = output.stride(2),
          .magnitude = magnitude.const_data_ptr<float>(),
          .magnitude_batch_stride = magnitude.stride(0),
          .magnitude_channel_stride = magnitude.stride(1),
          .magnitude_row_stride = magnitude.stride(2)};
}

OutputLayer::OutputLayer(const cpu::Level& level, const Block& block, std::vector<int64_t> in_channels,
                         Alignment alignment, Upsampling upsampling)
    : level_(level),
      phases_(phases_of(alignment, upsampling)),
      in_channels_(std::move(in_channels)),
      out_channels_(block.bias.size(0)),
      bias_(padded(block.bias, out_channels_)) {
  if (block.after) {
    after_scale_ = padded(block.after->first, out_channels_);
    after_shift_ = padded(block.after->second, out_channels_);
  }
  int64_t in_blocks = 0;
  for (const int64_t channels : in_channels_) in_blocks += blocks_of(channels);
  packed_ = at::zeros({out_channels_, in_blocks, 4, 3, 3, kBlock}, at::kFloat);
  const at::Tensor weight = (upsampling == Upsampling::transposed ? block.weight.transpose(0, 1) : block.weight)
                                .to(at::kDouble)
                                .contiguous();  // [out, in, 5, 5]
  const auto from = weight.accessor<const double, 4>();
  auto to = packed_.accessor<float, 6>();
  for (int64_t out = 0; out < out_channels_; ++out) {
    int64_t in = 0, block_start = 0;
    for (const int64_t channels : in_channels_) {
      for (int64_t c = 0; c < channels; ++c, ++in) {
        for (int at = 0; at < 36; ++at) {
          const int phase = at / 9, row_tap = at / 3 % 3, column_tap = at % 3;
          double sum = 0;
          for (int k = 0; k < 25; ++k) {
            if (phases_.taps[phase / 2][row_tap] >> (k / 5) & phases_.taps[phase % 2][column_tap] >> (k % 5) & 1) {
              sum += from[out][in][k / 5][k % 5];
            }
          }
          to[out][block_start + c / kBlock][phase][row_tap][column_tap][c % kBlock] = static_cast<float>(sum);
        }
      }
      block_start += blocks_of(channels);
    }
  }
}

int64_t OutputLayer::scratch_floats(const Size& in) const { return level_.output_convolution_scratch_size(in.columns); }

void OutputLayer::run(const std::vector<const float*>& sources, const Size& in, const cpu::OutputPlanes& to,
                      float* scratch, int64_t scratch_stride, int64_t threads) const {
  const bool two = sources.size() > 1;
  level_.output_convolution_run({.phases = phases_,
                                 .source = {sources[0], two ? sources[1] : nullptr},
                                 .blocks = {blocks_of(in_channels_[0]), two ? blocks_of(in_channels_[1]) : 0},
                                 .batch = in.batch,
                                 .rows = in.rows,
                                 .columns = in.columns,
                                 .packed = packed_.const_data_ptr<float>(),
                                 .out_channels = out_channels_,
                                 .bias = bias_.const_data_ptr<float>(),
                                 .after_scale = data_or_null(after_scale_),
                                 .after_shift = data_or_null(after_shift_),
                                 .to = to,
                                 .scratch = scratch,
                                 .scratch_stride = scratch_stride,
                                 .threads = threads});
}

// ---- HeadLayer

HeadLayer::HeadLayer(const cpu::Level& level, const at::Tensor& weight, const at::Tensor& bias)
    : level_(level), weight_(weight.to(at::kFloat).contiguous()), bias_(bias.to(at::kFloat).contiguous()) {}

int64_t HeadLayer::source_floats(const Size& size) {
  return size.batch * size.rows * (size.columns + 2 * cpu::kHeadMargin);
}

cpu::OutputPlanes HeadLayer::source_planes(float* source, const Size& size) {
  const int64_t row_stride = size.columns + 2 * cpu::kHeadMargin;
  return {.ending = cpu::Ending::activated,
          .output = source + cpu::kHeadMargin,
          .batch_stride = size.rows * row_stride,
          .channel_stride = 0,
          .row_stride = row_stride,
          .magnitude = nullptr,
          .magnitude_batch_stride = 0,
          .magnitude_channel_stride = 0,
          .magnitude_row_stride = 0};
}

int64_t HeadLayer::scratch_floats(const Size& size) const { return level_.dilated_head_scratch_size(size.columns); }

void HeadLayer::run(float* source, const Size& size, const cpu::OutputPlanes& to, float* scratch,
                    int64_t scratch_stride, int64_t threads) const {
  const int64_t stride = size.columns + 2 * cpu::kHeadMargin;
  for (int64_t row = 0; row < size.batch * size.rows; ++row) {
    std::memset(source + row * stride, 0, cpu::kHeadMargin * sizeof(float));
    std::memset(source + (row + 1) * stride - cpu::kHeadMargin, 0, cpu::kHeadMargin * sizeof(float));
  }
  level_.dilated_head_run({.source = source,
                           .batch = size.batch,
                           .channels = 1,
                           .rows = size.rows,
                           .columns = size.columns,
                           .weight = weight_.const_data_ptr<float>(),
                           .bias = bias_.const_data_ptr<float>(),
                           .out_channels = out_channels(),
                           .to = to,
                           .scratch = scratch,
                           .scratch_stride = scratch_stride,
                           .threads = threads});
}

}  // namespace pyunetsep
