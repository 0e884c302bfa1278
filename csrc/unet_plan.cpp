#include "unet_plan.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>

#include "checks.h"

namespace pyunetsep {
namespace {

// Where the maps of one call lie in its arena. A map lives from the step that writes it to the last that reads it, and
// maps that are never alive together may share memory.
class Arena {
 public:
  // Returns the map's place, in floats; places are given once all maps are known.
  size_t add(int64_t floats, int first_step, int last_step) {
    maps_.push_back({(floats + kLine - 1) / kLine * kLine, first_step, last_step, 0});
    return maps_.size() - 1;
  }

  // First fit, in order of appearance.
  void allocate() {
    int64_t size = 0;
    for (size_t i = 0; i < maps_.size(); ++i) {
      std::vector<const Map*> alive;
      for (size_t j = 0; j < i; ++j) {
        if (maps_[j].first <= maps_[i].last && maps_[i].first <= maps_[j].last) alive.push_back(&maps_[j]);
      }
      std::sort(alive.begin(), alive.end(), [](const Map* a, const Map* b) { return a->at < b->at; });
      for (const Map* map : alive) {
        if (maps_[i].at + maps_[i].floats <= map->at) break;
        maps_[i].at = std::max(maps_[i].at, map->at + map->floats);
      }
      size = std::max(size, maps_[i].at + maps_[i].floats);
    }
    memory_ = allocate_floats(size);
  }

  float* operator[](size_t map) const { return memory_.mutable_data_ptr<float>() + maps_[map].at; }

 private:
  static constexpr int64_t kLine = 16;  // floats of a cache line
  struct Map {
    int64_t floats;
    int first, last;
    int64_t at;
  };
  std::vector<Map> maps_;
  at::Tensor memory_;
};

// Maps of one size of input: the first blocks and the last work on a few images at a time, so that one layer's output
// is still in the cache when the next reads it; the blocks between, whose weights are large, on all at once.
struct Workspace {
  Size input;
  int64_t threads;
  int64_t group;  // images at a time in the outer blocks
  Arena arena;
  std::vector<size_t> raw, activated;  // of the encoder; where there is none, the other's
  std::vector<size_t> decoded;         // of the decoder, but for the last block
  size_t plane = 0;                    // between the last block and the head
  size_t scratch = 0;
  int64_t scratch_stride = 0;
};

// Checks one block of a network, which reads `in` channels; returns how many it makes.
int64_t check_block(const std::string& name, const Block& block, int64_t in, bool by_input, int64_t taps) {
  const at::Tensor& weight = block.weight;
  const int64_t out = block.bias.dim() == 1 ? block.bias.size(0) : -1;
  const std::vector<int64_t> wanted = by_input ? std::vector{in, out, taps, taps} : std::vector{out, in, taps, taps};
  TORCH_CHECK_VALUE(out >= 1 && weight.sizes() == wanted, name, ": got weight ", weight.sizes(), " and bias ",
                    block.bias.sizes(), ", wants weight [", by_input ? "in, out, " : "out, in, ", taps, ", ", taps,
                    "] of ", in, " channels in, and a bias of each out");
  for (const auto& affine : {block.before, block.after}) {
    if (!affine) continue;
    TORCH_CHECK_VALUE(affine->first.sizes() == block.bias.sizes() && affine->second.sizes() == block.bias.sizes(), name,
                      ": got scale ", affine->first.sizes(), " and shift ", affine->second.sizes(), ", wants ",
                      block.bias.sizes());
  }
  TORCH_CHECK_VALUE(0 <= block.slope && block.slope <= 1, name, ": got slope ", block.slope, ", wants 0 to 1");
  return out;
}

// The layers trust the blocks to fit.
const UNetDescription& checked(const UNetDescription& net) {
  TORCH_CHECK_VALUE(!net.encoder.empty() && net.encoder.size() == net.decoder.size(), "encoder, decoder: got ",
                    net.encoder.size(), " and ", net.decoder.size(), " blocks, wants as many of each, and one at least");
  std::vector<int64_t> widths{net.encoder[0].weight.dim() == 4 ? net.encoder[0].weight.size(1) : 1};
  for (size_t i = 0; i < net.encoder.size(); ++i) {
    widths.push_back(check_block("encoder " + std::to_string(i + 1), net.encoder[i], widths.back(), false, 5));
  }
  const bool by_input = net.upsampling == Upsampling::transposed;
  int64_t width = widths.back();
  for (size_t j = 0; j < net.decoder.size(); ++j) {
    widths.pop_back();
    width = check_block("decoder " + std::to_string(j + 1), net.decoder[j], width, by_input, 5);
    if (j + 1 < net.decoder.size()) width += widths.back();
  }
  if (net.head) width = check_block("head", *net.head, 1, false, 4);
  TORCH_CHECK_VALUE(width == widths[0], "decoder: got ", width, " channels out, wants as many as go in, ", widths[0]);
  return net;
}

void check_magnitude(const at::Tensor& magnitude, int64_t channels, int64_t stride) {
  check_cpu_float32("magnitude", magnitude);
  TORCH_CHECK_VALUE(magnitude.dim() == 4 && magnitude.size(1) == channels && magnitude.size(2) % stride == 0 &&
                        magnitude.size(3) % stride == 0,
                    "magnitude: got shape ", magnitude.sizes(), ", wants [batch, ", channels,
                    ", rows, columns] with rows and columns multiples of ", stride);
}

}  // namespace

class UNetPlan::Network {
 public:
  Network(const UNetDescription& description, Size usual)
      : level_(cpu::level()), alignment_(description.alignment), raw_skips_(description.raw_skips),
        input_(level_, description.encoder.at(0), description.alignment) {
    const size_t depth = description.encoder.size();
    Size size = half(usual);
    std::vector<int64_t> widths{input_.out_channels()};
    for (size_t i = 1; i < depth; ++i) {
      size = half(size);
      encoder_.emplace_back(level_, description.encoder[i], std::vector{widths.back()}, alignment_, std::nullopt, size);
      widths.push_back(encoder_.back().out_channels());
    }
    std::vector<int64_t> sources{widths.back()};
    for (size_t j = 0; j + 1 < depth; ++j) {
      decoder_.emplace_back(level_, description.decoder[j], sources, alignment_, description.upsampling, size);
      size = {size.batch, 2 * size.rows, 2 * size.columns};
      sources = {widths[depth - 2 - j], decoder_.back().out_channels()};
    }
    output_.emplace(level_, description.decoder.back(), sources, alignment_, description.upsampling);
    if (description.head) head_.emplace(level_, description.head->weight, description.head->bias);
  }

  int64_t channels() const { return input_.in_channels(); }
  int64_t stride() const { return int64_t{2} << encoder_.size(); }
  const cpu::Level& level() const { return level_; }

  int64_t packed_floats() const {
    int64_t floats = 0;
    for (const ConvolutionLayer& layer : encoder_) floats += layer.packed_floats();
    for (const ConvolutionLayer& layer : decoder_) floats += layer.packed_floats();
    return floats;
  }

  at::Tensor run(const at::Tensor& magnitude, bool masked, std::vector<LayerTime>* times) const {
    const at::Tensor planes = magnitude.stride(3) == 1 ? magnitude : magnitude.contiguous();
    const at::Tensor output = at::empty(magnitude.sizes(), at::kFloat);
    if (output.numel() == 0) return output;
    const auto space = borrow({planes.size(0), planes.size(2), planes.size(3)});
    Call call{*this, *space, times};
    const int outer = outer_blocks(*space), depth = static_cast<int>(encoder_.size()) + 1;
    const int64_t batch = space->input.batch;
    for (int64_t first = 0; first < batch; first += space->group) {
      const int64_t count = std::min(space->group, batch - first);
      for (int i = 0; i < outer; ++i) call.encode(i, planes, first, count);
    }
    for (int i = outer; i < depth; ++i) call.encode(i, planes, 0, batch);
    for (int j = 0; j < depth - outer; ++j) call.decode(j, 0, batch);
    for (int64_t first = 0; first < batch; first += space->group) {
      const int64_t count = std::min(space->group, batch - first);
      for (int j = depth - outer; j < depth - 1; ++j) call.decode(j, first, count);
      call.finish(masked ? cpu::Ending::masked : cpu::Ending::sigmoid, planes, output, first, count);
    }
    give_back(space);
    return output;
  }

 private:
  Size half(const Size& size) const { return {size.batch, halved(size.rows, alignment_), halved(size.columns, alignment_)}; }

  // Of block i's output.
  Size encoded_size(const Workspace& space, int i) const {
    Size size = half(space.input);
    while (i-- > 0) size = half(size);
    return size;
  }

  // How many blocks at either end work on a group of images at a time; 1 at least, for the input and output layers.
  int outer_blocks(const Workspace& space) const {
    const int depth = static_cast<int>(encoder_.size()) + 1;
    int outer = 1;
    while (outer < depth - 1 && encoder_[outer - 1].many_tiles(encoded_size(space, outer))) ++outer;
    return outer;
  }

  // Runs layers on the maps of one call.
  struct Call {
    const Network& net;
    const Workspace& space;
    std::vector<LayerTime>* times;

    const float* map(size_t at, const Size& size, int64_t channels, int64_t first) const {
      return space.arena[at] + first * map_floats({1, size.rows, size.columns}, channels);
    }
    float* to(size_t at, const Size& size, int64_t channels, int64_t first) const {
      return const_cast<float*>(map(at, size, channels, first));
    }
    int64_t width(int i) const { return i == 0 ? net.input_.out_channels() : net.encoder_[i - 1].out_channels(); }

    void timed(const std::string& name, const std::function<void()>& layer) const {
      if (!times) return layer();
      const auto start = std::chrono::steady_clock::now();
      layer();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      const auto known = std::find_if(times->begin(), times->end(), [&](const LayerTime& t) { return t.name == name; });
      known == times->end() ? times->push_back({name, seconds}) : void(known->seconds += seconds);
    }

    void encode(int i, const at::Tensor& planes, int64_t first, int64_t count) const {
      const Size whole = net.encoded_size(space, i), size{count, whole.rows, whole.columns};
      const bool last = i == static_cast<int>(net.encoder_.size());
      float* raw = net.raw_skips_ ? to(space.raw[i], size, width(i), first) : nullptr;
      float* activated = net.raw_skips_ && last ? nullptr : to(space.activated[i], size, width(i), first);
      timed("encoder " + std::to_string(i + 1), [&] {
        float* scratch = space.arena[space.scratch];
        if (i == 0) {
          net.input_.run(planes.narrow(0, first, count), size, raw, activated, scratch, space.scratch_stride,
                         space.threads);
        } else {
          const Size from = net.encoded_size(space, i - 1), in{count, from.rows, from.columns};
          net.encoder_[i - 1].run({map(space.activated[i - 1], in, width(i - 1), first)}, in, size, raw, activated,
                                  scratch, space.scratch_stride, space.threads);
        }
      });
    }

    // What decoder block j reads: the skip and the block before, or the bottleneck.
    std::vector<const float*> sources(int j, const Size& in, int64_t first) const {
      const int depth = static_cast<int>(net.encoder_.size()) + 1, i = depth - 1 - j;
      const float* skip = map((net.raw_skips_ ? space.raw : space.activated)[i], in, width(i), first);
      if (j == 0) return {skip};
      return {skip, map(space.decoded[j - 1], in, net.decoder_[j - 1].out_channels(), first)};
    }

    Size decoder_input(int j, int64_t count) const {
      const Size whole = net.encoded_size(space, static_cast<int>(net.encoder_.size()) - j);
      return {count, whole.rows, whole.columns};
    }

    void decode(int j, int64_t first, int64_t count) const {
      const Size in = decoder_input(j, count), out{count, 2 * in.rows, 2 * in.columns};
      float* activated = to(space.decoded[j], out, net.decoder_[j].out_channels(), first);
      timed("decoder " + std::to_string(j + 1), [&] {
        net.decoder_[j].run(sources(j, in, first), in, in, nullptr, activated, space.arena[space.scratch],
                            space.scratch_stride, space.threads);
      });
    }

    void finish(cpu::Ending ending, const at::Tensor& planes, const at::Tensor& output, int64_t first,
                int64_t count) const {
      const int j = static_cast<int>(net.encoder_.size());
      const Size in = decoder_input(j, count), out{count, 2 * in.rows, 2 * in.columns};
      const cpu::OutputPlanes to = output_planes(ending, output.narrow(0, first, count), planes.narrow(0, first, count));
      float* scratch = space.arena[space.scratch];
      float* plane = net.head_ ? space.arena[space.plane] : nullptr;
      timed("decoder " + std::to_string(j + 1), [&] {
        net.output_->run(sources(j, in, first), in, net.head_ ? HeadLayer::source_planes(plane, out) : to, scratch,
                         space.scratch_stride, space.threads);
      });
      if (!net.head_) return;
      timed("head", [&] { net.head_->run(plane, out, to, scratch, space.scratch_stride, space.threads); });
    }
  };

  std::shared_ptr<Workspace> make_workspace(const Size& input) const {
    constexpr int64_t kGroupBytes = 2 << 20;  // of the first block's output
    const auto space = std::make_shared<Workspace>();
    space->input = input;
    space->threads = at::get_num_threads();
    const int depth = static_cast<int>(encoder_.size()) + 1, last_step = 2 * depth;
    const Size first = encoded_size(*space, 0);
    const int64_t image = map_floats({1, first.rows, first.columns}, input_.out_channels()) * sizeof(float);
    space->group = std::clamp<int64_t>(kGroupBytes / image, 1, input.batch);

    // Step i encodes, step depth + j decodes, the last runs the head. The steps of the outer blocks repeat, group by
    // group, so their maps live through all of these.
    const int outer = outer_blocks(*space), inner_start = outer, inner_end = 2 * depth - outer;
    const auto add = [&](int64_t floats, int from, int to) {
      if (from < inner_start) from = 0;
      if (to >= inner_end) to = last_step;
      if (from >= inner_end) from = inner_end;
      if (to < inner_start) to = inner_start - 1;
      return space->arena.add(floats, from, to);
    };
    for (int i = 0; i < depth; ++i) {
      const int64_t floats = map_floats(encoded_size(*space, i), i == 0 ? input_.out_channels() : encoder_[i - 1].out_channels());
      const int skip_read = 2 * depth - 1 - i;
      const bool bottleneck = i == depth - 1;
      space->raw.push_back(raw_skips_ ? add(floats, i, skip_read) : 0);
      space->activated.push_back(raw_skips_ && bottleneck ? 0 : add(floats, i, raw_skips_ ? i + 1 : skip_read));
    }
    for (int j = 0; j + 1 < depth; ++j) {
      const Size out = encoded_size(*space, depth - 2 - j);
      space->decoded.push_back(add(map_floats(out, decoder_[j].out_channels()), depth + j, depth + j + 1));
    }
    if (head_) {
      space->plane = add(HeadLayer::source_floats({space->group, input.rows, input.columns}), last_step - 1, last_step);
    }

    int64_t& stride = space->scratch_stride;
    for (const int64_t count : {input.batch, space->group, (input.batch - 1) % space->group + 1}) {
      const auto of = [&](const Size& size) { return Size{count, size.rows, size.columns}; };
      stride = std::max({stride, input_.scratch_floats(of(first)), output_->scratch_floats(of(first))});
      if (head_) stride = std::max(stride, head_->scratch_floats(of(input)));
      for (int i = 1; i < depth; ++i) {
        stride = std::max(stride, encoder_[i - 1].scratch_floats(of(encoded_size(*space, i)), space->threads));
      }
      for (int j = 0; j + 1 < depth; ++j) {
        stride = std::max(stride, decoder_[j].scratch_floats(of(encoded_size(*space, depth - 1 - j)), space->threads));
      }
    }
    stride = (stride + 15) / 16 * 16;
    space->scratch = space->arena.add(space->threads * stride, 0, last_step);
    space->arena.allocate();
    return space;
  }

  // A workspace that no other call uses. Those of the last size are kept.
  std::shared_ptr<Workspace> borrow(const Size& input) const {
    const int64_t threads = at::get_num_threads();
    {
      const std::lock_guard lock(mutex_);
      while (!spare_.empty()) {
        const auto space = spare_.back();
        spare_.pop_back();
        const Size& size = space->input;
        if (size.batch == input.batch && size.rows == input.rows && size.columns == input.columns &&
            space->threads == threads) {
          return space;
        }
      }
    }
    return make_workspace(input);
  }

  void give_back(const std::shared_ptr<Workspace>& space) const {
    const std::lock_guard lock(mutex_);
    spare_.push_back(space);
  }

  const cpu::Level& level_;
  Alignment alignment_;
  bool raw_skips_;
  InputLayer input_;
  std::vector<ConvolutionLayer> encoder_;  // from the second block on
  std::vector<ConvolutionLayer> decoder_;  // but for the last block
  std::optional<OutputLayer> output_;
  std::optional<HeadLayer> head_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<Workspace>> spare_;
};

UNetPlan::UNetPlan(const UNetDescription& description, Size usual)
    : network_(std::make_unique<Network>(checked(description), usual)) {}

UNetPlan::~UNetPlan() = default;

at::Tensor UNetPlan::run(const at::Tensor& magnitude, bool masked) const {
  check_magnitude(magnitude, network_->channels(), network_->stride());
  return network_->run(magnitude, masked, nullptr);
}

std::vector<LayerTime> UNetPlan::profile(const at::Tensor& magnitude) const {
  check_magnitude(magnitude, network_->channels(), network_->stride());
  std::vector<LayerTime> times;
  network_->run(magnitude, false, &times);
  return times;
}

std::string UNetPlan::simd_level() const { return network_->level().name; }

int64_t UNetPlan::packed_bytes() const { return network_->packed_floats() * static_cast<int64_t>(sizeof(float)); }

}  // namespace pyunetsep
