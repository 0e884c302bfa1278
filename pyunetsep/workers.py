"""Several songs at a time, so that decoding, networks and encoding overlap and no core is idle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T, threading.Event], R], items: Sequence[T], *, workers: int) -> Iterator[R]:
    """work(item, stop) of each item, as they are done, the threads that torch has divided among `workers`.

    An error ends the iteration. Then, and when it is left, items that have not begun are not begun, `stop` is set for
    the others, and they are waited for.
    """
    stop = threading.Event()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "song", torch.set_num_threads, (max(1, threads // workers),))
    try:
        for done in as_completed([pool.submit(work, item, stop) for item in items]):
            yield done.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # what new threads begin with


class AnyOf:
    """Set as soon as one of some events is."""

    def __init__(self, *events: threading.Event | None) -> None:
        self.events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        return any(event.is_set() for event in self.events)
