"""What only a GPU can show: whole networks next to PyTorch on it, streams, graphs, threads, memory, two CUDA runtimes.

`make gpu-test` runs this, and what the other tests have for CUDA.
"""

import contextlib
import copy
import dataclasses
import functools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from pyunetsep import InvalidAudioError, Separator, SeparatorConfig, ops
from pyunetsep.benchmark import random_checkpoint, random_network, use_kernels
from pyunetsep.config import PRESETS
from pyunetsep.cuda_graph import Graph
from pyunetsep.cuda_plan import CudaPlan
from pyunetsep.dropout import dropping_layers
from pyunetsep.training.config import merged
from pyunetsep.training.examples import Examples
from pyunetsep.training.trainer import Trainer
from pyunetsep.unet import UNet
from tests.judge import judge
from tests.learning import check_learning, learnt
from tests.test_training_examples import recording
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, checkpoint, noise

pytestmark = pytest.mark.parametrize("device", ["cuda"], indirect=True)
EACH_PRESET = pytest.mark.parametrize("preset", PRESETS)
EACH_PRECISION = pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32], ids=str)
EACH_RATE = pytest.mark.parametrize("resampled", [False, True], ids=["of the model's rate", "of another rate"])
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


def test_sums_that_blocks_share_have_the_same_bits_every_time(device):
    """Such blocks meet on a real GPU alone, and in ever other orders where another call is at work beside them."""
    inputs = [magnitudes("jansson2017", 1, device) for _ in range(2)]
    expected = [plan().estimate(magnitude) for magnitude in inputs]
    torch.cuda.synchronize(device)
    streams, made = [torch.cuda.Stream(device) for _ in inputs], []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CYCLES // 10)  # or the first calls would end before others are queued
    for i in range(200):
        with torch.cuda.stream(streams[i % 2]):
            made.append(plan().estimate(inputs[i % 2]))
    torch.cuda.synchronize(device)
    assert not [i for i, masks in enumerate(made) if not torch.equal(masks, expected[i % 2])]


# ---- training


def small_trainer(device, precision="float32", **values):
    config = merged({"channels": [16, 32, 16], "batch": 4, "steps": 20, "precision": precision, **values})
    return Trainer(config, Examples([recording("one"), recording("two", seed=1)], config, device), device=device)


@EACH_PRECISION
@EACH_PRESET
def test_what_a_network_learns(device, preset, precision):
    torch.manual_seed(0)
    network = UNet(PRESETS[preset].unet).to(device).train()
    for layer in dropping_layers(network):
        layer.seeds = torch.tensor([3, 4], dtype=torch.int32, device=device)
    magnitude = torch.rand(2, PRESETS[preset].unet.input_channels, 128, 192, device=device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        check_learning(network, magnitude, precision, use_kernels)


@EACH_PRECISION
@EACH_PRESET
def test_gradients_have_the_same_bits_every_time(device, preset, precision):
    network = UNet(dataclasses.replace(PRESETS[preset].unet, dropout=0.0)).to(device).train()
    magnitude = torch.rand(2, PRESETS[preset].unet.input_channels, 128, 192, device=device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):  # of the head
        first, second = (learnt(network, magnitude, precision, kernels=True) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.filterwarnings("error")  # a capture that fails is but a warning
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_graph_of_a_step_gives_the_same_bits(device, precision):
    captured, plain = (small_trainer(device, precision) for _ in range(2))
    plain.graphs.stop()
    for _ in range(6):
        assert torch.equal(captured.step().losses, plain.step().losses)
    assert all(isinstance(graph, Graph) for graph in captured.graphs.graphs.values()) and captured.graphs.graphs
    for name, tensor in captured.tensors().items():
        assert torch.equal(tensor, plain.tensors()[name]), name


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_goes_on_from_its_tensors(device, precision):
    """Also into a graph, and in one that has been captured already."""
    trainer = small_trainer(device, precision)
    for _ in range(3):
        trainer.step()
    state = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    place = trainer.done, *trainer.loss_scale()
    expected = [trainer.step().losses for _ in range(3)]
    for other in (trainer, small_trainer(device, precision)):
        other.load(state, *place)
        for losses in expected:
            torch.testing.assert_close(other.step().losses, losses)


def test_a_step_waits_for_nothing(device):
    trainer = small_trainer(device)
    for _ in range(3):  # memory is found, kernels are loaded, the graph is captured
        trainer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_gpu_learns_what_a_cpu_learns(device):
    losses = []
    for place in (device, torch.device("cpu")):
        trainer = small_trainer(place, "float32")
        losses.append(torch.stack([trainer.step().losses.cpu() for _ in range(5)]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


# ---- devices, runtimes, memory, errors

FIRST = """
import torch
from pyunetsep.benchmark import random_network
from pyunetsep.cuda_plan import CudaPlan
from tests.test_gpu import SMALL
network, device = random_network(SMALL), torch.device("cuda", 0)  # without an index torch would be asked for it
assert not torch.cuda.is_initialized()
plan = CudaPlan({"vocals": network}, device=device)
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


@contextlib.contextmanager
def memory_limit(limit_bytes, device):
    """No more memory for this process than that, in the block."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit_bytes / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def test_no_memory_is_said_so_and_does_no_harm(device):
    magnitude = magnitudes("spleeter", 64, device)
    plan("spleeter").estimate(magnitude[:1])
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved(device) + 2**28
    with memory_limit(limit, device), pytest.raises(torch.OutOfMemoryError):
        plan("spleeter").estimate(magnitude)
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


# ---- whole songs, as arrays and tensors: that takes no soundfile


def rate_of(model, resampled):
    if not resampled:
        return model.spectrogram.sample_rate_hz
    pytest.importorskip("soxr", reason="songs of another rate need soxr")
    return 11_025


def white_noise(model, samples):
    shape = samples, model.unet.input_channels
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.1)


def check_graphs(separator, *, exact=False):
    """All kinds of segments have become graphs, and none was given up."""
    graphs = separator._engine(separator._config(exact)).graphs
    assert graphs.limit > 0 and graphs.graphs, "goes on without graphs"
    assert all(isinstance(graph, Graph) for graph in graphs.graphs.values()), "not captured"


@pytest.mark.filterwarnings("error")  # a capture that fails is but a warning
@EACH_PRESET
@EACH_RATE
def test_songs_are_those_of_the_cpu(device, preset, resampled):
    """The second and third run of a segment's kind are graphs."""
    model, weights = PRESETS[preset], random_checkpoint(PRESETS[preset])
    rate = rate_of(model, resampled)
    song = white_noise(model, 30 * rate)
    cpu, separator = Separator(weights, device="cpu"), Separator(weights, device=device)
    for exact, tolerance in ((True, 1e-4), (False, 2e-2)):
        expected = cpu(song, rate, exact=exact)
        first = None
        for _ in range(3):
            stems = separator(song, rate, exact=exact)
            for stem, wave in stems.items():
                np.testing.assert_allclose(wave, expected[stem], rtol=0, atol=tolerance)
            first = first or stems
            assert all(np.array_equal(wave, first[stem]) for stem, wave in stems.items())
        check_graphs(separator, exact=exact)
    assert np.abs(sum(stems.values()) - song).max() < 1e-6
    there = separator(torch.from_numpy(song.T.copy()).to(device), rate)
    assert all(np.array_equal(wave.cpu().numpy().T, stems[stem]) for stem, wave in there.items())


@pytest.mark.filterwarnings("error")
@EACH_RATE
@pytest.mark.parametrize("model", [SPLEETER_LIKE, JANSSON_LIKE], ids=["spleeter", "jansson2017"])
def test_devices_agree(device, model, resampled):
    """With networks that are no preset's, of few channels and bins."""
    mixture, rate = noise(2, 100_000).T.contiguous().numpy(), rate_of(model, resampled)
    cpu, separator = Separator(checkpoint(model), device="cpu"), Separator(checkpoint(model), device=device)
    for exact, tolerance in ((True, 1e-4), (False, 2e-2)):
        expected = cpu(mixture, rate, exact=exact)
        for _ in range(3):
            stems = separator(mixture, rate, exact=exact)
            for stem, wave in stems.items():
                np.testing.assert_allclose(wave, expected[stem], rtol=0, atol=tolerance)
        check_graphs(separator, exact=exact)
    assert np.abs(sum(stems.values()) - mixture).max() < 1e-6


@EACH_RATE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_a_tensor_comes_back_where_it_was(device, dtype, resampled):
    separator, rate = Separator(checkpoint(), device=device), rate_of(SPLEETER_LIKE, resampled)
    songs = torch.stack([noise(2, 20_000, seed) for seed in range(3)])
    songs = songs.to(dtype) if dtype.is_floating_point else (songs * 2**15).to(dtype)
    expected = separator(songs, rate)
    for stem, wave in separator(songs.to(device), rate).items():
        assert wave.device.type == device.type and wave.dtype == dtype
        assert torch.equal(wave.cpu(), expected[stem])
    bad = songs.to(device, torch.float32)
    bad[1, 0, 123] = torch.nan
    with pytest.raises(InvalidAudioError, match=r"song 1: .* got nan at sample 123 "):
        separator(bad, rate)
    assert separator(bad, rate, sanitize=True)["vocals"].isfinite().all()


def test_threads_share_a_device(device):
    separator = Separator(checkpoint(), device=device)
    mixture = noise(2, 60_000)
    expected, results = separator(mixture, 8_000)["vocals"], [None] * 8

    def work(i):
        results[i] = separator(mixture, 8_000)["vocals"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None and torch.equal(result, expected) for result in results)


@pytest.mark.filterwarnings("error")
def test_a_separator_on_the_second_device(device):
    """While the first one is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    mixture = noise(2, 100_000)
    expected = Separator(checkpoint(), device="cpu")(mixture, 8_000)
    separator = Separator(checkpoint(), device="cuda:1")
    for home in ("cpu", "cuda:0", "cuda:1"):
        for _ in range(3):
            for stem, wave in separator(mixture.to(home), 8_000).items():
                assert wave.device == torch.device(home)
                torch.testing.assert_close(wave.cpu(), expected[stem], rtol=0, atol=2e-2)
    check_graphs(separator)
    assert torch.cuda.current_device() == 0


def test_a_separator_that_has_not_the_memory_for_a_batch_takes_smaller_ones(device):
    model, weights = PRESETS["spleeter"], random_checkpoint(PRESETS["spleeter"])
    rate = model.spectrogram.sample_rate_hz
    song = white_noise(model, 80 * rate)  # somewhat more than a segment of 8 patches

    def with_batch(patches):
        # in float32, where stems hardly depend on how a batch is cut
        config = SeparatorConfig(batch_patches=patches, precision="float32")
        separator = Separator(weights, device=device, config=config)
        separator(song[:rate], rate)  # its weights are there from now on
        return separator

    def run(separator):
        """Stems, and the memory that the process has reserved and used for them at most; without graphs."""
        separator._engine(separator.config).graphs.stop()  # they would keep theirs
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        stems = separator(song, rate)
        return stems, torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)

    separator, small, large = (with_batch(patches) for patches in (8, 2, 8))
    _, enough, _ = run(small)
    expected, _, needed = run(large)
    assert enough < needed, "no limit lies between them"
    with memory_limit((enough + needed) // 2, device):
        stems = separator(song, rate)
    assert separator._engine(separator.config).batch in (2, 4)
    for stem, wave in stems.items():
        np.testing.assert_allclose(wave, expected[stem], rtol=0, atol=1e-5)
