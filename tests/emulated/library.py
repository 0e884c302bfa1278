"""Builds csrc/cuda/*.cu, as they are, for the host (csrc/emulation), and calls them the way a test should.

Shows indexing, bounds, barriers and arithmetic; not speed, and no races between blocks.
"""

import contextlib
import ctypes
import hashlib
import itertools
import mmap
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
CSRC = Path(os.environ.get("PYUNETSEP_EMULATED_SOURCES", ROOT / "csrc"))  # another tree: `make mutate`
EXPORTS = Path(__file__).parent
BUILD = CSRC.parent / "build" / "emulated"
COMPILER = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++") or ""]
FLAGS = ["-std=c++20", "-O2", "-march=native", "-ffp-contract=fast", "-fPIC", "-Wall", "-Werror"]
FLAGS += ["-Wno-unknown-pragmas", "-fno-strict-aliasing"]
EMULATION = ["-DPYUNETSEP_EMULATION", "-fsanitize=bounds", "-fno-sanitize-recover=bounds"]  # see emulation.cpp's end
GUARD = 64  # elements before and after each array
ORDERS = tuple(itertools.product((0, 1), repeat=2))  # of threads and of copies

Number = int | float


def with_headers(source: Path) -> list[Path]:
    """The source and what it includes of ours."""
    found = [source]
    for path in found:
        for name in re.findall(r'^ *#include "(.+)"', path.read_text(), re.MULTILINE):
            header = next(folder / name for folder in (path.parent, CSRC) if (folder / name).is_file()).resolve()
            if header not in found:
                found.append(header)
    return found


def key_of(*parts: bytes | str) -> str:
    return hashlib.sha256(repr((COMPILER, FLAGS, parts)).encode()).hexdigest()[:12]


def build(target: Path, *arguments: str | Path) -> Path:
    if not target.exists():
        building = target.with_suffix(f".{os.getpid()}{target.suffix}")
        subprocess.run([*COMPILER, *arguments, "-o", building], check=True)
        building.replace(target)
    return target


def compile_objects(sources: Iterable[Path], *flags: str) -> list[Path]:
    """Compiles those that have changed."""

    def compile_one(source: Path) -> Path:
        key = key_of(*flags, *(path.read_bytes() for path in with_headers(source)))
        return build(BUILD / f"{source.name}-{key}.o", *FLAGS, f"-I{CSRC}", *flags, "-c", "-x", "c++", source)

    BUILD.mkdir(parents=True, exist_ok=True)
    with alone(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While tests run in several processes, one compiles, and the others find what it has made."""
    import fcntl  # not on Windows, where nothing is compiled

    with open(BUILD / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def link(objects: Iterable[Path], *options: str) -> ctypes.CDLL:
    """A shared library in which nothing is missing."""
    objects = list(objects)
    whole = ["-shared", *(["-Wl,-z,defs"] if sys.platform == "linux" else [])]  # elsewhere linkers insist anyway
    target = BUILD / f"kernels-{key_of(*options, *(path.name for path in objects))}.so"
    return ctypes.CDLL(str(build(target, *whole, *objects, *options)))


def compile_library(sources: Iterable[Path], *flags: str) -> ctypes.CDLL:
    return link(compile_objects(sources, *flags))


def kernel_objects() -> list[Path]:
    sources = [*sorted((CSRC / "cuda").glob("*.c*")), CSRC / "emulation" / "emulation.cpp"]
    wanted = [path for path in sources if path.name != "unavailable.cpp" and path.suffix in (".cu", ".cpp")]
    return compile_objects(wanted, *EMULATION)


def emulated_library() -> ctypes.CDLL:
    """All kernels with their exports."""
    return link([*kernel_objects(), *compile_objects(sorted(EXPORTS.glob("exports*.cpp")), *EMULATION)])


def emulated_training_ops() -> ctypes.CDLL:
    """Registers torch.ops.pyunetsep_emulated.training_*: the ops as they are on a GPU, for tensors on the CPU."""
    sources = [*(CSRC / f"{name}.cpp" for name in ("training_ops", "training_loss", "training_cuda", "names"))]
    sources += [EXPORTS / "training_ops.cpp", EXPORTS / "exports_emulation.cpp"]
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    version = f"-DBUILT_FOR={torch.__version__}"  # another torch in the same place is another library
    ours = compile_objects(sources, *EMULATION, *includes, version)
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    return link([*kernel_objects(), *ours], *libraries)


class Emulated:
    """Calls functions of the library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def call(self, name: str, *arguments: Tensor | Number | ctypes.c_void_p | None) -> None:
        """Calls `const char* name(...)`: tensors go as pointers, ints as int64_t, floats as double.

        Raises:
            RuntimeError: with the message that came back.
        """
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p

        def as_c(value: Tensor | Number | ctypes.c_void_p | None) -> object:
            if isinstance(value, Tensor):
                return ctypes.c_void_p(value.data_ptr())
            if isinstance(value, int):
                return ctypes.c_int64(value)
            return ctypes.c_double(value) if isinstance(value, float) else value

        message = function(*map(as_c, arguments))
        if message is not None:
            raise RuntimeError(message.decode())

    def run(
        self,
        name: str,
        inputs: Iterable[Tensor | None],
        outputs: Iterable[tuple[tuple[int, ...], torch.dtype]],
        *numbers: Number,
        orders: Iterable[tuple[int, int]] = ORDERS,
    ) -> list[Tensor]:
        """Calls name(*inputs, *outputs, *numbers) in each order of threads and of copies.

        Inputs lie behind NaNs, so that a read there shows in the result, and before a page that is no memory, so that a
        read there is an error; an output starts as NaN between sevens that must still be there (zeros are what kernels
        fill up with). Returns the outputs, whose bits are the same in each order.
        """
        fenced = [None if x is None else before_no_memory(x) for x in inputs]
        results: list[list[Tensor]] = []
        for reversed_, early_copies in orders:
            padded = [guarded(torch.full(shape, torch.nan, dtype=dtype), 7.0) for shape, dtype in outputs]
            self.library.set_order(reversed_, early_copies)
            self.call(name, *fenced, *(x for x, _ in padded), *numbers)
            for _, whole in padded:
                assert (whole[:GUARD] == 7).all(), "wrote before the output"
                assert (whole[-GUARD:] == 7).all(), "wrote past the output"
            results.append([x for x, _ in padded])
        for other in results[1:]:
            for x, y in zip(results[0], other, strict=True):
                assert torch.equal(x, y), "depends on the order of threads or copies, or left output unwritten"
        return results[0]


def before_no_memory(x: Tensor) -> Tensor:
    """A contiguous copy at a multiple of 128 bytes, NaNs before it, and within 127 bytes behind it no memory."""
    used = (GUARD + x.numel()) * x.element_size() + 128
    size = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    if sys.platform == "linux":  # the mode is that of PROT_NONE
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(whole.data_ptr() + size), ctypes.c_size_t(mmap.PAGESIZE), 0)
    whole = whole[:size].view(x.dtype).fill_(torch.nan if x.is_floating_point() else -1)
    first = (size - x.numel() * x.element_size()) // 128 * 128 // x.element_size()
    return whole[first : first + x.numel()].view(x.shape).copy_(x)


def guarded(x: Tensor, value: float = torch.nan) -> tuple[Tensor, Tensor]:
    """A contiguous copy at a multiple of 128 bytes, and the larger array it lies in the middle of."""
    value = value if x.is_floating_point() else -1
    whole = torch.full((x.numel() + 2 * GUARD + 128 // x.element_size(),), value, dtype=x.dtype)
    skip = -(whole.data_ptr() + GUARD * x.element_size()) % 128 // x.element_size()
    whole = whole[skip : skip + x.numel() + 2 * GUARD]
    inner = whole[GUARD : GUARD + x.numel()].view(x.shape)
    return inner.copy_(x), whole
