"""Model files: written and read back, and the hostile ones refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyunetsep.checkpoint import (
    MAX_HEADER_BYTES,
    ModelInfo,
    load_checkpoint,
    read_info,
    save_checkpoint,
    tensor_digest,
)
from pyunetsep.config import JANSSON2017, SPLEETER, ModelConfig
from pyunetsep.errors import CheckpointError
from pyunetsep.unet import UNet
from tests.properties import given, settings, st

INFO = ModelInfo(name="test", licence="CC0-1.0", training_data="noise", source="this test", source_sha256="")
States = dict[str, dict[str, Tensor]]


def shrunk(config: ModelConfig, channels: tuple[int, ...] = (2, 3)) -> ModelConfig:
    unet = dataclasses.replace(config.unet, channels=channels, dropout_blocks=1)
    return dataclasses.replace(
        config, unet=unet, patch_frames=8, spectrogram=dataclasses.replace(config.spectrogram, bins=8)
    )


SMALL = shrunk(SPLEETER)


def random_states(config: ModelConfig = SMALL, seed: int = 0) -> States:
    torch.manual_seed(seed)
    states = {}
    for stem in config.stems:
        network = UNet(config.unet)
        with torch.no_grad():
            network.train()(torch.rand(2, config.unet.input_channels, 8, 8))  # statistics other than the initial ones
        states[stem] = network.state_dict()
    return states


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "model.safetensors"
    save_checkpoint(path, SMALL, random_states(), INFO)
    return path


@pytest.fixture
def path(tmp_path: Path, sound: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path))


# Writing and reading


@pytest.mark.parametrize("config", [SMALL, shrunk(JANSSON2017), shrunk(SPLEETER, (1,))], ids=["raw", "2017", "tiny"])
def test_reads_what_was_written(tmp_path: Path, config: ModelConfig) -> None:
    path = tmp_path / "model.safetensors"
    states = random_states(config)
    save_checkpoint(path, config, states, INFO)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.config, checkpoint.info) == read_info(path) == (config, INFO)
    assert tuple(checkpoint.networks) == config.stems
    x = torch.rand(1, config.unet.input_channels, 8, 8)
    for stem, network in checkpoint.networks.items():
        original = UNet(config.unet)
        original.load_state_dict(states[stem])
        assert torch.equal(network(x), original.eval()(x))
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert all(tensor.device.type == "cpu" for tensor in network.state_dict().values())


def test_a_loaded_network_learns_on(path: Path) -> None:
    network = load_checkpoint(path).networks["vocals"].requires_grad_(True).train()
    network(torch.rand(2, 2, 8, 8)).sum().backward()
    assert network.get_parameter("encoder.0.conv.weight").grad is not None
    assert network.get_buffer("encoder.0.norm.num_batches_tracked") == 1


def test_the_same_model_is_the_same_bytes(tmp_path: Path, path: Path) -> None:
    backwards = {stem: dict(reversed(state.items())) for stem, state in reversed(random_states().items())}
    save_checkpoint(tmp_path / "again.safetensors", SMALL, backwards, INFO)
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_half_precision_is_widened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    states = random_states()
    for dtype in (torch.float16, torch.bfloat16):
        half = {stem: {key: tensor.to(dtype) for key, tensor in state.items()} for stem, state in states.items()}
        save_checkpoint(path, SMALL, half, INFO)
        weight = load_checkpoint(path).networks["vocals"].get_parameter("head.weight")
        assert weight.dtype == torch.float32
        assert torch.equal(weight, states["vocals"]["head.weight"].to(dtype).float())


def test_one_state_may_serve_two_stems(tmp_path: Path) -> None:
    state = random_states()["vocals"]
    save_checkpoint(tmp_path / "x.safetensors", SMALL, dict.fromkeys(SMALL.stems, state), INFO)
    assert load_checkpoint(tmp_path / "x.safetensors").networks.keys() == {"vocals", "accompaniment"}


def test_the_digest_is_that_of_the_weights(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, SMALL, random_states(), dataclasses.replace(INFO, name="renamed"))
    assert tensor_digest(other) == tensor_digest(path)
    save_checkpoint(other, SMALL, random_states(seed=1), INFO)
    assert tensor_digest(other) != tensor_digest(path)


def test_loading_leaves_random_state_alone(path: Path) -> None:
    before = torch.get_rng_state()
    load_checkpoint(path)
    assert torch.equal(before, torch.get_rng_state())


# Refusals when writing


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda states: states.pop("vocals"), "missing: 'vocals.encoder.0.conv.weight' and"),
        (lambda states: states["vocals"].pop("head.bias"), "missing: 'vocals.head.bias'$"),
        (lambda states: states["vocals"].update(extra=torch.zeros(1)), "unknown: 'vocals.extra'$"),
        (lambda states: states["vocals"].update({"head.bias": torch.zeros(3)}), r"\[2\], is torch.float32 \[3\]"),
        (lambda states: states["vocals"].update({"head.bias": torch.zeros(2).double()}), "is torch.float64"),
        (lambda states: states["vocals"]["head.bias"].fill_(torch.nan), "vocals.head.bias has NaN"),
        (lambda states: states["vocals"]["encoder.0.norm.running_var"].fill_(-1), "has negative values"),
    ],
)
def test_states_that_do_not_fit_are_not_written(tmp_path: Path, change: Callable[[States], None], problem: str) -> None:
    states = random_states()
    change(states)
    with pytest.raises(ValueError, match=problem):
        save_checkpoint(tmp_path / "x.safetensors", SMALL, states, INFO)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: int) -> None:
        raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, SMALL, random_states(seed=1), INFO)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no/x.safetensors: No such file"):
        save_checkpoint(tmp_path / "no" / "x.safetensors", SMALL, random_states(), INFO)


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "x" * 1001])
def test_info_is_printable(text: str) -> None:
    with pytest.raises(ValueError, match=r"ModelInfo.licence must be printable"):
        dataclasses.replace(INFO, licence=text)


# Hostile files


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """A file's header and data."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def assert_refused(path: Path, raw: bytes, problem: str) -> None:
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0" * 7, b"\0" * 8, struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 2**63) + b"{}", b"RIFF....WAVEfmt "],
)
def test_files_without_a_header(tmp_path: Path, raw: bytes) -> None:
    assert_refused(tmp_path / "x.safetensors", raw, "not a .safetensors model: its first 8 bytes")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    assert_refused(tmp_path / "x.safetensors", pickle.dumps(Bomb()), "not a .safetensors model")
    assert_refused(tmp_path / "x.safetensors", b"PK\x03\x04" + bytes(100), "not a .safetensors model")


def test_a_header_beyond_the_limit(tmp_path: Path) -> None:
    text = b"{}".ljust(MAX_HEADER_BYTES + 1)
    assert_refused(tmp_path / "x.safetensors", join(text, b""), "not a .safetensors model")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"no JSON", "its header is not JSON"),
        (b"\xff\xff", "its header is not JSON"),
        (b"[1, 2]", "its header must be a JSON table"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (b'{"a": 1, "a": 1}', "has a key twice"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "x.safetensors: "),
        (b"{}", "not a model of pyunetsep"),
        (b'{"__metadata__": []}', "its metadata must be a JSON table"),
        (b'{"__metadata__": {"pyunetsep": 5}}', "not a model of pyunetsep"),
        (b'{"__metadata__": {"pyunetsep": "x"}}', "its metadata is not JSON"),
        (b'{"__metadata__": {"pyunetsep": "{\\"format\\":1,\\"format\\":1}"}}', "its metadata has a key twice"),
        (b'{"__metadata__": {"pyunetsep": "\\ud800"}}', "x.safetensors: "),
    ],
)
def test_headers_that_are_not_ours(tmp_path: Path, header: bytes, problem: str) -> None:
    assert_refused(tmp_path / "x.safetensors", join(header, b""), problem)


def change_at(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        for key in keys[:-1]:
            table = table[key]
        if to is None:
            del table[keys[-1]]
        else:
            table[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (change_at("format", to=2), "its format is 2; this version of pyunetsep reads format 1"),
        (change_at("format", to=True), "its format is True"),
        (change_at("format", to=None), "its format is None"),
        (change_at("architecture", to="os.system"), "its architecture is 'os.system'; known is 'unet'"),
        (change_at("config", to=None), "missing: 'config'"),
        (change_at("extra", to=1), "unknown: 'extra'"),
        (change_at("config", "extra", to=1), "config: unknown 'extra'"),
        (change_at("config", "stems", to=None), "config: missing stems"),
        (change_at("config", "stems", to=["../vocals", "b"]), "plain words"),
        (change_at("config", "unet", "channels", to=[2, 10**9]), "UNetConfig.channels must be"),
        (change_at("config", "unet", "channels", to=[2, 4]), r"decoder.0.conv.weight must be \[4, 2, 5, 5\]"),
        (change_at("config", "unet", "channels", to=[4096] * 3), "missing: "),
        (change_at("config", "unet", "dropout", to=float("nan")), "config.unet.dropout must be a float"),
        (change_at("config", "unet", "leaky_slope", to="1"), "config.unet.leaky_slope must be a float"),
        (change_at("config", "unet", "head", to="transposed"), "unknown: "),
        (change_at("info", "name", to=5), "info.name must be a str"),
        (change_at("info", "name", to="\x1b[2J"), "ModelInfo.name must be printable"),
        (change_at("info", "licence", to=None), "info: missing licence"),
    ],
)
def test_metadata_has_a_closed_schema(path: Path, change: Callable[[dict[str, Any]], None], problem: str) -> None:
    header, data = parts(path)
    document = json.loads(header["__metadata__"]["pyunetsep"])
    change(document)
    header["__metadata__"]["pyunetsep"] = json.dumps(document)
    assert_refused(path, join(header, data), problem)


BIAS = "vocals.head.bias"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (change_at(BIAS, "dtype", to="F64"), "is of type 'F64'"),
        (change_at(BIAS, "dtype", to=["F32"]), "which is not one of F32, F16, BF16"),
        (change_at(BIAS, "dtype", to="F16"), "other offsets than its type and shape need"),
        (change_at(BIAS, "shape", to=[3]), "other offsets"),
        (change_at(BIAS, "shape", to=[1, 2]), r"must be \[2\], is \[1, 2\]"),
        (change_at(BIAS, "shape", to=[-1, -2]), "needs a shape and two offsets"),
        (change_at(BIAS, "shape", to=[2.0]), "needs a shape and two offsets"),
        (change_at(BIAS, "shape", to=[2**60]), "needs a shape and two offsets"),
        (change_at(BIAS, "shape", to=[1] * 9), "needs a shape and two offsets"),
        (change_at(BIAS, "shape", to=2), "needs a shape and two offsets"),
        (change_at(BIAS, "data_offsets", to=[0, 8]), "begins at byte 0, the one before it ends at|begins at byte"),
        (change_at(BIAS, "data_offsets", to=[10**9, 10**9 + 8]), "begins at byte"),
        (change_at(BIAS, "data_offsets", to=[0, 8, 16]), "needs a shape and two offsets"),
        (change_at(BIAS, "data_offsets", to=None), "missing: 'data_offsets'"),
        (change_at(BIAS, "extra", to=1), "unknown: 'extra'"),
        (change_at(BIAS, to="text"), "must be a JSON table"),
        (change_at(BIAS, to=None), "begins at byte"),
    ],
)
def test_tensors_must_be_where_the_header_says(
    path: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    header, data = parts(path)
    change(header)
    assert_refused(path, join(header, data), problem)


def test_missing_and_extra_tensors(path: Path) -> None:
    header, data = parts(path)
    extra = {**header, "vocals.extra": {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}}
    assert_refused(path, join(extra, data + bytes(4)), "unknown: 'vocals.extra'")
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][0])
    begin = header.pop(last)["data_offsets"][0]
    assert_refused(path, join(header, data[:begin]), f"missing: '{last}'")


@pytest.mark.parametrize(("cut", "problem"), [(1, "bytes of tensors where its header says"), (10**6, "first 8 bytes")])
def test_a_truncated_file(path: Path, cut: int, problem: str) -> None:
    assert_refused(path, path.read_bytes()[:-cut], problem)


def test_a_longer_file(path: Path) -> None:
    assert_refused(path, path.read_bytes() + b"\0", "bytes of tensors where its header says")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(path: Path, value: float) -> None:
    header, data = parts(path)
    begin = header[BIAS]["data_offsets"][0]
    assert_refused(path, join(header, data[:begin] + struct.pack("<f", value) + data[begin + 4 :]), f"{BIAS} has NaN")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for read in (load_checkpoint, read_info, tensor_digest):
        with pytest.raises(CheckpointError, match="nothing: No such file"):
            read(tmp_path / "nothing")
        with pytest.raises(CheckpointError, match="Is a directory"):
            read(tmp_path)


@settings(max_examples=200)
@given(data=st.data())
def test_random_damage_is_a_checkpoint_error_or_other_weights(sound: Path, data: st.DataObject) -> None:
    path = sound.with_name("damaged.safetensors")
    raw = bytearray(sound.read_bytes())
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):  # three of four in the header
        end = header if data.draw(st.integers(0, 3)) else len(raw)
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    for read in (load_checkpoint, read_info, tensor_digest):
        try:
            read(path)
        except CheckpointError as error:
            message = str(error)
            assert message.startswith(f"{path}: ")
