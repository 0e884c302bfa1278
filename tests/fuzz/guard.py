"""One input through one target: within limits of memory and time, and in view of the process that watches."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # Windows: memory is not limited there
    resource = None  # type: ignore[assignment]

CORPUS = Path(__file__).parent / "corpus"
PACKAGE = Path(__file__).parents[2] / "pyunetsep"
MAX_INPUT_BYTES = 2**17


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one input may cost, beyond which it is a finding."""

    memory_bytes: int  # of address space beyond what was mapped before, whatever the input
    memory_per_byte: int  # and so many more for each byte of the input
    cpu_s: float  # of the processor, so that a busy machine is no finding; some hundred times what inputs usually take
    max_bytes: int  # of an input that a fuzzer makes

    def memory(self, size: int) -> int:
        """Bytes that an input of this size may take."""
        return self.memory_bytes + self.memory_per_byte * size


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of hostile input."""

    run: Callable[[bytes], None]  # returns if it accepts, raises one of `documented` if it refuses
    documented: tuple[type[Exception], ...]
    seeds: Callable[[], dict[str, bytes]]  # sound inputs, by name
    mutate: Callable[[bytes, random.Random], bytes]
    limits: Limits


def load(name: str) -> Target:
    """A target by its name, or by that of another module that has a `TARGET`."""
    if name in names():
        name = f"tests.fuzz.targets.{name}"
    target: Target = importlib.import_module(name).TARGET
    return target


def names() -> list[str]:
    """All targets."""
    return sorted(path.stem for path in (Path(__file__).parent / "targets").glob("[a-z]*.py"))


def corpus(name: str) -> dict[str, bytes]:
    """A target's committed inputs: seeds and past failures."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).glob("*"))}


class Wrong(AssertionError):
    """A target found an answer that contradicts itself."""


def must(condition: object, what: str) -> None:
    """Like `assert`, also under `python -O`."""
    if not condition:
        raise Wrong(what)


@contextlib.contextmanager
def within(limits: Limits, size: int) -> Iterator[None]:
    """Allocations beyond the limit fail; SIGPROF, which kills unless it is handled, comes when the time is over."""
    with _memory(limits.memory(size)):
        if not hasattr(signal, "setitimer"):
            yield
            return
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)


@contextlib.contextmanager
def _memory(allowed: int) -> Iterator[None]:
    if resource is None or sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def unlimited_memory() -> Iterator[None]:
    """Within `within`: to see whether it is the limit that makes the difference."""
    if resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _mapped_bytes() -> int:
    descriptor = os.open("/proc/self/statm", os.O_RDONLY)  # half the time of `open`
    try:
        return int(os.read(descriptor, 64).split()[0]) * mmap.PAGESIZE
    finally:
        os.close(descriptor)


def outcome(target: Target, data: bytes) -> str:
    """ "accepted", or the documented error with its name; whatever else there is leaves as it came."""
    try:
        with within(target.limits, len(data)):
            target.run(data)
    except target.documented as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


class Shared(ctypes.Structure):
    """What a fuzzing process tells of itself, in a file that it has in common with its parent and that outlives it."""

    _fields_ = (
        ("inputs", ctypes.c_uint64),
        ("accepted", ctypes.c_uint64),
        ("findings", ctypes.c_uint64),
        ("slowest_s", ctypes.c_double),
        ("size", ctypes.c_uint64),  # of the input at hand
        ("data", ctypes.c_char * MAX_INPUT_BYTES),
    )

    @classmethod
    def at(cls, path: Path) -> Shared:
        """The one in this file, which is made if it is not there."""
        with open(path, "a+b") as file:
            if os.fstat(file.fileno()).st_size < ctypes.sizeof(cls):
                file.truncate(ctypes.sizeof(cls))
            return cls.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(cls)))

    @property
    def input(self) -> bytes:
        return ctypes.string_at(ctypes.addressof(self) + Shared.data.offset, self.size)

    @input.setter
    def input(self, data: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self) + Shared.data.offset, data, len(data))
        self.size = len(data)


class Guarded:
    """A target that a driver calls: it counts, writes down what goes wrong, and returns what came of the input."""

    def __init__(self, target: Target, shared: Shared, findings: Path) -> None:
        self.target, self.shared, self.findings = target, shared, findings

    def __call__(self, data: bytes) -> str:
        shared, began = self.shared, time.process_time()
        shared.input = data
        try:
            came = outcome(self.target, data)
            shared.accepted += came == "accepted"
        except (Exception, SystemExit) as error:
            came = f"finding {self._write_down(data, error)}"
        shared.slowest_s = max(shared.slowest_s, time.process_time() - began)
        shared.inputs += 1
        return came

    def _write_down(self, data: bytes, error: BaseException) -> str:
        """The shortest input of each place and kind of error."""
        import traceback

        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        own = [frame for frame in frames if PACKAGE in Path(frame.filename).parents] or frames
        slug = f"{type(error).__name__}-{Path(own[-1].filename).stem}-{own[-1].name.strip('<>')}-{own[-1].lineno}"
        path = self.findings / slug
        if not path.exists():
            self.shared.findings += 1
        if not path.exists() or len(data) < path.stat().st_size:
            self.findings.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            report = "".join(traceback.format_exception(error))
            path.with_name(f"{slug}.txt").write_text(report, encoding="utf-8", errors="backslashreplace")
        return slug
