from typing import TypedDict

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    cuda: bool
    cuda_toolkit: str
    cuda_architectures: str

def build_info() -> BuildInfo: ...
