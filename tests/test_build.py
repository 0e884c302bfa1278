"""The build's own logic: what it refuses, and what it writes into a wheel."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.compile_report import architectures, compile_report, demangled, latest_build, parse

ROOT = Path(__file__).parents[1]
TORCH_RELEASE = ".".join(torch.__version__.split(".")[:2])

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")


def without_nvcc() -> dict[str, str]:
    """This environment, but for the folders that hold an nvcc."""
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if not shutil.which("nvcc", path=folder)]
    hidden = {name: value for name, value in os.environ.items() if not name.startswith("CUDA")}
    return {**hidden, "PATH": os.pathsep.join(path)}


def configure(folder: Path, **options: str) -> subprocess.CompletedProcess:
    if not shutil.which("cmake", path=without_nvcc()["PATH"]):
        pytest.skip("needs cmake")
    settings = [f"-D{name}={value}" for name, value in options.items()]
    command = ["cmake", "-S", ROOT, "-B", folder, *settings]
    return subprocess.run(command, env=without_nvcc(), capture_output=True, text=True)


@pytest.fixture
def setup_script() -> dict:
    """What setup.py defines."""
    pytest.importorskip("setuptools")
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


def test_an_unknown_cuda_mode_stops_the_build(tmp_path):
    answer = configure(tmp_path, PYUNETSEP_CUDA="bogus")
    assert answer.returncode != 0
    assert "PYUNETSEP_CUDA: got 'bogus', wants AUTO, ON or OFF" in answer.stderr


def test_cuda_without_nvcc_stops_the_build(tmp_path):
    answer = configure(tmp_path, PYUNETSEP_CUDA="ON")
    assert answer.returncode != 0
    assert "PYUNETSEP_CUDA=ON, but there is no working nvcc" in answer.stderr


def test_no_torch_stops_the_build_and_says_what_to_do(setup_script, monkeypatch):
    monkeypatch.setitem(setup_script["binding"].__globals__, "reveal_torch", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="Install torch first"):
        setup_script["binding"]()


def test_an_old_torch_stops_the_build(setup_script, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.1+cpu")
    with pytest.raises(SystemExit, match=r"pyunetsep needs torch 2.9 or later; this is 2.8.1\+cpu"):
        setup_script["binding"]()


def test_torch_is_found_behind_an_isolated_build(setup_script, monkeypatch):
    site = str(Path(torch.__file__).parents[1])
    isolated = ["overlay", *(entry for entry in sys.path if entry != site)]
    monkeypatch.setattr(sys, "path", isolated.copy())
    monkeypatch.setenv("PYTHONPATH", "overlay")
    setup_script["reveal_torch"]()
    assert site in sys.path
    assert sys.path[: len(isolated)] == isolated, "the build's own packages must come first"


def test_a_binary_is_tied_to_its_torch(setup_script):
    assert f"torch=={TORCH_RELEASE}.*" in setup_script["binding"]()["install_requires"]


def test_sources_are_tied_to_no_torch(tmp_path):
    pytest.importorskip("setuptools")
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    assert "torch>=2.9" in (tmp_path / "pyunetsep.egg-info" / "requires.txt").read_text().splitlines()


def test_simd_levels_share_no_code():
    """The linker keeps one copy of an inline function, and one made for AVX-512 would crash other machines."""
    if not shutil.which("nm"):
        pytest.skip("needs nm")
    builds = sorted(ROOT.glob("build/kernels-*/kernels.json"), key=lambda path: path.stat().st_mtime)
    objects = list(builds[-1].parent.glob("CMakeFiles/pyunetsep_cpu_*.dir/csrc/cpu/*.o")) if builds else []
    if not objects:
        pytest.skip("needs a source tree that was built in place")
    for path in objects:
        symbols = subprocess.run(["nm", "--defined-only", path], check=True, capture_output=True, text=True).stdout
        shared = [line for line in symbols.splitlines() if line.split()[-2] in ("W", "V", "u")]
        assert not shared, f"{path.parts[-4]} {path.name}: {shared}"


PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 1024 bytes smem, 408 bytes cmem[0]
ptxas info    : Compile time = 22.781 ms
ptxas info    : Function properties for helper
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90'
ptxas info    : Function properties for _Z3badPf
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers, 24 bytes cumulative stack size, 376 bytes cmem[0]
"""


def test_what_ptxas_says_is_understood():
    good, helper, bad = parse("some.cu", PTXAS)
    assert (good.name, good.architecture, good.registers, good.shared_bytes) == ("_Z4goodPf", "sm_80", 46, 1024)
    assert (good.local_bytes, helper.local_bytes, bad.local_bytes) == (0, 8, 60)
    assert (helper.name, helper.architecture, helper.registers) == ("helper", "sm_80", None)
    assert (bad.name, bad.architecture, bad.registers) == ("_Z3badPf", "sm_90", 128)


def test_no_kernel_uses_local_memory():
    """Spills and arrays in local memory cost more than anything else that the compiler may do to a kernel."""
    try:
        folder = latest_build()
    except FileNotFoundError as error:
        if os.environ.get("PYUNETSEP_CUDA") == "ON":
            pytest.fail(f"PYUNETSEP_CUDA=ON: {error}")
        pytest.skip(str(error))
    report = compile_report(folder)
    kernels = {(compiled.source, compiled.name) for compiled in report if compiled.registers}
    assert {(*kernel, architecture) for kernel in kernels for architecture in architectures(folder)} == {
        (compiled.source, compiled.name, compiled.architecture) for compiled in report if compiled.registers
    }
    local = [compiled for compiled in report if compiled.local_bytes]
    names = demangled([compiled.name for compiled in local])
    lines = [f"{name} on {compiled.architecture}: {compiled.stack_bytes} bytes of stack, {compiled.spill_bytes} spilled"
             for compiled, name in zip(local, names, strict=True)]  # fmt: skip
    assert not lines, "\n".join(lines)


@pytest.mark.slow
def test_a_wheel_built_in_isolation(tmp_path):
    """From a fresh source distribution, as an installer does it: nothing of the source tree but what that holds."""
    subprocess.run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path], cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("pyunetsep-*.tar.gz")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, archive]
    subprocess.run(build, cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("pyunetsep-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = (content.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert any(name.startswith("pyunetsep/_C.") and not name.endswith(".pyi") for name in names)
    assert "pyunetsep/py.typed" in names
    assert f"Requires-Dist: torch=={TORCH_RELEASE}.*" in metadata.splitlines()
