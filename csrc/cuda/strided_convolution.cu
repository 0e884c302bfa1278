#include "convolution.cuh"

namespace pyunetsep::cuda {

void launch_strided(const ConvolutionLaunch& launch, Queue queue) {
  with_element(launch.element, [&]<typename T>(std::type_identity<T>) {
    using Wide = Kind<T, Grid::strided, 2, 4, 8>;
    using Middle = Kind<T, Grid::strided, 1, 4, 8>;
    using Narrow = Kind<T, Grid::strided, 1, sizeof(T) == 2 ? 4 : 2, 4>;
    if constexpr (sizeof(T) == 2) {
      if (launch.shape == Wide::kShape) return launch_convolution<Wide>(launch, queue);
      if (launch.shape == Middle::kShape) return launch_convolution<Middle>(launch, queue);
    }
    launch_convolution<Narrow>(launch, queue);
  });
}

}  // namespace pyunetsep::cuda
