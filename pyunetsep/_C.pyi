from typing import TypedDict

from torch import Tensor

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    cuda: bool
    cuda_toolkit: str
    cuda_architectures: str

def build_info() -> BuildInfo: ...
def ratio_mask(magnitudes: Tensor, mixture: Tensor | None, power: float, epsilon: float) -> Tensor: ...
def overlap_add(frames: Tensor, window: Tensor, hop_length: int) -> Tensor: ...
