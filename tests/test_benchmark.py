"""What the timing is made of; not how long anything takes."""

import argparse
import dataclasses
import importlib
import json
import os
from pathlib import Path

import pytest
import torch

from pyunetsep import _C, benchmark
from pyunetsep.config import PRESETS
from pyunetsep.training.config import TrainingConfig
from pyunetsep.unet_plan import UNetPlan
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE


@pytest.fixture
def training_step(tmp_path, monkeypatch):
    """The script, which saves in `tmp_path`; what it sets is set back."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    monkeypatch.setenv("OUT", str(tmp_path))
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield importlib.import_module("training_step")
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch._dynamo.reset()


def test_rivals_take_turns_and_warm_up_untimed():
    calls = []
    timings = benchmark.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert timings["a"]["rounds"] == timings["b"]["rounds"] == 3


def test_time_runs_out_but_not_before_the_least_rounds():
    timings = benchmark.alternate({"a": lambda: None}, seconds=0.0, least=2)
    assert timings["a"]["rounds"] == 2


def test_a_rival_may_time_itself():
    seconds = iter([9.0, 1.0, 5.0, 2.0])  # the first is the warm-up
    assert benchmark.alternate({"a": lambda: next(seconds)}, rounds=3)["a"] == {
        "median_s": 2.0, "quartile_1_s": 1.5, "quartile_3_s": 3.5, "min_s": 1.0, "max_s": 5.0, "rounds": 3,
    }  # fmt: skip


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("preset", PRESETS)
def test_flop_are_those_of_the_layers(preset, upsampling):
    """Counted anew from the modules: two for each weight and each position that it meets."""
    unet = dataclasses.replace(PRESETS[preset].unet, channels=(3, 4), upsampling=upsampling, dropout_blocks=1)
    network, counted = benchmark.random_network(unet), {}

    def count(name):
        def hook(module, inputs, output):
            meets = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
            counted[name] = 2 * module.weight.numel() * meets.shape[2:].numel()

        return hook

    for kind, blocks in (("encoder", network.encoder), ("decoder", network.decoder)):
        for i, block in enumerate(blocks, start=1):
            block.conv.register_forward_hook(count(f"{kind} {i}"))
    if unet.head == "dilated":
        network.head.register_forward_hook(count("head 1"))
    network(torch.rand(1, unet.input_channels, 32, 64))
    assert benchmark.layer_flop(unet, 32, 64) == counted


def test_the_published_networks_take_what_is_said_of_them():
    flop = {
        name: sum(benchmark.layer_flop(model.unet, model.spectrogram.bins, model.patch_frames).values())
        for name, model in PRESETS.items()
    }
    assert flop == pytest.approx({"jansson2017": 1.507e9, "spleeter": 12.197e9}, rel=1e-3)


@pytest.mark.parametrize("model", [JANSSON_LIKE, SPLEETER_LIKE])
def test_flop_are_named_as_the_profile_names_the_layers(model):
    bins, frames = model.spectrogram.bins, model.patch_frames
    plan = UNetPlan(benchmark.random_network(model.unet), bins=bins, frames=frames)
    profile = plan.profile(torch.rand(1, model.unet.input_channels, bins, frames))
    assert list(profile) == list(benchmark.layer_flop(model.unet, bins, frames))


def test_multiply_adds_are_counted(level):
    one = _C.multiply_adds(1, 10)
    assert one > 0 and one % 10 == 0
    assert _C.multiply_adds(3, 10) == 3 * one
    assert benchmark.fma_peak(0.0) > 0


def test_networks_are_the_same_each_time_and_leave_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = (benchmark.random_network(JANSSON_LIKE.unet) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("before", [None, "1"])
def test_the_environment_is_as_it_was(monkeypatch, before):
    monkeypatch.delenv("PYUNETSEP_KERNELS", raising=False)
    if before is not None:
        monkeypatch.setenv("PYUNETSEP_KERNELS", before)
    with benchmark.use_kernels(False):
        assert os.environ["PYUNETSEP_KERNELS"] == "0"
    assert os.environ.get("PYUNETSEP_KERNELS") == before
    threads = torch.get_num_threads()
    with benchmark.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("preset", "channels", "batch", "flop"),
    [
        # 25 taps from 1 channel to 3 and back, at 256 x 64 places of the inner map; two gradients, but of the input
        ("jansson2017", (3,), 2, 2 * 2 * 2 * 25 * 3 * 256 * 64 * (2 + 3)),
        # 2 channels to 2 at 512 x 256 and back to 1, then 16 taps of a head from 1 to 2 at 1024 x 512
        ("spleeter", (2,), 1, 2 * 2 * (25 * 512 * 256 * (2 * 4 + 3 * 2) + 3 * 16 * 2 * 1024 * 512)),
    ],
)
def test_flop_of_a_step(training_step, preset, channels, batch, flop):
    config = TrainingConfig(preset=preset, channels=channels, batch=batch)
    assert training_step.step_flop(config) == flop
    assert training_step.step_flop(dataclasses.replace(config, stems=("vocals",))) == flop // 2


def test_a_cell_takes_the_place_of_the_one_like_it(training_step):
    def cell(preset, batch, commit):
        return {"preset": preset, "batch": batch, "commit": commit}

    cells = []
    for each in [("spleeter", 8), ("jansson2017", 64), ("jansson2017", 8)]:
        cells = training_step.with_cell(cells, cell(*each, "old"))
    cells = training_step.with_cell(cells, cell("jansson2017", 64, "new"))
    assert cells == [cell("jansson2017", 8, "old"), cell("jansson2017", 64, "new"), cell("spleeter", 8, "old")]


def test_results_of_another_machine_or_version_are_not_kept(training_step, tmp_path, monkeypatch):
    harness = importlib.import_module("harness")
    assert harness.saved("some") is None
    path = harness.save("some", {"cells": [1]})
    assert path == tmp_path / "some.json" and harness.saved("some") == {"cells": [1]}
    monkeypatch.setenv("COMMIT", "another")
    assert harness.saved("some") == {"cells": [1]}
    for key, value in [("cpu", "another"), ("torch", "0.1"), ("threads", 99), ("build", {})]:
        data = json.loads(path.read_text())
        data["context"][key] = value
        (tmp_path / "other.json").write_text(json.dumps(data))
        assert harness.saved("other") is None


def test_whom_the_memory_does_not_suffice_for(training_step):
    memory = {name: {"peak": peak, "between": 10.0} for name, peak in [("a", 100.0), ("b", 300.0), ("c", 50.0)]}
    assert training_step.without_room(memory, 320.0) == {}
    left_out = training_step.without_room(memory, 319.0)
    assert left_out == {"b": "takes 300 MiB, 320 with the others; 319 are there"}
    assert list(training_step.without_room(memory, 109.0)) == ["b", "a"]
    assert list(training_step.without_room(memory, 49.0)) == ["b", "a", "c"]


def test_who_cannot_be_measured_is_left_out(training_step, monkeypatch):
    """Its process dies, takes too long or says that it takes too much."""
    script, config = training_step, training_step.TinyConfig(batch=1)
    died, patient, large = list(script.ON_CPU)[1:4]

    def memory_of(name, _):
        if name == died:
            raise RuntimeError("its process ended with -9, and said: nothing")
        if name == patient:
            raise TimeoutError("2 steps take more than 600 s")
        return {"peak": 2000.0 if name == large else 20.0, "between": 10.0}

    monkeypatch.setattr(script, "memory_of", memory_of)
    monkeypatch.setattr(script, "usable_mib", lambda: 1000.0)
    args = argparse.Namespace(rounds=1, seconds=0.0, least=1, device=torch.device("cpu"), dry_run=False)
    cell = script.measure(config, [script.OURS, died, patient, large], dict.fromkeys(script.DTYPES, 1e9), args)
    assert list(cell["not_measured"]) == [died, patient, large]
    assert "ended with -9" in cell["not_measured"][died] and "2000 MiB" in cell["not_measured"][large]
    (row,) = cell["steps"].values()
    assert row["memory_mib"] == 20 and row["share_of_peak"] == pytest.approx(cell["gflop"] / row["median_s"])


def test_memory_is_that_of_a_process_of_its_own(training_step, monkeypatch):
    memory = training_step.memory_of(training_step.OURS, TrainingConfig(batch=1))
    assert 300 < memory["between"] <= memory["peak"] < 2000  # weights, moments and averages are 4 times 75 MiB
    monkeypatch.setattr(training_step, "PATIENCE_S", 0.01)
    with pytest.raises(TimeoutError, match="2 steps take more than 0 s"):
        training_step.memory_of(training_step.OURS, TrainingConfig(batch=1))
    monkeypatch.setattr(training_step, "PATIENCE_S", 60.0)
    monkeypatch.setattr(training_step.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="its process ended with 1, and said: nothing"):
        training_step.memory_of(training_step.OURS, TrainingConfig(batch=1))


def test_graphs_make_room_for_the_others(training_step, monkeypatch):
    script, alternate = training_step, training_step.gpu.alternate

    def full(runs, *others, **options):
        if any(script.ON_GPU[name].graph for name in runs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        return alternate(runs, *others, **options)

    monkeypatch.setattr(script.gpu, "alternate", full)
    args = script.gpu.parse(script.gpu.parser("A step", seconds=0.0, rounds=1), ["--dry-run"])
    args.least, names = 1, [script.EAGER, f"{script.EAGER}, graph"]
    steps, left_out = script.on_gpu(script.TinyConfig(batch=1), names, args)
    assert list(steps) == names[:1] and list(left_out) == names[1:]


def test_steps_of_all_rivals_as_on_a_gpu(training_step, tmp_path, monkeypatch):
    """Tiny and on a CPU: all run, cells join those of another call, and tables and pictures show them."""
    script, published = training_step, importlib.import_module("published")
    assert script.main(["--dry-run", "--presets", "spleeter", "--batches", "1"]) == 0
    assert script.main(["--dry-run", "--presets", "jansson2017", "--batches", "1", "2", "--rivals", script.EAGER]) == 0
    path = tmp_path / "training_step_cuda.json"
    data = json.loads(path.read_text())
    cells = data["results"]["cells"]
    assert [(cell["preset"], cell["batch"]) for cell in cells] == [
        ("jansson2017", 1),
        ("jansson2017", 2),
        ("spleeter", 1),
    ]
    assert list(cells[2]["steps"]) == list(script.ON_GPU) and len(cells[0]["steps"]) == 4  # ours take part always
    assert all(not cell["not_measured"] and cell["steps"][script.OURS]["share_of_peak"] > 0 for cell in cells)

    readme, results = importlib.import_module("readme"), tmp_path / "benchmarks" / "results"
    monkeypatch.setattr(published, "ROOT", tmp_path)
    assert readme.training().startswith("Not yet measured")
    data["results"]["dry_run"] = False
    results.mkdir(parents=True)
    for name, gpu in [("cuda", "NVIDIA H100 80GB HBM3"), ("cpu", None)]:
        data["context"]["gpu"] = gpu
        (results / f"training_step_{name}.json").write_text(json.dumps(data))
    table = readme.training()
    assert table.count("| spleeter") + table.count("| Spleeter's network |") == 3 + 3 and "NVIDIA H100" in table
    assert all(len(line) <= 120 for line in table.splitlines() if not line.startswith("|"))
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("plot")
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    plot.training(published.load("training_step_cpu"), "training-step.png")
    assert (tmp_path / "docs" / "images" / "training-step.png").stat().st_size > 10_000
