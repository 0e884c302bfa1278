"""What only a GPU can show: whole networks next to PyTorch on it, streams, graphs, threads, memory, two CUDA runtimes.

`make gpu-test` runs this, and what the other tests have for CUDA.
"""

import copy
import dataclasses
import functools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from pyunetsep import Separator, ops
from pyunetsep.benchmark import random_checkpoint, random_network
from pyunetsep.config import PRESETS
from pyunetsep.cuda_plan import CudaPlan
from tests.judge import judge

pytestmark = pytest.mark.parametrize("device", ["cuda"], indirect=True)
EACH_PRESET = pytest.mark.parametrize("preset", PRESETS)
EACH_PRECISION = pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32], ids=str)
SMALL = dataclasses.replace(PRESETS["spleeter"].unet, channels=(16, 24, 40), dropout_blocks=1)
CYCLES = 5 * 10**8  # that a stream sleeps: some 0.3 s, in which whatever does not wait for it comes first


@functools.cache
def networks(preset, upsampling="transposed"):
    unet = dataclasses.replace(PRESETS[preset].unet, upsampling=upsampling)
    return {stem: random_network(unet, seed) for seed, stem in enumerate(PRESETS[preset].stems)}


@functools.cache
def plan(preset="jansson2017", precision=torch.float16, upsampling="transposed"):
    return CudaPlan(networks(preset, upsampling), device=torch.device("cuda"), precision=precision)


@functools.cache
def small_networks():
    return {stem: random_network(SMALL, seed) for seed, stem in enumerate("abc")}


def magnitudes(preset, batch, device):
    """[batch, channels, bins, frames], the bins of a frame being neighbours."""
    model = PRESETS[preset]
    return torch.rand(batch, model.unet.input_channels, model.patch_frames, model.spectrogram.bins, device=device).mT


@torch.no_grad()
def in_pytorch(networks, magnitude, masked=False):
    """The same in plain PyTorch, in the dtype of the magnitudes."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        masks = torch.stack([copy.deepcopy(network).to(magnitude)(magnitude) for network in networks.values()])
    return masks * magnitude if masked else masks


def check(made, networks, magnitude, precision, masked=False):
    """At most twice as wrong as PyTorch, where that computes in `precision`."""
    function = functools.partial(in_pytorch, networks, masked=masked)
    if precision == torch.float32:
        return judge(made, function, magnitude)
    truth = function(magnitude.double())
    own_error = (function(magnitude.to(precision)).double() - truth).abs().max()
    error = (made.double() - truth).abs().max()
    assert made.shape == truth.shape and error <= 2 * own_error, f"{error:.3g}, PyTorch's own {own_error:.3g}"


# ---- values


@EACH_PRECISION
@EACH_PRESET
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("batch", [1, 3])
def test_networks(device, preset, precision, upsampling, batch):
    magnitude = magnitudes(preset, batch, device)
    made = plan(preset, precision, upsampling).estimate(magnitude)
    check(made, networks(preset, upsampling), magnitude, precision)
    assert torch.equal(plan(preset, precision, upsampling).estimate(magnitude), made), "not the same bits twice"


@EACH_PRECISION
@EACH_PRESET
def test_masked(device, preset, precision):
    magnitude = 10 * magnitudes(preset, 2, device)
    check(plan(preset, precision).estimate(magnitude, masked=True), networks(preset), magnitude, precision, masked=True)


def test_the_last_of_many_patches_is_as_good_as_the_first(device):
    """Maps of more than 2^31 bytes."""
    magnitude = magnitudes("spleeter", 320, device)
    made = plan("spleeter").estimate(magnitude)
    for i in (0, 160, 319):
        check(made[:, i : i + 1], networks("spleeter"), magnitude[i : i + 1], torch.float16)


@EACH_PRECISION
def test_some_of_the_stems(device, precision):
    small = CudaPlan(small_networks(), device=device, precision=precision)
    magnitude = torch.rand(3, 2, 40, 64, device=device).mT
    whole = small.estimate(magnitude)
    check(whole, small_networks(), magnitude, precision)
    for stems in ("a", "b", "c", "ab", "bc", "ac", "ca", "cba"):
        made = small.estimate(magnitude, list(stems))
        for mask, stem in zip(made, stems, strict=True):
            # fewer networks at once are cut into blocks in another way
            torch.testing.assert_close(mask, whole["abc".index(stem)], rtol=0, atol=1e-2)


@EACH_PRECISION
@EACH_PRESET
def test_memory_is_read_and_written_in_place(device, preset, precision):
    magnitude = magnitudes(preset, 2, device)
    expected = plan(preset, precision).estimate(magnitude)
    batch, channels, bins, frames = magnitude.shape
    inside = (slice(1, None), slice(1, None), slice(2, frames + 2), slice(3, bins + 3))
    around = torch.full((batch + 1, channels + 1, frames + 3, bins + 5), torch.nan, device=device)
    around[inside] = magnitude.mT
    outside = torch.full((len(expected), *around.shape), 7.0, device=device)
    out = outside[(slice(None), *inside)].mT
    assert plan(preset, precision).estimate(around[inside].mT, out=out) is not None
    assert torch.equal(out, expected)
    out.fill_(7.0)
    assert (outside == 7.0).all()
    assert torch.equal(plan(preset, precision).estimate(magnitude.contiguous()), expected), "frames being neighbours"


@EACH_PRECISION
@EACH_PRESET
def test_memory_may_hold_anything_before(device, preset, precision):
    magnitude = magnitudes(preset, 1, device)
    expected = plan(preset, precision).estimate(magnitude)
    torch.cuda.empty_cache()
    poison = torch.full((2**29,), -1, dtype=torch.int16, device=device)  # NaN in all precisions
    del poison
    assert torch.equal(plan(preset, precision).estimate(magnitude), expected)


def test_nothing_in_nothing_out(device):
    assert plan().estimate(magnitudes("jansson2017", 1, device)[:0]).shape == (2, 0, 1, 512, 128)


# ---- streams, graphs, threads


@EACH_PRESET
def test_work_is_queued_on_the_current_stream(device, preset):
    """And on no other, or it would read what is not there yet."""
    source = magnitudes(preset, 2, device)
    expected = plan(preset).estimate(source)
    magnitude, out = torch.full_like(source, torch.nan), torch.full_like(expected, torch.nan)
    torch.cuda.synchronize(device)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES)
        magnitude.copy_(source)
        plan(preset).estimate(magnitude, out=out)
        copied = out.clone()
    assert not side.query(), "the call has waited for the GPU"
    side.synchronize()
    assert torch.equal(copied, expected)


def transforms(wave, window):
    magnitude = ops.magnitudes(wave, window, 256, 0, 512)
    mask = ops.ratio_mask(torch.stack((magnitude, magnitude.flip(-1))))
    spectrum, _ = ops.stft(wave, window, 256, 0, 512)
    return (
        ops.mask_wave(wave, mask, mask.mean(-1), window, window, 256, 0),
        ops.masked_istft(spectrum, mask, mask.mean(-1), window, 256, 0),
        ops.overlap_add(mask.repeat(1, 1, 1, 2), window, 256),
    )


def test_ops_are_queued_on_the_current_stream(device):
    source, window = torch.randn(2, 60_000, device=device), torch.hann_window(1024, device=device)
    expected = transforms(source, window)
    wave = torch.full_like(source, torch.nan)
    torch.cuda.synchronize(device)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES)
        wave.copy_(source)
        made = transforms(wave, window)
    side.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(made, expected, strict=True))


@EACH_PRECISION
@EACH_PRESET
@pytest.mark.parametrize("batch", [1, 5])
def test_a_graph_of_a_call_gives_the_same_bits(device, preset, precision, batch):
    """Only what is queued on the stream that torch captures gets into the graph: so the kernels' stream is torch's."""
    magnitude = magnitudes(preset, batch, device)
    plan(preset, precision).estimate(magnitude)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = plan(preset, precision).estimate(magnitude)
    for _ in range(3):
        magnitude.copy_(torch.rand_like(magnitude))
        graph.replay()
        assert torch.equal(made, plan(preset, precision).estimate(magnitude))


def test_a_graph_of_the_ops_gives_the_same_bits(device):
    wave, window = torch.randn(2, 60_000, device=device), torch.hann_window(1024, device=device)
    transforms(wave, window)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = transforms(wave, window)
    for _ in range(3):
        wave.copy_(torch.randn_like(wave))
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(made, transforms(wave, window), strict=True))


def test_threads_share_a_plan(device):
    inputs = [magnitudes("jansson2017", 1 + i % 3, device) for i in range(8)]
    expected, wrong = [plan().estimate(magnitude) for magnitude in inputs], []
    torch.cuda.synchronize(device)

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for _ in range(20):
                if not torch.equal(plan().estimate(inputs[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- devices, runtimes, memory, errors

FIRST = """
import torch
from pyunetsep.benchmark import random_network
from pyunetsep.cuda_plan import CudaPlan
from tests.test_gpu import SMALL
assert not torch.cuda.is_initialized()
network = random_network(SMALL)
plan = CudaPlan({"vocals": network}, device=torch.device("cuda"))
magnitude = torch.rand(2, 2, 64, 32)
mask = plan.estimate(magnitude.cuda())[0].cpu()
assert (mask - network(magnitude)).abs().max() < 1e-2
print("fine")
"""


def test_the_kernels_may_be_the_first_to_use_the_gpu(device):
    """They have a CUDA runtime of their own, next to torch's."""
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == "fine\n", done.stderr


def test_another_device_is_current(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    here, there = (torch.device("cuda", i) for i in range(2))
    magnitude = torch.rand(2, 2, 64, 32)
    expected = in_pytorch(small_networks(), magnitude)
    for home in (here, there):
        made_there = CudaPlan(small_networks(), device=home)
        for current in (here, there):
            with torch.cuda.device(current):
                made = made_there.estimate(magnitude.to(home))
                assert made.device == home and torch.cuda.current_device() == current.index
                torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="magnitude: got device cuda:0, wants cuda:1"):
        CudaPlan(small_networks(), device=there).estimate(magnitude.to(here))


def test_calls_leave_no_memory_behind(device):
    magnitude, out = magnitudes("jansson2017", 2, device), torch.empty(2, 2, 1, 128, 512, device=device).mT
    plan().estimate(magnitude, out=out)
    before = torch.cuda.memory_allocated(device)
    for _ in range(5):
        plan().estimate(magnitude, out=out)
    assert torch.cuda.memory_allocated(device) == before


def test_no_memory_is_said_so_and_does_no_harm(device):
    magnitude = magnitudes("spleeter", 64, device)
    plan("spleeter").estimate(magnitude[:1])
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved(device) + 2**28
    torch.cuda.set_per_process_memory_fraction(reserved / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            plan("spleeter").estimate(magnitude)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    check(plan("spleeter").estimate(magnitude[:1]), networks("spleeter"), magnitude[:1], torch.float16)


def test_errors(device):
    magnitude = magnitudes("jansson2017", 1, device)
    made = plan().estimate(magnitude)
    wrong = [
        (TypeError, "magnitude: got dtype .*Half", {"magnitude": magnitude.half()}),
        (ValueError, "magnitude: got device cpu, wants cuda:0", {"magnitude": magnitude.cpu()}),
        (ValueError, r"magnitude: got shape \[1, 512, 128\]", {"magnitude": magnitude[0]}),
        (ValueError, "magnitude: got shape", {"magnitude": magnitude[..., :100]}),
        (ValueError, "magnitude: got shape", {"magnitude": magnitude.expand(1, 2, 512, 128)}),
        (ValueError, r"stems: got \['drums'\]", {"stems": ["drums"]}),
        (ValueError, "stems", {"stems": []}),
        (ValueError, "out: got", {"out": made[:1]}),
        (ValueError, "out: got", {"out": made.contiguous()}),  # frames being neighbours
        (ValueError, "out", {"out": made.cpu()}),
        (TypeError, "out", {"out": made.double()}),
        (RuntimeError, "", {"out": made[:1].expand_as(made)}),
    ]
    for kind, message, arguments in wrong:
        with pytest.raises(kind, match=message):
            plan().estimate(**{"magnitude": magnitude, **arguments})
    with pytest.raises(RuntimeError):
        CudaPlan(small_networks(), device=torch.device("cuda", 99))
    with pytest.raises(ValueError, match="device must be a CUDA device"):
        CudaPlan(small_networks(), device=torch.device("cpu"))
    with pytest.raises(ValueError, match="precision must be one of float16, bfloat16, float32"):
        CudaPlan(small_networks(), device=device, precision=torch.float64)
    assert torch.equal(plan().estimate(magnitude), made), "an error stays behind"


# ---- whole songs, of the model's rate: that takes neither soundfile nor soxr


@EACH_PRESET
def test_songs_are_those_of_the_cpu(device, preset):
    """The second and third run of a segment's kind are graphs."""
    model, checkpoint = PRESETS[preset], random_checkpoint(PRESETS[preset])
    rate = model.spectrogram.sample_rate_hz
    generator = np.random.default_rng(0)
    song = generator.standard_normal((30 * rate, model.unet.input_channels), dtype=np.float32) * np.float32(0.1)
    cpu, separator = Separator(checkpoint, device="cpu"), Separator(checkpoint, device=device)
    for exact, tolerance in ((True, 1e-4), (False, 2e-2)):
        expected = cpu(song, rate, exact=exact)
        first = None
        for _ in range(3):
            stems = separator(song, rate, exact=exact)
            for stem, wave in stems.items():
                np.testing.assert_allclose(wave, expected[stem], rtol=0, atol=tolerance)
            first = first or stems
            assert all(np.array_equal(wave, first[stem]) for stem, wave in stems.items())
    assert np.abs(sum(stems.values()) - song).max() < 1e-6
    there = separator(torch.from_numpy(song.T.copy()).to(device), rate)
    assert all(np.array_equal(wave.cpu().numpy().T, stems[stem]) for stem, wave in there.items())
