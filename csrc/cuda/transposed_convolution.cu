#include "convolution.cuh"

namespace pyunetsep::cuda {

void launch_transposed(const ConvolutionLaunch& launch, Queue queue) {
  with_element(launch.element, [&]<typename T>(std::type_identity<T>) {
    using Wide = Kind<T, Grid::transposed, 2, 2, 4>;
    using Middle = Kind<T, Grid::transposed, 1, sizeof(T) == 2 ? 2 : 1, 4>;
    using Narrow = Kind<T, Grid::transposed, 1, 4, 2>;
    if constexpr (sizeof(T) == 2) {
      if (launch.shape == Wide::kShape) return launch_convolution<Wide>(launch, queue);
      if (launch.shape == Narrow::kShape) return launch_convolution<Narrow>(launch, queue);
    }
    launch_convolution<Middle>(launch, queue);
  });
}

}  // namespace pyunetsep::cuda
