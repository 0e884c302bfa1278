"""Builds pyunetsep's extension; everything else about the package is in pyproject.toml.

CMake compiles the kernels, which know no torch; torch's own rules compile the binding around them. The binding must be
compiled against the very torch it will run with, so torch is not a build requirement (pip would fetch another one for
an isolated build) but looked up in the environment that the package is installed into.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
MINIMUM_TORCH = (2, 9)
DEPENDENCIES = [
    "numpy>=1.26",
    "pip",
    "platformdirs>=4",
    "safetensors>=0.4",
    "soundfile>=0.13",
    "soxr>=0.5",
    "tomli>=2; python_version < '3.11'",
    "tqdm>=4.60",
]
# The commands whose outcome is tied to one torch. The others (sdist and its egg_info) only describe the sources.
BUILD_COMMANDS = {"bdist_wheel", "build", "build_ext", "develop", "dist_info", "editable_wheel", "install"}

NO_TORCH = """pyunetsep is compiled against the torch that it will run with, and this environment has none.
Install torch first (`pip install torch`), then run `pip install .` again. If torch is there but the installer hides it
from the build, put setuptools, cmake and ninja next to it and add --no-build-isolation."""

FIND_TORCH = """import importlib.util, json, sys
spec = importlib.util.find_spec("torch")
print(json.dumps([sys.version_info[:2], bool(spec and spec.origin), sys.path]))"""


def reveal_torch() -> None:
    """Append the import path of the environment's torch, which an isolated build hides.

    At the end of `sys.path`, so that the build's own setuptools comes first.
    """
    pythons = [Path(sys.executable)]
    if "VIRTUAL_ENV" in os.environ:  # for tools that build in an environment of their own, where sys.executable is its
        pythons.append(Path(os.environ["VIRTUAL_ENV"], "Scripts/python.exe" if os.name == "nt" else "bin/python"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for python in filter(Path.exists, pythons):
        answer = subprocess.run([python, "-c", FIND_TORCH], env=environment, capture_output=True, text=True)
        if answer.returncode != 0:
            continue
        version, found, path = json.loads(answer.stdout.splitlines()[-1])
        if found and version == list(sys.version_info[:2]):
            sys.path += [entry for entry in path if entry and entry not in sys.path]
            return


def build_kernels() -> dict[str, Any]:
    """Compile the static library of kernels and return what CMake says of it, see the end of CMakeLists.txt."""
    names = ("PYUNETSEP_CUDA", "PYUNETSEP_CUDA_ARCHS", "PYUNETSEP_SANITIZE")
    options = {name: os.environ[name] for name in names if os.environ.get(name)}
    # CMake remembers the compilers it found; other compilers or options get another folder, so nothing stale decides.
    found = [shutil.which("nvcc"), *(os.environ.get(name) for name in ("CUDACXX", "CUDAHOSTCXX", "CXX", "CXXFLAGS"))]
    key = hashlib.sha256(json.dumps([options, found]).encode()).hexdigest()[:8]
    folder = ROOT / "build" / f"kernels-{key}"
    settings = [f"-D{name}={value}" for name, value in options.items()]
    ninja = shutil.which("ninja")
    if not shutil.which("cmake") or not ninja:
        sys.exit("pyunetsep needs cmake and ninja to build: `pip install cmake ninja`")
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    try:
        subprocess.run(
            ["cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *settings, "-S", ROOT, "-B", folder], check=True
        )
        subprocess.run(["cmake", "--build", folder, "--parallel", jobs], check=True)
    except subprocess.CalledProcessError:
        sys.exit("pyunetsep's kernels did not build: see the message of CMake or the compiler above")
    return json.loads((folder / "kernels.json").read_text())


def binding() -> dict[str, Any]:
    """The arguments of `setup` that make the extension, and the requirement that ties it to this torch."""
    reveal_torch()
    try:
        import torch
    except ModuleNotFoundError:
        sys.exit(NO_TORCH)
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < MINIMUM_TORCH:
        sys.exit(f"pyunetsep needs torch {'.'.join(map(str, MINIMUM_TORCH))} or later; this is {torch.__version__}")

    class BuildBinding(BuildExtension):
        """Builds the kernels, then the binding."""

        def finalize_options(self) -> None:
            super().finalize_options()
            # A folder of objects for each torch, kept between builds: Ninja compiles what changed. setuptools alone
            # would compare the sources' dates, and keep a binding that was linked for an older torch.
            self.build_temp = f"build/binding-{sys.implementation.cache_tag}-torch{torch.__version__}"
            self.force = True

        def build_extensions(self) -> None:
            kernels = build_kernels()
            for extension in self.extensions:
                extension.extra_objects += kernels["libraries"]
                extension.define_macros += [
                    (f"PYUNETSEP_{fact.upper()}", f'"{kernels[fact]}"')
                    for fact in ("cuda_toolkit", "cuda_architectures")
                ]
            super().build_extensions()

    if sys.platform == "win32":
        compile_args, link_args, libraries = ["/O2", "/std:c++20", "/openmp"], [], []
    elif sys.platform == "darwin":
        compile_args, link_args, libraries = ["-O2", "-g0", "-std=c++20"], [], []
    else:
        # -fopenmp is for the compiler alone: the symbols come from the OpenMP library that torch has loaded. Nothing of
        # the static libraries is exported, so that two CUDA runtimes in one process keep apart.
        compile_args = ["-O2", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden"]
        link_args, libraries = ["-Wl,--exclude-libs,ALL"], ["rt", "dl", "pthread"]
        if os.environ.get("PYUNETSEP_SANITIZE") == "ON":  # for `make sanitize`, with the flags of CMakeLists.txt
            compile_args += ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-omit-frame-pointer", "-g"]
            link_args.append("-fsanitize=address,undefined")
    return {
        "install_requires": [f"torch=={release[0]}.{release[1]}.*", *DEPENDENCIES],
        "ext_modules": [
            CppExtension(
                "pyunetsep._C",
                sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.cpp")),
                extra_compile_args=compile_args,
                extra_link_args=link_args,
                libraries=libraries,
            )
        ],
        "cmdclass": {"build_ext": BuildBinding},
    }


if __name__ == "__main__":
    # Tools that pip put next to this Python count, also where its environment is not activated.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    if BUILD_COMMANDS.intersection(sys.argv):
        setup(**binding())
    else:
        setup(install_requires=[f"torch>={'.'.join(map(str, MINIMUM_TORCH))}", *DEPENDENCIES])
