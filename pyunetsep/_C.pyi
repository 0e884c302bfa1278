from typing import TypedDict

from torch import Tensor

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    cuda: bool
    cuda_toolkit: str
    cuda_architectures: str

def build_info() -> BuildInfo: ...
def simd_level() -> str: ...
def has_matrix_products() -> bool: ...
def simd_levels() -> list[str]: ...
def set_simd_level(name: str) -> None: ...
def multiply_adds(threads: int, rounds: int) -> int: ...
def ratio_mask(magnitudes: Tensor, mixture: Tensor | None, power: float, epsilon: float) -> Tensor: ...
def overlap_add(frames: Tensor, window: Tensor, hop_length: int) -> Tensor: ...
def stft(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> tuple[Tensor, Tensor]: ...
def magnitudes(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> Tensor: ...
def masked_istft(
    spectrum: Tensor, mask: Tensor, gain: Tensor, window: Tensor, hop_length: int, first_bin: int
) -> Tensor: ...
def mask_wave(
    wave: Tensor,
    mask: Tensor,
    gain: Tensor,
    window: Tensor,
    synthesis_window: Tensor,
    hop_length: int,
    first_bin: int,
) -> Tensor: ...

class Block:
    weight: Tensor
    bias: Tensor
    before: tuple[Tensor, Tensor] | None
    after: tuple[Tensor, Tensor] | None
    slope: float
    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        before: tuple[Tensor, Tensor] | None = None,
        after: tuple[Tensor, Tensor] | None = None,
        slope: float = 1.0,
    ) -> None: ...

class UNetDescription:
    encoder: list[Block]
    decoder: list[Block]
    head: Block | None
    raw_skips: bool
    def __init__(
        self,
        encoder: list[Block],
        decoder: list[Block],
        head: Block | None,
        alignment: str,
        upsampling: str,
        raw_skips: bool,
    ) -> None: ...

class UNetPlan:
    def __init__(self, description: UNetDescription, usual_size: tuple[int, int, int]) -> None: ...
    def run(self, magnitude: Tensor, masked: bool = False, out: Tensor | None = None) -> Tensor: ...
    def profile(self, magnitude: Tensor) -> list[tuple[str, float]]: ...
    @property
    def simd_level(self) -> str: ...
    @property
    def packed_bytes(self) -> int: ...

class CudaPlan:
    def __init__(self, descriptions: list[UNetDescription], precision: str, device: int) -> None: ...
    def run(
        self, magnitude: Tensor, first: int, networks: int, masked: bool = False, out: Tensor | None = None
    ) -> Tensor: ...
    @property
    def packed_bytes(self) -> int: ...
