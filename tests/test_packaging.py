"""What others get: the types that their checkers see, and what is in the distributions."""

import ast
import os
import re
import subprocess
import sys
import types
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pyunetsep
from pyunetsep import _C, errors
from tests.tiny import noise

ROOT = Path(__file__).parents[1]
STUB = Path(pyunetsep.__file__).with_name("_C.pyi")

needs_source_tree = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")


# ---- types


def arguments(function: ast.FunctionDef) -> list[tuple[str, str | None]]:
    """Names, and defaults as Python writes them."""
    names = [argument.arg for argument in function.args.args]
    defaults = [ast.unparse(default) for default in function.args.defaults]
    return list(zip(names, [None] * (len(names) - len(defaults)) + defaults, strict=True))


def members(body: list[ast.stmt]) -> dict[str, object]:
    """What a module or class of the stub has: functions' arguments, classes' members, the names of all else."""
    found: dict[str, object] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef):
            found[statement.name] = None if statement.decorator_list else arguments(statement)  # None: a property
        elif isinstance(statement, ast.ClassDef) and "TypedDict" not in map(ast.unparse, statement.bases):
            found[statement.name] = members(statement.body)
        elif isinstance(statement, ast.AnnAssign):
            found[ast.unparse(statement.target)] = None
    return found


def compiled(owner: object) -> dict[str, object]:
    """The same of the extension, whose functions begin their docstrings with their signature."""
    found: dict[str, object] = {}
    for name, value in vars(owner).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, type):
            found[name] = compiled(value)
        elif isinstance(value, property):
            found[name] = None
        elif callable(value):
            signature = next(line for line in value.__doc__.splitlines() if line.startswith(f"{name}("))
            (function,) = ast.parse(f"def {signature}: ...").body
            found[name] = arguments(function)
    return found


def test_the_stub_of_the_extension_is_complete():
    stub = members(ast.parse(STUB.read_text()).body)
    assert set(stub) > {"UNetPlan", "CudaPlan", "stft", "build_info"}
    assert stub == compiled(_C)


def test_public_names_are_there():
    assert len(set(pyunetsep.__all__)) == len(pyunetsep.__all__)
    assert set(errors.__all__) <= set(pyunetsep.__all__) <= set(dir(pyunetsep))
    for name in pyunetsep.__all__:
        value = getattr(pyunetsep, name)
        assert not isinstance(value, types.ModuleType), f"{name} is hidden by a module of that name"
    with pytest.raises(AttributeError, match="module 'pyunetsep' has no attribute 'nonsense'"):
        pyunetsep.nonsense  # noqa: B018
    assert (Path(pyunetsep.__file__).parent / "py.typed").is_file()


PROGRAM = """
from pathlib import Path

import numpy as np
import torch

import pyunetsep
from pyunetsep import PRESETS, Separator, SeparatorConfig, UNet, UNetPlan, separate
from pyunetsep.errors import AudioFileError

stems = separate(np.zeros((100, 2), np.float32), 44_100, stem=["vocals"])
vocals: object = stems["vocals"]
separator = Separator.from_pretrained("jansson2017", config=SeparatorConfig(overlap=0.5))
for result in separator.separate_files([Path("a.wav"), "b.wav"], "stems", container="flac"):
    seconds: float = result.duration_s
    written: list[Path] = list(result.outputs.values())
try:
    peaks: dict[str, float] = separator.separate_file("song.wav").peaks
except (AudioFileError, pyunetsep.InvalidAudioError) as error:
    message: str = str(error)
network = UNet(PRESETS["jansson2017"].unet).eval()
mask: torch.Tensor = network(torch.zeros(1, 1, 512, 128))
mask = UNetPlan(network, bins=512, frames=128)(mask)
files: list[Path] = [exported.path for exported in pyunetsep.export_onnx("jansson2017", "networks")]
pyunetsep.train(pyunetsep.TrainingConfig(data=("songs",)), "runs/mine")

pyunetsep.nonsense  # error: Module has no attribute "nonsense"
separate(np.zeros(1), "44100")  # error: Argument 2 to "separate" has incompatible type "str"; expected "int"
separator.separate_file(1)  # error: Argument 1 to "separate_file" of "Separator" has incompatible type "int"
separator.sperate()  # error: "Separator" has no attribute "sperate"
UNet(PRESETS["spleeter"])  # error: Argument 1 to "UNet" has incompatible type "ModelConfig"; expected "UNetConfig"
"""


def problems(folder: Path, program: str, *options: str, **environment: str) -> list[str]:
    """What mypy in strict mode says of a program: "line: error: ..."."""
    pytest.importorskip("mypy")
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-codes", *options]
    done = subprocess.run(
        [*command, f"--cache-dir={folder / 'cache'}", "program.py"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1) and not done.stderr, done.stderr or done.stdout
    return [line.removeprefix("program.py:") for line in done.stdout.splitlines()]


def check_program(said: list[str]) -> None:
    """Errors stand where the program's comments want them, and nowhere else."""
    wanted = {i: line.split("# ")[1] for i, line in enumerate(PROGRAM.splitlines(), 1) if "# error: " in line}
    found = {int(line.split(":")[0]): line.split(": ", 1)[1] for line in said}
    assert set(found) == set(wanted), said
    for line, message in wanted.items():
        assert found[line].startswith(message)


@needs_source_tree
def test_type_checkers_see_what_public_names_are(tmp_path):
    """Without torch's own types, of which mypy reads for half a minute: the slow test below has them."""
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n[mypy-torch.*]\nfollow_imports = skip\n"
    )
    names = pyunetsep.__all__
    revealed = "".join(f"reveal_type({name})\n" for name in names)
    program = f"from pyunetsep import {', '.join(names)}\n{revealed}"
    said = problems(tmp_path, program, "--config-file=mypy.ini", MYPYPATH=str(ROOT))
    assert len(said) == len(names)
    for name, line in zip(names, said, strict=True):
        kind = re.search(r'note: Revealed type is "(.*)"', line)
        assert kind and kind[1] not in ("Any", "object"), f"{name}: {line}"


# ---- distributions


def tracked(*folders: str) -> set[str]:
    """The files that Git knows in these folders."""
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("needs a Git checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@needs_source_tree
def test_a_source_distribution_holds_what_git_does(tmp_path):
    pytest.importorskip("setuptools")
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (listing,) = tmp_path.glob("*/SOURCES.txt")
    sources = set(listing.read_text().splitlines())
    for_checkouts = {".gitignore", ".ci/run"}
    assert tracked() - for_checkouts <= sources
    own = {name for name in sources if not Path(name).is_absolute()}
    assert {Path(name).parts[0] for name in own if len(Path(name).parts) > 1} <= {
        "benchmarks", "csrc", "docs", "examples", "pyunetsep", "tests",
    }  # fmt: skip
    assert not [name for name in own if Path(name).suffix in (".so", ".pyd", ".pyc", ".onnx")]
    assert sum((ROOT / name).stat().st_size for name in own) < 64 * 2**20  # of which the weights are 39


def docker_ignores(name: str) -> bool:
    """Whether .dockerignore keeps a file out: the last pattern that matches it, or a folder of it, decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line.startswith("#") and any(
            fnmatchcase(str(path), pattern) for path in (Path(name), *Path(name).parents)
        ):
            ignored = not line.startswith("!")
    return ignored


@needs_source_tree
def test_docker_gets_what_the_package_is_built_of():
    needed = tracked("csrc", "pyunetsep", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py")
    assert not [name for name in needed if docker_ignores(name)]
    for name in ("runs/mine/model.safetensors", ".venv/bin/python", "build/x.o", "docs/images/speed.png", ".git/HEAD",
                 "pyunetsep/_C.cpython-311-x86_64-linux-gnu.so", "pyunetsep/cli/__pycache__/x.pyc", "stems/a.wav",
                 "tests/tiny.py", "song.wav"):  # fmt: skip
        assert docker_ignores(name), name


@pytest.mark.slow
@needs_source_tree
def test_a_source_distribution_installs_and_separates(tmp_path):
    """Built by `python -m build`, installed by pip into an environment of its own beside the torch that is here."""
    pytest.importorskip("build")
    site = Path(torch.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (archive,) = tmp_path.glob("pyunetsep-*.tar.gz")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (python,) = (tmp_path / "venv").glob("bin/python")
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "torch-and-others.pth").write_text(f"{site}\n")  # as a folder: of its own .pth files none counts
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYUNETSEP"))},
        **{"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), "PYUNETSEP_CUDA": "OFF"},
    }

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    run(python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--ignore-installed", archive)
    where = run(python, "-c", "import pyunetsep; print(pyunetsep.__file__)")
    assert where.strip() == str(packages / "pyunetsep" / "__init__.py")
    installed = {str(path.relative_to(packages)) for path in (packages / "pyunetsep").rglob("*")}
    assert tracked("pyunetsep") <= installed

    wave = noise(2, 44_100)
    soundfile.write(tmp_path / "song.wav", wave.T.numpy(), 44_100, subtype="FLOAT")
    (command,) = (tmp_path / "venv").glob("bin/pyunetsep")
    run(command, "separate", "song.wav", "--model", "jansson2017", "--offline")
    vocals, accompaniment = (
        soundfile.read(tmp_path / "stems" / "song" / f"{stem}.wav", dtype="float32")[0]
        for stem in ("vocals", "accompaniment")
    )
    np.testing.assert_allclose(vocals + accompaniment, wave.T, atol=1e-6)
    assert min(np.abs(vocals).max(), np.abs(accompaniment).max()) > 0.02

    check_program(problems(tmp_path, PROGRAM, f"--python-executable={python}", "--config-file="))
