#include "convolution.cuh"

namespace pyunetsep::cuda {

void launch_dense(const ConvolutionLaunch& launch, Queue queue) {
  with_element(launch.element, [&]<typename T>(std::type_identity<T>) {
    using Map = Kind<T, Grid::dense, 1, sizeof(T) == 2 ? 4 : 2, 4>;
    using ToPlanes = Kind<T, Grid::dense, 1, 4, 1>;
    if (launch.shape == ToPlanes::kShape) return launch_convolution<ToPlanes, true>(launch, queue);
    launch_convolution<Map>(launch, queue);
  });
}

}  // namespace pyunetsep::cuda
