"""Ray: the cluster that is there or a local one, and how its nodes are shared out among workers."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import DeviceError

# A cluster of our own keeps to itself: no statistics to Ray's makers, no reports of its inner life among our messages.
# What the user has set stays.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # lines that the driver leaves out: all
}
OBJECT_STORE_BYTES = 512 << 20  # a model goes through it, and rows; Ray's default is a third of the memory


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and what each has."""

    workers: int
    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, connected: as it is where the process has it already; to `address` or RAY_ADDRESS; or a local one that ends
    with the context.

    Raises:
        ImportError: Ray is not installed. DeviceError: there is no cluster at the address, or none can be started.
    """
    ray = imported()
    if ray.is_initialized():
        yield
        return
    here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if address or os.environ.get("RAY_ADDRESS"):
        here = {"address": address}
    with _environment(QUIET):
        with _handlers_kept(), _native_chatter_dropped():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
            except (OSError, RuntimeError, ValueError) as error:
                raise DeviceError(f"no Ray {f'at {address}' if address else 'here'}: {error}") from None
        try:
            yield
        finally:
            ray.shutdown()


def imported() -> Any:
    """Ray, with its Data part.

    Raises:
        ImportError: says what to install.
    """
    try:
        with _environment(QUIET):  # some of it is read at import
            import ray
            import ray.data
    except ImportError as error:
        raise ImportError(f"catalogues need Ray ({error}): pip install 'pyunetsep[ray]'") from None
    return ray


def nodes() -> list[Node]:
    """Of the cluster that Ray is connected to."""
    ray = imported()
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def shared_out(
    nodes: Sequence[Node], songs: int, *, device: str = "auto", workers: int | None = None, gpus: float | None = None
) -> Pool:
    """A pool of workers for so many songs that fits these nodes.

    Args:
        device: "auto" takes GPUs where there are any, "cpu" none, "cuda" wants them.
        workers: None is one a core, or one a GPU (or share of it).
        gpus: of each worker, a fraction shares one; None is 1, without GPUs 0.

    Each worker has as many cores, and threads, as all can have at once, on the nodes that they fit on: neither do they
    fight for cores, nor do cores stay idle beside few workers.

    Raises:
        DeviceError: GPUs are wanted and there are none, or no node has room for one worker. ValueError: arguments that
        do not fit each other or the nodes.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}; Ray chooses among GPUs")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    if gpus is None:
        gpus = 1.0 if device == "cuda" or (device == "auto" and any(node.gpus for node in nodes)) else 0.0
    if not (0 <= gpus <= 1 or (gpus > 1 and float(gpus).is_integer())):  # neither is NaN
        raise ValueError(f"gpus_per_worker must be from 0 to 1 or a whole number, got {gpus}")
    if (device == "cpu" and gpus) or (device == "cuda" and not gpus):
        raise ValueError(f"gpus_per_worker must be {'0' if gpus else 'above 0'} with device {device!r}, got {gpus:g}")

    def room(cpus: int) -> int:
        """For how many workers with so many cores."""
        return sum(
            int(min(node.cpus // cpus, node.gpus / gpus + 1e-9 if gpus else node.cpus)) for node in nodes
        )  # 1e-9: 1 / 0.1 ones of 0.1 are 10

    most = room(1)
    if not most:
        want = f"{gpus:g} GPU and a core" if gpus else "a core"
        raise DeviceError(f"no node of the Ray cluster has {want} for a worker: {_shown(nodes)}")
    if workers is not None and workers > most:
        raise ValueError(f"workers must be at most {most}, for which the Ray cluster has room, got {workers}")
    workers = min(workers or most, max(songs, 1))
    cpus = max(cpus for cpus in range(1, int(max(node.cpus for node in nodes)) + 1) if room(cpus) >= workers)
    return Pool(workers, cpus, gpus)


def _shown(nodes: Sequence[Node]) -> str:
    return "; ".join(f"{node.cpus:g} cores, {node.gpus:g} GPUs" for node in nodes) or "it has none"


@contextmanager
def quiet_execution() -> Iterator[None]:
    """Ray Data writes its log to Ray's files only, and not to the terminal as well."""
    consoles = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for those that are not set."""
    missing = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and ends the process without a chance to clean up."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:  # not one of C's
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _native_chatter_dropped() -> Iterator[None]:
    """Ray's C++ part tells standard error about its log level, in any case; what goes wrong comes as an exception."""
    with ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # there is no standard error
            yield
            return
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
