// The host's half of the convolutions: packs weights, and cuts the work into blocks.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "statistics.h"
#include "tiling.h"

namespace pyunetsep::cuda {
namespace {

constexpr int kMaxImages = 16;                  // in a tile
constexpr int kMaxSplits = 16, kMinChunks = 2;  // blocks that share a sum; and of each, or the gathering costs more
constexpr int kBlocksAMultiprocessor = 2, kSharedKept = 1024;  // at most; bytes that the device keeps for each

int log2_up(int64_t size) { return std::bit_width(static_cast<uint64_t>(size - 1)); }

// Those that the .cu files have kernels for. On tensor cores shared memory is the next limit, so a warp takes as many
// channels as its registers hold. Floats need twice the sums, so they have half the pixels.
Shape shape_of(const Convolution& conv) {
  const int64_t out = conv.out_channels;
  if (conv.planes) return {Grid::dense, 1, 4, 1};
  if (conv.element == Element::single) {
    if (conv.upsampling == Upsampling::transposed) return {Grid::transposed, 1, 1, 4};
    return {conv.upsampling ? Grid::dense : Grid::strided, 1, 2, 4};
  }
  if (!conv.upsampling) return {Grid::strided, out > 64 ? 2 : 1, 4, out > 32 ? 8 : 4};
  if (conv.upsampling == Upsampling::nearest) return {Grid::dense, 1, 4, 4};
  if (out <= 16) return {Grid::transposed, 1, 4, 2};
  return {Grid::transposed, out > 32 ? 2 : 1, 2, 4};
}

int chunk_channels(Element element) { return kPixelBytes / static_cast<int>(size_of(element)); }
int64_t source_chunks(const Convolution& conv, int source) {
  return padded_channels(conv.in_channels[source]) / chunk_channels(conv.element);
}
int64_t chunks_of(const Convolution& conv) { return source_chunks(conv, 0) + source_chunks(conv, 1); }

// Blocks of the sums' channels, which in a dense convolution are the phases' too.
int64_t channel_blocks(const Convolution& conv, const Shape& shape) {
  int64_t channels = conv.planes ? conv.out_channels : padded_channels(conv.out_channels);
  if (shape.grid == Grid::dense) channels *= 4;
  return divided_up(channels, shape.channels());
}

bool mirrored(const Convolution& conv, const Shape& shape) {
  return shape.grid == Grid::transposed && conv.alignment == Alignment::tensorflow;
}

// The factor of an input channel in a tap of a channel of sums.
class Factors {
 public:
  Factors(const Convolution& conv, const Shape& shape, const double* weight)
      : conv_(conv), dense_(shape.grid == Grid::dense), weight_(weight) {
    const Phases phases = phases_of(conv.alignment, conv.upsampling);
    const int mirror = mirrored(conv, shape);
    for (int tap = 0; tap < shape.taps(); ++tap) {
      const Place place = place_of(shape.grid, tap);
      if (shape.grid == Grid::strided) of_filter_[tap][0] = {tap};
      for (int phase = 0; phase < 4 && shape.grid != Grid::strided; ++phase) {
        if (!dense_ && phase != place.phase) continue;
        const int rows = phases.taps[phase / 2 ^ mirror][mirror ? 2 - place.row : place.row];
        const int columns = phases.taps[phase % 2 ^ mirror][mirror ? 2 - place.column : place.column];
        for (int k = 0; k < 25; ++k) {
          if (rows >> (k / 5) & columns >> (k % 5) & 1) of_filter_[tap][dense_ ? phase : 0].push_back(k);
        }
      }
    }
  }

  double operator()(int64_t channel, int64_t in, int tap) const {
    int64_t out = channel, phase = 0;
    if (dense_) {
      const int64_t of_a_phase = padded_channels(conv_.out_channels);
      out = conv_.planes ? channel / 4 : channel % of_a_phase;
      phase = conv_.planes ? channel % 4 : channel / of_a_phase;
    }
    if (out >= conv_.out_channels || phase > 3) return 0;
    const double* const filter = weight_ + (out * (conv_.in_channels[0] + conv_.in_channels[1]) + in) * 25;
    double sum = 0;
    for (const int k : of_filter(tap, static_cast<int>(phase))) sum += filter[k];
    return sum;
  }

  // The filter's taps that add up to one of the kernel's, and of a phase's.
  const std::vector<int>& of_filter(int tap, int phase) const { return of_filter_[tap][phase]; }

 private:
  const Convolution& conv_;
  bool dense_;
  const double* weight_;
  std::vector<int> of_filter_[25][4];
};

void store_element(Element element, double value, unsigned char* to) {
  const auto rounded = static_cast<float>(value);
  if (element == Element::single) {
    std::memcpy(to, &rounded, 4);
  } else {
    const uint16_t bits = element == Element::half ? half_of(rounded).bits : bfloat16_of(rounded).bits;
    std::memcpy(to, &bits, 2);
  }
}

// The patch that the tile's taps reach.
void choose_patch(const Shape& shape, ConvolutionArguments& a) {
  const int columns = 1 << a.tile_columns_log2, rows = 1 << a.tile_rows_log2;
  a.pitch = columns + 2;
  if (shape.grid == Grid::strided) {
    a.patch_rows = 2 * rows + 3;
    a.patch_columns = 2 * columns + 3;
    a.row_pixels = 2 * a.pitch;
  } else {
    a.patch_rows = rows + 2;
    a.patch_columns = columns + 2;
    a.row_pixels = a.pitch;
  }
  a.patch_bytes = a.images * a.patch_rows * a.row_pixels * kPixelBytes;
}

// Chooses the tile: as square as its patch should be, wide enough for neighbours in shared memory, and of several
// images where a map is small. Where two patches would not fit it is smaller than the shape's, and some of its lanes
// idle.
void choose_tile(const ConvolutionRun& run, const Shape& shape, int shared_bytes, ConvolutionArguments& a) {
  const int pixels = log2_up(shape.pixels());
  const int all_columns = log2_up(run.grid_columns), all_rows = log2_up(run.grid_rows);
  a.tile_columns_log2 = std::min(pixels >= 7 ? 4 : 3, all_columns);
  a.tile_rows_log2 = std::min(pixels - a.tile_columns_log2, all_rows);
  a.tile_columns_log2 = std::min(pixels - a.tile_rows_log2, all_columns);
  a.images = std::min(1 << (pixels - a.tile_rows_log2 - a.tile_columns_log2), kMaxImages);
  while (a.images / 2 >= run.batch) a.images /= 2;
  for (choose_patch(shape, a); 2 * a.patch_bytes + kStages * shape.stage_bytes() > shared_bytes;
       choose_patch(shape, a)) {
    if (a.images > 1) {
      a.images /= 2;
    } else if (a.tile_rows_log2 > 0) {
      --a.tile_rows_log2;
    } else {
      --a.tile_columns_log2;
    }
  }
  a.tiles_across = static_cast<int>(divided_up(run.grid_columns, 1 << a.tile_columns_log2));
  a.tiles_down = static_cast<int>(divided_up(run.grid_rows, 1 << a.tile_rows_log2));
}

ConvolutionLaunch launch_of(const ConvolutionRun& run, const DeviceFacts& facts) {
  const Convolution& conv = *run.conv;
  const Shape shape = shape_of(conv);
  ConvolutionArguments a{};
  choose_tile(run, shape, facts.shared_bytes, a);
  ConvolutionLaunch launch{};
  launch.shape = shape;
  launch.element = conv.element;
  launch.tiles = static_cast<unsigned>(int64_t{a.tiles_across} * a.tiles_down * divided_up(run.batch, a.images));
  launch.channel_blocks = static_cast<unsigned>(channel_blocks(conv, shape));
  launch.networks = static_cast<unsigned>(run.networks);
  const int64_t blocks = int64_t{launch.tiles} * launch.channel_blocks * launch.networks;
  const int64_t chunks = chunks_of(conv);
  const auto shared_bytes = [&](int splits) {
    return (divided_up(chunks, splits) > 1 ? 2 : 1) * a.patch_bytes + kStages * shape.stage_bytes();
  };
  a.splits = 1;
  if (blocks <= kMaxArrivals) {
    const int fit = facts.shared_bytes_in_all / (shared_bytes(1) + kSharedKept);
    const int64_t at_once = int64_t{std::clamp(fit, 1, kBlocksAMultiprocessor)} * facts.multiprocessors;
    a.splits = static_cast<int>(std::clamp<int64_t>(std::min(at_once / blocks, chunks / kMinChunks), 1, kMaxSplits));
  }
  a.patch_buffers = divided_up(chunks, a.splits) > 1 ? 2 : 1;
  launch.shared_bytes = shared_bytes(a.splits);

  for (int i = 0; i < 2; ++i) {
    a.source[i] = run.source[i];
    a.source_chunks[i] = static_cast<int>(source_chunks(conv, i));
    a.reading[i] = run.reading[i];
    a.reading_stride[i] = static_cast<int>(round_up(conv.in_channels[i], kParameterUnit));
  }
  a.batch = static_cast<int>(run.batch);
  a.in_rows = static_cast<int>(run.in_rows);
  a.in_columns = static_cast<int>(run.in_columns);
  a.grid_rows = static_cast<int>(run.grid_rows);
  a.grid_columns = static_cast<int>(run.grid_columns);
  a.packed = run.packed;
  a.packed_stride = packed_bytes(conv);
  a.zeros_before = shape.grid == Grid::strided ? zeros_before(conv.alignment) : 1;
  a.mirrored = mirrored(conv, shape);
  a.row_step = a.mirrored ? -a.pitch : a.pitch;
  a.column_step = a.mirrored ? -1 : 1;
  a.first_place = a.mirrored ? 2 * a.pitch + 2 : 0;
  a.bias = run.bias;
  a.scale = run.scale;
  a.shift = run.shift;
  a.slope = run.slope;
  a.largest = run.overflows ? std::numeric_limits<float>::infinity() : kLargestHalf;
  a.parameter_stride = static_cast<int>(round_up(conv.out_channels, kParameterUnit));
  a.target = run.target;
  a.out_channels = static_cast<int>(conv.planes ? conv.out_channels : padded_channels(conv.out_channels));
  a.output = run.output;
  if (run.statistics.mean) {
    const PartStatistics parts(run.statistics.parts, launch.tiles, a.out_channels);
    a.moments = parts.moments;
    a.counts = parts.counts;
    a.inner_slope = run.statistics.inner_slope;
  }
  a.partial_sums = run.partial_sums;
  a.arrivals = run.arrivals;
  launch.arguments = a;
  return launch;
}

}  // namespace

int64_t packed_bytes(const Convolution& conv) {
  const Shape shape = shape_of(conv);
  return channel_blocks(conv, shape) * chunks_of(conv) * shape.taps() * kPixelBytes * shape.channels();
}

void pack(const Convolution& conv, const double* weight, void* packed) {
  const Shape shape = shape_of(conv);
  const Factors factors(conv, shape, weight);
  auto* tap_start = static_cast<unsigned char*>(packed);
  std::memset(packed, 0, static_cast<size_t>(packed_bytes(conv)));
  for (int64_t block = 0; block < channel_blocks(conv, shape); ++block) {
    for (int64_t chunk = 0; chunk < chunks_of(conv); ++chunk) {
      const bool second = chunk >= source_chunks(conv, 0);
      const int64_t first_k = (chunk - (second ? source_chunks(conv, 0) : 0)) * chunk_channels(conv.element);
      for (int tap = 0; tap < shape.taps(); ++tap, tap_start += kPixelBytes * shape.channels()) {
        for (int byte = 0; byte < kPixelBytes * shape.channels(); byte += static_cast<int>(size_of(conv.element))) {
          const Slot slot = slot_at(shape, conv.element, byte);
          if (first_k + slot.k >= conv.in_channels[second]) continue;
          const int64_t in = first_k + slot.k + (second ? conv.in_channels[0] : 0);
          store_element(conv.element, factors(block * shape.channels() + slot.channel, in, tap), tap_start + byte);
        }
      }
    }
  }
}

void pack_on_device(const Convolution& conv, const float* weight, bool by_input, void* packed, Queue queue) {
  if (conv.upsampling == Upsampling::nearest) throw std::invalid_argument("a repetition's weights are sums");
  Packing packing{};
  packing.weight = weight;
  const int64_t in_channels = conv.in_channels[0] + conv.in_channels[1];
  packing.out_stride = by_input ? 25 : in_channels * 25;
  packing.in_stride = by_input ? conv.out_channels * 25 : 25;
  packing.shape = shape_of(conv);
  packing.element = conv.element;
  packing.planes = conv.planes;
  for (int i = 0; i < 2; ++i) {
    packing.in_channels[i] = static_cast<int>(conv.in_channels[i]);
    packing.source_chunks[i] = static_cast<int>(source_chunks(conv, i));
  }
  packing.out_channels = static_cast<int>(conv.out_channels);
  packing.blocks = static_cast<int>(channel_blocks(conv, packing.shape));
  packing.packed = packed;
  const Factors factors(conv, packing.shape, nullptr);
  for (int tap = 0; tap < packing.shape.taps(); ++tap) {
    for (int phase = 0; phase < 4; ++phase) {
      const std::vector<int>& of_filter = factors.of_filter(tap, phase);
      packing.of_filter[tap][phase] = static_cast<int8_t>(of_filter.empty() ? -1 : of_filter.front());
    }
  }
  launch_packing(packing, queue);
}

int64_t partial_bytes(const ConvolutionRun& run, const DeviceFacts& facts) {
  const ConvolutionLaunch launch = launch_of(run, facts);
  if (launch.arguments.splits == 1) return 0;
  return int64_t{launch.tiles} * launch.channel_blocks * launch.networks * launch.arguments.splits *
         launch.shape.sums() * static_cast<int64_t>(sizeof(float));
}

int64_t statistics_floats(const ConvolutionRun& run, const DeviceFacts& facts) {
  const ConvolutionLaunch launch = launch_of(run, facts);
  return PartStatistics::floats(launch.tiles, launch.arguments.out_channels);
}

void convolution(const ConvolutionRun& run, const DeviceFacts& facts, Queue queue) {
  const ConvolutionLaunch launch = launch_of(run, facts);
  const ConvolutionArguments& a = launch.arguments;
  if (a.moments && (launch.shape.grid == Grid::dense || run.networks != 1)) {
    throw std::invalid_argument("statistics are those of one network's strided or transposed convolution");
  }
  switch (launch.shape.grid) {
    case Grid::strided:
      launch_strided(launch, queue);
      break;
    case Grid::transposed:
      launch_transposed(launch, queue);
      break;
    case Grid::dense:
      launch_dense(launch, queue);
      break;
  }
  if (a.moments) join_statistics({run.statistics.parts, launch.tiles, a.out_channels}, run.statistics, queue);
}

int64_t packed_input_floats(int64_t channels, int64_t out_channels) {
  return padded_channels(out_channels) * channels * 25;
}

void pack_input(int64_t channels, int64_t out_channels, const double* weight, float* packed) {
  std::fill_n(packed, packed_input_floats(channels, out_channels), 0.0f);
  for (int64_t out = 0; out < out_channels; ++out) {
    for (int64_t in = 0; in < channels; ++in) {
      for (int64_t tap = 0; tap < 25; ++tap) {
        packed[((out / kChannelUnit * channels + in) * 25 + tap) * kChannelUnit + out % kChannelUnit] =
            static_cast<float>(weight[(out * channels + in) * 25 + tap]);
      }
    }
  }
}

}  // namespace pyunetsep::cuda
