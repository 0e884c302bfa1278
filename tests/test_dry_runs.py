"""The benchmarks of a GPU, tiny and on a CPU: they run to their end, and what they save can be shown."""

import importlib
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from pyunetsep.cuda_graph import CudaGraphs, Graph

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("unet", "layers", "transforms", "separate")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a script and returns what it has saved."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OUT", str(tmp_path))
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def run(name, *options):
        assert importlib.import_module(f"{name}_cuda").main(["--dry-run", *options]) == 0
        return json.loads((tmp_path / f"{name}_cuda.json").read_text())["results"]

    yield run
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch._dynamo.reset()


def test_networks_of_all_engines(run):
    results = run("unet", "--patches", "3")
    assert {row["model"] for row in results["networks"]} == {"jansson2017", "spleeter"}
    for row in results["networks"]:
        assert not row["failed"] and len(row["engines"]) == 10
        assert all(engine["median_s"] > 0 and engine["largest_error"] < 0.02 for engine in row["engines"].values())


def test_layers(run):
    results = run("layers")
    assert len(results["networks"]) == 6
    for row in results["networks"]:
        assert len(row["layers"]) == (5 if row["model"] == "spleeter" else 4)
        assert all(0 < layer["floor_s"] < layer["median_s"] for layer in row["layers"].values())


def test_the_floors_are_those_of_the_design(run):
    """In microseconds: bytes and FLOP of the whole networks on an H100, as they were worked out by hand."""
    layers, presets = importlib.import_module("layers_cuda"), importlib.import_module("pyunetsep.config").PRESETS
    for name, batch, wanted in [("jansson2017", 1, 8.4), ("jansson2017", 20, 53), ("spleeter", 20, 454)]:
        model = presets[name]
        size = model.spectrogram.bins, model.patch_frames
        traffic = layers.layer_bytes(model.unet, *size, batch, 1, 2)
        flop = layers.layer_flop(model.unet, *size)
        floor = sum(layers.gpu.roofline_s(flop[layer] * batch, traffic[layer], "float16") for layer in flop)
        assert 1e6 * floor == pytest.approx(wanted, rel=0.1)


def test_transforms(run):
    results = run("transforms")
    assert len(results["ops"]) == 16
    assert all(not row["failed"] and len(row["rivals"]) == 2 for row in results["ops"])


@pytest.mark.parametrize("files", [True, False])
def test_songs(run, files, monkeypatch):
    if files:
        pytest.importorskip("soundfile")
    find_spec = importlib.util.find_spec

    def find(name, *more):
        return find_spec(name, *more) if files or name != "soundfile" else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    for song in run("separate", "--song", "0.5")["songs"]:
        assert not song["failed"] and len(song["snr_db"]) == 4
        assert all(len(song[way]) == 4 for way in ("on the GPU", "authors' grid", "public call", "array"))
        assert ("files" in song) is files and ("files" in song["skipped"]) is not files


def test_a_rival_that_fails_is_left_out(run, monkeypatch):
    engines = importlib.import_module("unet_cuda")

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried")

    monkeypatch.setattr(engines, "TorchStems", fail)
    for row in run("unet", "--patches", "1", "--models", "spleeter")["networks"]:
        assert len(row["failed"]) == 4 and all("out of memory" in reason for reason in row["failed"].values())
        assert all(name.startswith("pyunetsep") for name in row["engines"])


@pytest.mark.filterwarnings("ignore:.* is slower")  # outside the warm-up
def test_graphs_that_are_missing_are_noticed(run, monkeypatch, capsys):
    separate, graphs = importlib.import_module("separate_cuda"), CudaGraphs(torch.device("cuda"))
    graphs.graphs["called once"] = None
    assert not separate.has_graphs(None) and not separate.has_graphs(graphs)
    graphs.graphs["captured"] = Graph.__new__(Graph)
    assert separate.has_graphs(graphs)
    graphs.limit = 0
    assert not separate.has_graphs(graphs)

    class Rival(separate.Rival):
        """Should have what a CPU has not."""

        def __init__(self, name, *others):
            super().__init__(name, *others)
            self.graphed = name == separate.HALVES

        def on_device(self, wave, **options):
            warnings.warn(f"{self.name} is slower", RuntimeWarning, stacklevel=1)
            return super().on_device(wave, **options)

    monkeypatch.setattr(separate, "Rival", Rival)
    (song,) = run("separate", "--song", "0.5", "--models", "spleeter")["songs"]
    assert song["failed"] == {separate.HALVES: f"RuntimeError: has no CUDA graphs; {separate.HALVES} is slower"}
    assert capsys.readouterr().out.count("is slower") == 5


def test_results_are_shown(run, tmp_path, monkeypatch):
    """Tables and picture; a dry run is none."""
    published, readme = importlib.import_module("published"), importlib.import_module("readme")
    monkeypatch.setattr(published, "ROOT", tmp_path)
    assert readme.gpu().startswith("Not yet measured")
    run("unet", "--patches", "1")
    run("separate", "--song", "0.5")
    results, images = tmp_path / "benchmarks" / "results", tmp_path / "docs" / "images"
    results.mkdir(parents=True)
    images.mkdir(parents=True)
    for path in tmp_path.glob("*_cuda.json"):
        shutil.move(path, results / path.name)
    assert readme.gpu().startswith("Not yet measured")
    for path in results.iterdir():
        data = json.loads(path.read_text().replace('"dry_run": true', '"dry_run": false'))
        data["context"]["gpu"] = "NVIDIA H100 80GB HBM3"
        path.write_text(json.dumps(data))
    table = readme.gpu()
    assert "On one NVIDIA H100" in table and table.count("| Spleeter's network |") + table.count("Spleeter's") >= 2
    assert all(len(line) <= 120 for line in table.splitlines() if not line.startswith("|"))
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("plot")
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    plot.gpu(published.load_gpu("unet_cuda"), published.load_gpu("separate_cuda"))
    assert (images / "speed-gpu.png").stat().st_size > 10_000
    (tmp_path / "table.md").write_text(table)
