#include "cuda_plan.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>

#include "checks.h"
#include "cuda/network.h"
#include "cuda_queue.h"

namespace pyunetsep {
namespace {

cuda::Element element_of(const std::string& precision) {
  if (precision == "float16") return cuda::Element::half;
  if (precision == "bfloat16") return cuda::Element::bfloat16;
  TORCH_CHECK_VALUE(precision == "float32", "precision: got '", precision, "', wants float16, bfloat16 or float32");
  return cuda::Element::single;
}

void append(std::vector<double>& to, const at::Tensor& values) {
  const at::Tensor doubles = values.to(at::kDouble).contiguous();
  const auto* const data = doubles.const_data_ptr<double>();
  to.insert(to.end(), data, data + doubles.numel());
}

// One layer of all networks. `by_input`: weights are [in, out, ...].
cuda::LayerParameters layer_of(const std::string& name, const std::vector<const Block*>& blocks, bool by_input) {
  const Block& first = *blocks.front();
  cuda::LayerParameters layer{};
  layer.out_channels = first.bias.size(0);
  layer.in_channels = first.weight.size(by_input ? 0 : 1);
  layer.slope = first.slope;
  for (const Block* block : blocks) {
    const auto& affine = block->before ? block->before : block->after;
    TORCH_CHECK_VALUE(block->weight.sizes() == first.weight.sizes() && block->slope == first.slope &&
                          block->before.has_value() == first.before.has_value() &&
                          block->after.has_value() == first.after.has_value(),
                      name, ": got networks of different shapes, wants one");
    append(layer.weight, by_input ? block->weight.transpose(0, 1) : block->weight);
    append(layer.bias, block->bias);
    if (affine) {
      append(layer.scale, affine->first);
      append(layer.shift, affine->second);
    }
  }
  return layer;
}

cuda::NetworkDescription description_of(const std::vector<UNetDescription>& nets, cuda::Element element) {
  TORCH_CHECK_VALUE(!nets.empty(), "networks: got none");
  const UNetDescription& first = nets.front();
  for (const UNetDescription& net : nets) {
    checked(net);
    TORCH_CHECK_VALUE(net.encoder.size() == first.encoder.size() && net.alignment == first.alignment &&
                          net.upsampling == first.upsampling && net.raw_skips == first.raw_skips &&
                          net.head.has_value() == first.head.has_value(),
                      "networks: got networks of different shapes, wants one");
  }
  cuda::NetworkDescription description{};
  description.element = element;
  description.networks = static_cast<int64_t>(nets.size());
  description.alignment = first.alignment;
  description.upsampling = first.upsampling;
  description.raw_skips = first.raw_skips;
  const auto gathered = [&](auto block_of) {
    std::vector<const Block*> blocks;
    for (const UNetDescription& net : nets) blocks.push_back(&block_of(net));
    return blocks;
  };
  for (size_t i = 0; i < first.encoder.size(); ++i) {
    const std::string name = "encoder " + std::to_string(i + 1);
    TORCH_CHECK_VALUE(!first.encoder[i].after && (!first.encoder[i].before || first.raw_skips), name,
                      ": got a norm of its own, wants it folded into the convolution where skips are not raw");
    description.encoder.push_back(
        layer_of(name, gathered([i](const UNetDescription& net) -> const Block& { return net.encoder[i]; }), false));
  }
  for (size_t j = 0; j < first.decoder.size(); ++j) {
    const std::string name = "decoder " + std::to_string(j + 1);
    TORCH_CHECK_VALUE(!first.decoder[j].before, name,
                      ": got a norm before the activation, wants it folded into the convolution");
    description.decoder.push_back(
        layer_of(name, gathered([j](const UNetDescription& net) -> const Block& { return net.decoder[j]; }),
                 first.upsampling == Upsampling::transposed));
  }
  if (first.head) {
    description.head =
        layer_of("head", gathered([](const UNetDescription& net) -> const Block& { return *net.head; }), false);
  }
  return description;
}

}  // namespace

struct CudaPlan::State {
  cuda::Network network;
  at::Device device;
  cuda::DeviceFacts facts;
  at::Tensor packed;  // on the device
};

CudaPlan::CudaPlan(const std::vector<UNetDescription>& descriptions, const std::string& precision, int64_t device) {
  cuda::Network network(description_of(descriptions, element_of(precision)));
  const at::Device place(at::kCUDA, static_cast<c10::DeviceIndex>(device));
  const cuda::DeviceFacts facts = cuda::device_facts(static_cast<int>(device));  // or throws where there is no CUDA
  std::vector<unsigned char> bytes = network.take_packed();
  const at::Tensor packed =
      at::from_blob(bytes.data(), {static_cast<int64_t>(bytes.size())}, at::TensorOptions(at::kByte)).to(place);
  state_ = std::make_unique<State>(State{std::move(network), place, facts, packed});
}

CudaPlan::~CudaPlan() = default;

at::Tensor CudaPlan::run(const at::Tensor& magnitude, int64_t first, int64_t networks, bool masked,
                         const std::optional<at::Tensor>& out) const {
  const cuda::Network& network = state_->network;
  TORCH_CHECK_TYPE(magnitude.scalar_type() == at::kFloat, "magnitude: got dtype ", magnitude.scalar_type(),
                   ", wants float32");
  TORCH_CHECK_VALUE(magnitude.device() == state_->device, "magnitude: got device ", magnitude.device(), ", wants ",
                    state_->device);
  TORCH_CHECK_VALUE(magnitude.dim() == 4 && magnitude.size(1) == network.channels() &&
                        magnitude.size(2) % network.stride() == 0 && magnitude.size(3) % network.stride() == 0,
                    "magnitude: got shape ", magnitude.sizes(), ", wants [batch, ", network.channels(),
                    ", rows, columns] with rows and columns multiples of ", network.stride());
  TORCH_CHECK_VALUE(0 <= first && 1 <= networks && networks <= network.networks() - first, "first, networks: got ",
                    first, ", ", networks, ", wants some of the ", network.networks());
  std::vector<int64_t> shape{networks};
  shape.insert(shape.end(), magnitude.sizes().begin(), magnitude.sizes().end());
  if (out) {
    check_alike("out", *out, "magnitude", magnitude);
    TORCH_CHECK_VALUE(out->sizes() == shape && out->stride(4) == 1, "out: got shape ", out->sizes(), " with strides ",
                      out->strides(), ", wants ", at::IntArrayRef(shape), " with contiguous columns");
    at::assert_no_internal_overlap(*out);
  }
  const c10::DeviceGuard guard(state_->device);
  const at::Tensor output = out ? *out : at::empty(shape, magnitude.options());
  if (output.numel() == 0) return output;
  const at::Tensor planes = magnitude.stride(3) == 1 ? magnitude : magnitude.contiguous();
  cuda::NetworkCall call{};
  call.first = first;
  call.networks = networks;
  call.batch = planes.size(0);
  call.rows = planes.size(2);
  call.columns = planes.size(3);
  const int64_t bytes = network.workspace_bytes(networks, call.batch, call.rows, call.columns, state_->facts);
  const at::Tensor workspace = at::empty({bytes}, state_->packed.options());
  call.packed = state_->packed.const_data_ptr();
  call.workspace = workspace.mutable_data_ptr();
  call.magnitude = planes.const_data_ptr<float>();
  call.batch_stride = planes.stride(0);
  call.channel_stride = planes.stride(1);
  call.row_stride = planes.stride(2);
  call.masked = masked;
  call.output = {output.mutable_data_ptr<float>(), output.stride(0), output.stride(1), output.stride(2),
                 output.stride(3)};
  network.run(call, state_->facts, current_queue(state_->device));
  outlives_current_stream(state_->packed);  // also if the plan goes before the work is done
  return output;
}

int64_t CudaPlan::packed_bytes() const { return state_->packed.numel(); }

}  // namespace pyunetsep
