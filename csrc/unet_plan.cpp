#include "unet_plan.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <mutex>

#include "checks.h"
#include "layout.h"

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ADDRESS_SANITIZER
#endif
#endif

namespace pyunetsep {
namespace {

// Memory that calls borrow. All plans share it, for a song's networks run one after another. As many arenas as were
// ever in use at once stay for the next calls, and go with the last plan.
class Pool {
 public:
  static std::shared_ptr<Pool> shared() {
    static std::mutex mutex;
    static std::weak_ptr<Pool> current;
    const std::lock_guard lock(mutex);
    auto pool = current.lock();
    if (!pool) current = pool = std::make_shared<Pool>();
    return pool;
  }

  // So many floats at least; what no other call uses, or new.
  at::Tensor borrow(int64_t floats) {
    {
      const std::lock_guard lock(mutex_);
      while (!spare_.empty()) {
        const at::Tensor memory = std::move(spare_.back());
        spare_.pop_back();
        if (floats <= memory.numel() && memory.numel() / 2 <= floats) return memory;  // one of another size is freed
      }
    }
    return allocate_floats(floats);
  }

  void give_back(at::Tensor memory) {
    const std::lock_guard lock(mutex_);
    spare_.push_back(std::move(memory));
  }

 private:
  std::mutex mutex_;
  std::vector<at::Tensor> spare_;
};

// The memory of one call, cut up by a Layout.
class Arena {
 public:
  explicit Arena(std::shared_ptr<Pool> pool) : pool_(std::move(pool)) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (at::Tensor& memory : memory_) pool_->give_back(std::move(memory));
  }

  // Returns the map's number; its memory is there once all maps are known.
  size_t add(int64_t floats, int first_step, int last_step) {
    return layout_.add(whole_lines(floats), first_step, last_step);
  }

  void allocate() {
#ifdef UNDER_ADDRESS_SANITIZER  // each map by itself and new, so that a step past its end is noticed
    pool_ = std::make_shared<Pool>();
    for (size_t map = 0; map < layout_.maps(); ++map) {
      memory_.push_back(pool_->borrow(layout_.size(map)));
      data_.push_back(memory_.back().mutable_data_ptr<float>());
    }
#else
    memory_.push_back(pool_->borrow(layout_.place()));
    float* const start = memory_[0].mutable_data_ptr<float>();
    for (size_t map = 0; map < layout_.maps(); ++map) data_.push_back(start + layout_[map]);
#endif
  }

  float* operator[](size_t map) const { return data_[map]; }

 private:
  std::shared_ptr<Pool> pool_;
  Layout layout_;
  std::vector<at::Tensor> memory_;
  std::vector<float*> data_;  // of each map
};

// The maps and the scratch memory of one call.
struct Workspace {
  Size input;
  int64_t threads;
  Arena arena;
  std::vector<size_t> encoded;  // of the encoder: raw if the skips are, else activated
  std::vector<size_t> decoded;  // of the decoder, but for the last block
  size_t plane = 0;             // between the last block and the head
  size_t scratch = 0;
  int64_t scratch_stride = 0;
};

// Checks one block of a network, which reads `in` channels; returns how many it makes.
int64_t check_block(const std::string& name, const Block& block, int64_t in, bool by_input, int64_t taps) {
  const at::Tensor& weight = block.weight;
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kDouble, name, ": got weight of ",
                   weight.scalar_type(), ", wants float32 or float64");
  TORCH_CHECK_VALUE(weight.device().is_cpu(), name, ": got weight on ", weight.device(), ", wants cpu");
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
  TORCH_CHECK_VALUE(!block.before || !block.after, name,
                    ": got a scale before the activation and one after, wants one");
  TORCH_CHECK_VALUE(0 <= block.slope && block.slope <= 1, name, ": got slope ", block.slope, ", wants 0 to 1");
  return out;
}

void check_magnitude(const at::Tensor& magnitude, int64_t channels, int64_t stride) {
  check_cpu_float32("magnitude", magnitude);
  TORCH_CHECK_VALUE(magnitude.dim() == 4 && magnitude.size(1) == channels && magnitude.size(2) % stride == 0 &&
                        magnitude.size(3) % stride == 0,
                    "magnitude: got shape ", magnitude.sizes(), ", wants [batch, ", channels,
                    ", rows, columns] with rows and columns multiples of ", stride);
}

}  // namespace

// The layers trust the blocks to fit.
const UNetDescription& checked(const UNetDescription& net) {
  TORCH_CHECK_VALUE(!net.encoder.empty() && net.encoder.size() == net.decoder.size(), "encoder, decoder: got ",
                    net.encoder.size(), " and ", net.decoder.size(),
                    " blocks, wants as many of each, and one at least");
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
  const Block& last = net.decoder.back();
  TORCH_CHECK_VALUE(!last.before && last.slope == (net.head ? 0 : 1) && (net.head || !last.after), "decoder ",
                    net.decoder.size(),
                    ": got what follows another block, wants ReLU if there is a head, else nothing");
  if (net.head) {
    TORCH_CHECK_VALUE(width == 1, "decoder: got ", width, " channels out, wants 1, for the head");
    TORCH_CHECK_VALUE(!net.head->before && !net.head->after && net.head->slope == 1,
                      "head: got an activation of its own, wants none");
    width = check_block("head", *net.head, 1, false, 4);
  }
  TORCH_CHECK_VALUE(width == widths[0], "decoder: got ", width, " channels out, wants as many as go in, ", widths[0]);
  return net;
}

class UNetPlan::Network {
 public:
  Network(const UNetDescription& description, Size usual)
      : level_(cpu::level()),
        alignment_(description.alignment),
        raw_skips_(description.raw_skips),
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
  int64_t stride() const { return int64_t{1} << depth(); }  // rows and columns are multiples of this
  const cpu::Level& level() const { return level_; }

  int64_t packed_floats() const {
    int64_t floats = 0;
    for (const ConvolutionLayer& layer : encoder_) floats += layer.packed_floats();
    for (const ConvolutionLayer& layer : decoder_) floats += layer.packed_floats();
    return floats;
  }

  void run(const at::Tensor& magnitude, bool masked, const at::Tensor& output, std::vector<LayerTime>* times) const {
    if (output.numel() == 0) return;
    const at::Tensor planes = magnitude.stride(3) == 1 ? magnitude : magnitude.contiguous();
    Workspace space{{planes.size(0), planes.size(2), planes.size(3)}, at::get_num_threads(), Arena(pool_), {}, {}};
    prepare(space);
    const Call call{*this, space, times};
    for (int i = 0; i < depth(); ++i) call.encode(i, planes);
    for (int j = 0; j < depth() - 1; ++j) call.decode(j);
    call.finish(masked ? cpu::Ending::masked : cpu::Ending::sigmoid, planes, output);
  }

 private:
  Size half(const Size& size) const {
    return {size.batch, halved(size.rows, alignment_), halved(size.columns, alignment_)};
  }

  int depth() const { return static_cast<int>(encoder_.size()) + 1; }  // blocks of the encoder

  // Of encoder block i.
  int64_t width(int i) const { return i == 0 ? input_.out_channels() : encoder_[i - 1].out_channels(); }
  Size encoded_size(const Size& input, int i) const { return i < 0 ? input : half(encoded_size(input, i - 1)); }

  // Of what decoder block j reads.
  Size decoder_input(const Size& input, int j) const { return encoded_size(input, depth() - 1 - j); }

  // Runs layers on the maps of one call.
  struct Call {
    const Network& net;
    const Workspace& space;
    std::vector<LayerTime>* times;

    template <typename Layer>
    void timed(const std::string& name, int number, const Layer& layer) const {
      if (!times) return layer();
      const auto start = std::chrono::steady_clock::now();
      layer();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      times->push_back({name + std::to_string(number), seconds});
    }

    // With raw skips only the convolution is kept, and the next block reads it through norm and activation.
    void encode(int i, const at::Tensor& planes) const {
      const Size in = net.encoded_size(space.input, i - 1), out = net.half(in);
      float* map = space.arena[space.encoded[i]];
      float* raw = net.raw_skips_ ? map : nullptr;
      float* activated = net.raw_skips_ ? nullptr : map;
      float* scratch = space.arena[space.scratch];
      timed("encoder ", i + 1, [&] {
        if (i == 0) {
          net.input_.run(planes, out, raw, activated, scratch, space.scratch_stride, space.threads);
        } else {
          cpu::Reading reading = {};
          if (net.raw_skips_) reading = i == 1 ? net.input_.reading() : net.encoder_[i - 2].reading();
          net.encoder_[i - 1].run({space.arena[space.encoded[i - 1]]}, reading, in, out, raw, activated, scratch,
                                  space.scratch_stride, space.threads);
        }
      });
    }

    // What decoder block j reads: the skip and the block before, or the bottleneck alone.
    std::vector<const float*> sources(int j) const {
      std::vector<const float*> maps{space.arena[space.encoded[net.depth() - 1 - j]]};
      if (j > 0) maps.push_back(space.arena[space.decoded[j - 1]]);
      return maps;
    }

    void decode(int j) const {
      const Size in = net.decoder_input(space.input, j);
      timed("decoder ", j + 1, [&] {
        net.decoder_[j].run(sources(j), {}, in, in, nullptr, space.arena[space.decoded[j]], space.arena[space.scratch],
                            space.scratch_stride, space.threads);
      });
    }

    void finish(cpu::Ending ending, const at::Tensor& planes, const at::Tensor& output) const {
      const int j = net.depth() - 1;
      const cpu::OutputPlanes to = output_planes(ending, output, planes);
      float* scratch = space.arena[space.scratch];
      float* plane = net.head_ ? space.arena[space.plane] : nullptr;
      timed("decoder ", j + 1, [&] {
        net.output_->run(sources(j), net.decoder_input(space.input, j),
                         net.head_ ? HeadLayer::source_planes(plane, space.input) : to, scratch, space.scratch_stride,
                         space.threads);
      });
      if (!net.head_) return;
      timed("head ", 1, [&] { net.head_->run(plane, space.input, to, scratch, space.scratch_stride, space.threads); });
    }
  };

  // Lays out the maps of a call, and gets the memory.
  void prepare(Workspace& space) const {
    const Size& input = space.input;
    const int64_t threads = space.threads;
    // Step i encodes, step depth + j decodes, the last runs the head.
    const int last_step = 2 * depth();
    int64_t& stride = space.scratch_stride;
    for (int i = 0; i < depth(); ++i) {
      const Size out = encoded_size(input, i);
      const int64_t floats = map_floats(out, width(i));
      space.encoded.push_back(space.arena.add(floats, i, last_step - 1 - i));  // a skip is read last
      stride = std::max(stride, i == 0 ? input_.scratch_floats(out) : encoder_[i - 1].scratch_floats(out, threads));
    }
    for (int j = 0; j < depth() - 1; ++j) {
      const Size in = decoder_input(input, j);
      const int64_t floats = map_floats({in.batch, 2 * in.rows, 2 * in.columns}, decoder_[j].out_channels());
      space.decoded.push_back(space.arena.add(floats, depth() + j, depth() + j + 1));
      stride = std::max(stride, decoder_[j].scratch_floats(in, threads));
    }
    stride = std::max(stride, output_->scratch_floats(decoder_input(input, depth() - 1)));
    if (head_) {
      space.plane = space.arena.add(HeadLayer::source_floats(input), last_step - 1, last_step);
      stride = std::max(stride, head_->scratch_floats(input));
    }
    stride = whole_lines(stride);
    space.scratch = space.arena.add(threads * stride, 0, last_step);
    space.arena.allocate();
  }

  const cpu::Level& level_;
  Alignment alignment_;
  bool raw_skips_;
  InputLayer input_;
  std::vector<ConvolutionLayer> encoder_;  // from the second block on
  std::vector<ConvolutionLayer> decoder_;  // but for the last block
  std::optional<OutputLayer> output_;
  std::optional<HeadLayer> head_;
  std::shared_ptr<Pool> pool_ = Pool::shared();
};

UNetPlan::UNetPlan(const UNetDescription& description, Size usual)
    : network_(std::make_unique<Network>(checked(description), usual)) {}

UNetPlan::~UNetPlan() = default;

at::Tensor UNetPlan::run(const at::Tensor& magnitude, bool masked, const std::optional<at::Tensor>& out) const {
  check_magnitude(magnitude, network_->channels(), network_->stride());
  if (out) {
    check_cpu_float32("out", *out);
    TORCH_CHECK_VALUE(out->sizes() == magnitude.sizes() && out->stride(3) == 1, "out: got shape ", out->sizes(),
                      " with strides ", out->strides(), ", wants that of magnitude, ", magnitude.sizes(),
                      ", with contiguous columns");
    at::assert_no_internal_overlap(*out);
  }
  const at::Tensor output = out ? *out : at::empty(magnitude.sizes(), at::kFloat);
  network_->run(magnitude, masked, output, nullptr);
  return output;
}

std::vector<LayerTime> UNetPlan::profile(const at::Tensor& magnitude) const {
  check_magnitude(magnitude, network_->channels(), network_->stride());
  std::vector<LayerTime> times;
  network_->run(magnitude, false, at::empty(magnitude.sizes(), at::kFloat), &times);
  return times;
}

std::string UNetPlan::simd_level() const { return network_->level().name; }

int64_t UNetPlan::packed_bytes() const { return network_->packed_floats() * static_cast<int64_t>(sizeof(float)); }

}  // namespace pyunetsep
