"""Networks elsewhere: as ONNX in ONNX Runtime, as exported programs, in the workers of a DataLoader."""

import copy
import dataclasses
import functools
import io
import json
import pickle
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pyunetsep import Separator, UNet, export, export_onnx
from pyunetsep.checkpoint import Checkpoint
from pyunetsep.cli import main
from pyunetsep.errors import CheckpointError, OutputExistsError, UnknownModelError
from tests.tiny import INFO, JANSSON_LIKE, SPLEETER_LIKE, checkpoint, noise, write_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[1]


def nearest(config):
    return dataclasses.replace(config, unet=dataclasses.replace(config.unet, upsampling="nearest"))


CONFIGS = {
    "spleeter": SPLEETER_LIKE,
    "jansson2017": JANSSON_LIKE,
    "spleeter, nearest": nearest(SPLEETER_LIKE),
    "jansson2017, nearest": nearest(JANSSON_LIKE),
    "normalised by the song": dataclasses.replace(JANSSON_LIKE, normalisation="song", masks="ratio"),
}
MOST = {"float32": 2e-6, "float16": 4e-3}  # between masks; float16 has 11 bits


def run(path, magnitude):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["mask"], {"magnitude": magnitude.numpy()})[0])


def magnitudes(config, batch, frames):
    return torch.rand(batch, config.unet.input_channels, config.spectrogram.bins, frames) * 3


def sizes(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Networks as ONNX, each written once, for it takes PyTorch's exporter a second."""

    @functools.cache
    def exported(name: str, stem: str = "vocals", precision: str = "float32") -> export.ExportedNetwork:
        folder = tmp_path_factory.mktemp("onnx") / "new"
        (only,) = export_onnx(checkpoint(CONFIGS[name]), folder, stem=stem, precision=precision)
        return only

    return exported


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "float32") for name in CONFIGS), ("spleeter", "float16"), ("jansson2017", "float16")],
)
def test_a_network_in_onnx_runtime(name, precision, exports):
    config = CONFIGS[name]
    network, stride = checkpoint(config).networks["vocals"], config.unet.stride
    exported = exports(name, precision=precision)
    path = exported.path
    assert (path.name, exported.stem, exported.precision, exported.opset) == ("vocals.onnx", "vocals", precision, 18)
    assert 0 < exported.agreement.largest_difference < MOST[precision]
    for batch, frames in ((1, stride), (3, 5 * stride), (2, config.patch_frames)):
        magnitude = magnitudes(config, batch, frames)
        mask = run(path, magnitude)
        assert mask.dtype == torch.float32
        torch.testing.assert_close(mask, network(magnitude), rtol=0, atol=MOST[precision])
    graph = onnx.load(path).graph
    (source,), (result,) = graph.input, graph.output
    shape = ["batch", config.unet.input_channels, config.spectrogram.bins, "frames"]
    assert (source.name, sizes(source)) == ("magnitude", shape)
    assert (result.name, sizes(result)) == ("mask", shape)
    weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT if precision == "float32" else onnx.TensorProto.FLOAT16}
    kinds = {node.op_type for node in graph.node}
    assert kinds <= {"Conv", "ConvTranspose", "Resize", "BatchNormalization", "LeakyRelu", "Relu", "Concat", "Sigmoid",
                     "Slice", "Cast"}  # fmt: skip


def test_frames_between_two_multiples_of_the_stride_are_an_error_not_a_wrong_mask(exports):
    with pytest.raises(Exception, match="Concat"):
        run(exports("jansson2017").path, magnitudes(JANSSON_LIKE, 1, 6))


@pytest.mark.parametrize("config", [SPLEETER_LIKE, JANSSON_LIKE], ids=["spleeter", "jansson2017"])
def test_statistics_that_float16_cannot_hold(config, tmp_path):
    """Those of trained networks reach 1e7, and small ones would be rounded away."""
    model = checkpoint(dataclasses.replace(config, unet=dataclasses.replace(config.unet, norm_epsilon=1e-12)))
    network = model.networks["vocals"]
    for scale, block in ((300.0, network.encoder[0]), (2e-4, network.decoder[0])):
        block.conv.weight *= scale  # what follows the norm stays as it was
        block.conv.bias *= scale
        block.norm.running_mean *= scale
        block.norm.running_var *= scale**2
    if config is SPLEETER_LIKE:  # but for the raw skip
        network.decoder[1].conv.weight[: config.unet.channels[0]] /= 300.0
    (exported,) = export_onnx(model, tmp_path / "x.onnx", stem="vocals", precision="float16")
    assert exported.agreement.largest_difference < 2 * MOST["float16"]


def test_the_metadata_says_what_the_model_is(exports):
    session = onnxruntime.InferenceSession(exports("spleeter", "accompaniment").path)
    metadata = session.get_modelmeta().custom_metadata_map
    texts = {**dataclasses.asdict(INFO), "stem": "accompaniment", "precision": "float32", "window": "periodic Hann",
             "normalisation": "none", "masks": "ratio"}  # fmt: skip
    assert {key: metadata.pop(key) for key in texts} == texts
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        **{"stems": ["vocals", "accompaniment"], "patch_frames": 64, "mask_power": 2.0, "mask_epsilon": 1e-10},
        **{"sample_rate_hz": 8000, "n_fft": 128, "hop_length": 32, "first_bin": 0, "bins": 32},
        **{"input_channels": 2, "frames_multiple": 4},
    }
    halves = (
        onnxruntime.InferenceSession(exports("spleeter", precision="float16").path).get_modelmeta().custom_metadata_map
    )
    assert json.loads(halves["largest_magnitude"]) == 4096.0


def test_a_file_depends_on_the_model_alone(exports, tmp_path):
    (again,) = export_onnx(checkpoint(), tmp_path / "x.onnx", stem="vocals")
    first, second = exports("spleeter").path.read_bytes(), again.path.read_bytes()
    assert first == second
    for trace in (b"pyunetsep/", b".py", b"pkg.torch", str(Path.cwd()).encode(), str(Path.home()).encode() + b"/"):
        assert trace not in first


def test_operators_of_a_later_version(tmp_path):
    (exported,) = export_onnx(checkpoint(), tmp_path / "x.onnx", stem="vocals", opset=21)
    assert exported.opset == 21
    assert [imported.version for imported in onnx.load(exported.path).opset_import] == [21]
    assert exported.agreement.largest_difference < MOST["float32"]


@pytest.mark.parametrize(
    "name",
    ["spleeter", "jansson2017", "normalised by the song"],
)
def test_the_files_are_all_that_a_separator_needs(name, exports):
    """examples/onnx_separate.py, which knows nothing of pyunetsep, gives what `exact=True` does."""
    if not (ROOT / "examples").is_dir():
        pytest.skip("needs the source tree")
    model = checkpoint(CONFIGS[name])
    example = runpy.run_path(str(ROOT / "examples" / "onnx_separate.py"))
    networks = [example["Network"](exports(name, stem).path) for stem in model.config.stems]
    song = noise(2, 12_345)
    expected = Separator(model, device="cpu")(song, model.config.spectrogram.sample_rate_hz, exact=True)
    stems = example["separate"](song.double().numpy(), networks)
    assert list(stems) == list(expected)
    for name, stem in stems.items():
        np.testing.assert_allclose(stem, expected[name].numpy(), atol=2e-5)
        assert np.abs(stem).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most_db"), [("float32", -120.0), ("float16", -60.0)])
def test_the_model_inside_the_package(precision, most_db, tmp_path):
    """A trained network of full size, whose norms' variances float16 could not hold."""
    for exported in export_onnx("jansson2017", tmp_path, precision=precision):
        assert exported.agreement.error_db < most_db


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "drums"}, "stem must be of vocals, accompaniment; got 'drums'"),
        ({"stem": []}, r"stem must be of vocals, accompaniment; got \[\]"),
        ({"precision": "bfloat16"}, "precision must be float32 or float16, got 'bfloat16'"),
        ({"opset": 17}, r"opset must be a whole number from 18 to \d+, the installed onnx's, got 17"),
        ({"opset": 999}, r"opset must be a whole number from 18 to \d+, the installed onnx's, got 999"),
        ({"opset": True}, "opset must be a whole number .* got True"),
        ({}, r"output must be a folder for several stems, got '.*x.onnx'; stem \(--stem\) chooses one of vocals, acc"),
    ],
    ids=str,
)
def test_options_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(checkpoint(), tmp_path / "new" / "x.onnx", **options)
    assert not any(tmp_path.iterdir())


def test_what_is_there_stays_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "accompaniment.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"accompaniment.onnx: exists; --overwrite \(overwrite=True\) replaces"):
        export_onnx(checkpoint(), tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match=r"output must end in .onnx or be a folder, got the file '.*x'"):
        export_onnx(checkpoint(), tmp_path / "x")
    assert path.read_bytes() == b"precious"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["accompaniment.onnx", "x"]
    export_onnx(checkpoint(), tmp_path, stem=["accompaniment"], overwrite=True)
    onnx.checker.check_model(path)


def test_all_stems_are_written_or_none(tmp_path):
    vocals, accompaniment = tmp_path / "vocals.onnx", tmp_path / "accompaniment.onnx"
    accompaniment.mkdir()
    with pytest.raises(OSError, match=r"accompaniment.onnx: cannot be written: Is a directory"):
        export._write({vocals: b"1", accompaniment: b"2"})
    assert list(tmp_path.iterdir()) == [accompaniment]
    accompaniment.rmdir()
    export._write({vocals: b"1", accompaniment: b"2"})
    assert (vocals.read_bytes(), accompaniment.read_bytes()) == (b"1", b"2")


def test_weights_that_float16_cannot_hold(tmp_path):
    model = checkpoint()
    model.networks["vocals"].encoder[0].conv.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"precision must be float32 for this model: encoder.0.conv.weight is beyond"):
        export_onnx(model, tmp_path / "x.onnx", stem="vocals", precision="float16")
    assert not any(tmp_path.iterdir())
    export_onnx(model, tmp_path / "x.onnx", stem="vocals")


def test_weights_that_one_file_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"an ONNX file cannot hold 0.0 GiB of weights, 2 GiB at most"):
        export_onnx(checkpoint(), tmp_path / "x.onnx", stem="vocals")


def test_a_file_that_computes_something_else_gets_no_name(tmp_path, monkeypatch):
    folded = export.folded

    def damaged(network: UNet) -> UNet:
        network = folded(network)
        network.encoder_blocks[0].conv.weight.data *= 1.05
        return network

    monkeypatch.setattr(export, "folded", damaged)
    with pytest.raises(
        CheckpointError, match=r"x.onnx: ONNX Runtime .* computes other masks than PyTorch: they differ"
    ):
        export_onnx(checkpoint(), tmp_path / "x.onnx", stem="vocals")
    assert not any(tmp_path.iterdir())


def test_nan_is_something_else(exports):
    content = exports("spleeter").path.read_bytes()
    network = checkpoint().networks["vocals"]
    assert export._agreement(content, network, SPLEETER_LIKE, -80.0).error_db < -80
    network.decoder[0].conv.weight[0] = float("nan")
    with pytest.raises(ValueError, match="they differ by up to nan"):
        export._agreement(content, network, SPLEETER_LIKE, -80.0)


def test_a_file_that_the_runtime_cannot_run_gets_no_name(tmp_path, monkeypatch):
    runtime = SimpleNamespace(__version__="0.1", SessionOptions=onnxruntime.SessionOptions)
    runtime.InferenceSession = lambda *_, **__: onnxruntime.InferenceSession(b"nonsense")
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    with pytest.raises(CheckpointError, match=r"x.onnx: ONNX Runtime 0.1 cannot run it: .*(?i:protobuf|invalid)"):
        export_onnx(checkpoint(), tmp_path / "x.onnx", stem="vocals")
    assert not any(tmp_path.iterdir())


def test_without_onnx_runtime_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (exported,) = export_onnx(checkpoint(), tmp_path / "x.onnx", stem="vocals")
    assert exported.agreement is None
    assert exported.path.is_file()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_packages_are_named(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'pyunetsep\[onnx\]'"):
        export_onnx("no model is looked for", tmp_path / "x.onnx")


def test_an_unknown_model(tmp_path):
    with pytest.raises(UnknownModelError, match="'nonesuch' is neither the name of a model"):
        export_onnx("nonesuch", tmp_path, offline=True)


# ---- the command


@pytest.fixture
def model(tmp_path):
    return str(write_model(tmp_path / "tiny.safetensors"))


def test_the_command_writes_and_says_how_close_it_is(model, tmp_path, capsys):
    assert main(["export", model, "--onnx", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) == 2
    for line, stem in zip(lines, ("vocals", "accompaniment"), strict=True):
        assert line.startswith(f"{tmp_path}/out/{stem}.onnx: float32, opset 18; ONNX Runtime ")
        assert "differs from PyTorch in float32 by at most " in line
        assert (tmp_path / "out" / f"{stem}.onnx").is_file()


def test_the_command_in_json(model, tmp_path, capsys):
    path = tmp_path / "vocals.onnx"
    arguments = ["export", model, "--onnx", str(path), "--stem", "vocals", "--precision", "float16", "--opset", "19"]
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    agreement = row.pop("agreement")
    assert row == {"path": str(path), "stem": "vocals", "precision": "float16", "opset": 19}
    assert agreement["largest_difference"] < MOST["float16"] and agreement["error_db"] < -40
    assert main(arguments) == 2
    assert "exists; --overwrite" in capsys.readouterr().err


def test_the_command_without_onnx_runtime(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", model, "--onnx", str(tmp_path / "x.onnx"), "--stem", "vocals"]) == 0
    assert "not run next to PyTorch, for which `pip install onnxruntime`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{model}", "--onnx", "{folder}/x.onnx"], 2, "output must be a folder for several stems"),
        (["{model}", "--onnx", "{folder}", "--stem", "drums"], 2, "stem must be of vocals, accompaniment"),
        (["{model}", "--onnx", "{folder}", "--opset", "0"], 2, "opset must be a whole number from 18"),
        (["{model}", "--onnx", "{model}/x.onnx", "--stem", "vocals"], 1, "x.onnx: cannot be written: "),
        (["{model}", "--onnx", ""], 2, "output must name a file or a folder, got an empty name"),
        (["nonesuch", "--onnx", "{folder}"], 3, "'nonesuch' is neither the name of a model"),
    ],
)
def test_the_command_explains_mistakes(arguments, code, message, model, tmp_path, capsys):
    assert main(["export", *(text.format(model=model, folder=tmp_path / "new") for text in arguments)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pyunetsep: error: ") and message in said.err
    assert not (tmp_path / "new").exists()


# ---- torch.export


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_exported_program_is_the_network(config):
    network, stride = checkpoint(config).networks["vocals"], config.unet.stride
    free = {0: torch.export.Dim("batch", min=1), 3: stride * torch.export.Dim("strides", min=2)}
    program = torch.export.export(network, (magnitudes(config, 2, 4 * stride),), dynamic_shapes=(free,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch, frames in ((1, 2 * stride), (2, config.patch_frames), (5, 3 * stride)):
        magnitude = magnitudes(config, batch, frames)
        assert torch.equal(loaded(magnitude), network(magnitude))
    for frames in (3 * stride + 1, stride):  # torch.export takes a size of 1, here the bottleneck's, for a constant
        with pytest.raises(Exception, match=r"Guard failed|divisible"):
            loaded(magnitudes(config, 1, frames))


# ---- copies, pickles, workers


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_network_can_be_copied(copied):
    network = checkpoint().networks["vocals"]
    twin = copied(network)
    magnitude = magnitudes(SPLEETER_LIKE, 1, 8)
    assert torch.equal(twin(magnitude), network(magnitude))
    twin.encoder[0].conv.weight.data.zero_()
    assert network.encoder[0].conv.weight.abs().min() > 0
    assert twin.config == network.config and not twin.training


class Vocals(Dataset):
    """Songs that are separated where they are asked for."""

    def __init__(self, model: Checkpoint) -> None:
        self.separator = Separator(model, device="cpu")
        self.songs = [noise(2, 6_000, seed) for seed in range(4)]

    def __len__(self):
        return len(self.songs)

    def __getitem__(self, i):
        return self.separator(self.songs[i], 8_000)["vocals"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_separator_in_the_workers_of_a_dataloader(method):
    """Forked after OpenMP's threads have run here, which would hang a child that wanted threads; workers want one."""
    vocals = Vocals(checkpoint())
    torch.set_num_threads(2)
    expected = [vocals[i] for i in range(len(vocals))]
    loader = DataLoader(vocals, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120)
    for i, wave in enumerate(loader):
        assert torch.equal(wave, expected[i])
    assert i == 3
