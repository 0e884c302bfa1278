"""Are the custom kernels faster than plain PyTorch? Sizes of one block of spleeter-2stems.

    python -m pytest benchmarks/bench_ops.py

Each round takes another copy of the input, so that caches are cold; both rivals run equally many rounds.
"""

import pytest
import torch

from pyunetsep import ops
from pyunetsep.ops import reference

ROUNDS, COPIES = 20, 8
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def rounds(benchmark, function, inputs):
    calls = iter(range(10**9))

    def setup():
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return inputs[next(calls) % COPIES], {}

    def run(*arguments):
        function(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    benchmark.pedantic(run, setup=setup, rounds=ROUNDS, warmup_rounds=2)
    bytes_read = sum(tensor.numel() * tensor.element_size() for tensor in inputs[0] if isinstance(tensor, torch.Tensor))
    benchmark.extra_info["megabytes_read"] = bytes_read / 1e6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rival", ["kernel", "plain PyTorch"])
@pytest.mark.benchmark(group="ratio_mask")
def test_ratio_mask(benchmark, rival, device):
    inputs = [(torch.rand(2, 2, 1024, 512, device=device), None, 2.0, 1e-10) for _ in range(COPIES)]
    kernel = lambda magnitudes, mixture, power, epsilon: ops.ratio_mask(  # noqa: E731
        magnitudes, mixture, power=power, epsilon=epsilon
    )
    rounds(benchmark, kernel if rival == "kernel" else reference.ratio_mask, inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rival", ["kernel", "plain PyTorch"])
@pytest.mark.benchmark(group="overlap_add")
def test_overlap_add(benchmark, rival, device):
    window = torch.hann_window(4096, device=device)
    inputs = [(torch.randn(2, 384, 4096, device=device), window, 1024) for _ in range(COPIES)]
    rounds(benchmark, ops.overlap_add if rival == "kernel" else reference.overlap_add, inputs)


@pytest.mark.parametrize("n_fft", [1024, 4096])
@pytest.mark.parametrize("rival", ["kernel", "plain PyTorch"])
@pytest.mark.benchmark(group="stft")
def test_stft(benchmark, rival, n_fft):
    window, hop_length = torch.hann_window(n_fft), n_fft // 4
    waves = [torch.randn(2, 511 * hop_length + n_fft) for _ in range(COPIES)]
    inputs = [(wave, window, hop_length, 0, n_fft // 4) for wave in waves]
    rounds(benchmark, ops.stft if rival == "kernel" else reference.stft, inputs)


@pytest.mark.parametrize("n_fft", [1024, 4096])
@pytest.mark.parametrize("rival", ["kernel", "plain PyTorch"])
@pytest.mark.benchmark(group="masked_istft")
def test_masked_istft(benchmark, rival, n_fft):
    window, hop_length = torch.hann_window(n_fft), n_fft // 4
    inputs = []
    for _ in range(COPIES):
        spectrum = torch.randn(2, 384, n_fft // 2 + 1, dtype=torch.complex64)
        mask, gain = torch.rand(2, 2, 384, n_fft // 4), torch.rand(2, 2, 384)
        inputs.append((spectrum, mask, gain, window, hop_length, 0))
    rounds(benchmark, ops.masked_istft if rival == "kernel" else reference.masked_istft, inputs)
