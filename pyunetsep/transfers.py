"""From main memory to a GPU and back: waves on streams of their own, both ways at once and beside the GPU's work."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .audio import Wave

T = TypeVar("T")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on its way to the device: whoever queues work there need not wait for it, nor for what came before."""
    pinned = tensor.device.type == "cpu" and device.type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)


class Transfers:
    """Copies to and from one device; where that is the CPU there is nothing to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.coming, self.going = _streams(device)

    def staged(self, wave: Wave | Tensor) -> Tensor:
        """The wave as a tensor that torch and `bring` can take: a copy, if it is an array or strided in memory."""
        pinned = self.device.type == "cuda"
        if isinstance(wave, Tensor):
            if wave.device.type != "cpu" or (wave.is_contiguous() and not pinned):
                return wave
            return torch.empty(wave.shape, dtype=wave.dtype, pin_memory=pinned).copy_(wave)
        dtype = torch.float64 if wave.dtype == np.float64 else torch.float32
        tensor = torch.empty(wave.shape, dtype=dtype, pin_memory=pinned)
        np.copyto(tensor.numpy(), wave)  # which also takes read-only arrays and negative strides
        return tensor

    def bring(self, wave: Tensor) -> Tensor:
        """The wave in the device's memory; what the current stream does next waits for it."""
        if wave.device.type != "cpu" or self.device.type != "cuda":
            return wave.to(self.device)
        with torch.cuda.stream(self.coming):
            wave = wave.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.coming)
        wave.record_stream(current)
        return wave

    def fetch(self, wave: Tensor, home: torch.device) -> Fetched:
        """Starts to copy what the current stream has computed to the device `home`."""
        if wave.device.type != "cuda" or home.type != "cpu":
            return Fetched(wave.to(home), None)
        self.going.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.going):
            there = torch.empty(wave.shape, dtype=wave.dtype, pin_memory=True).copy_(wave, non_blocking=True)
            wave.record_stream(self.going)
            return Fetched(there, self.going.record_event())


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """For all copies to and from a device: torch has 32 streams, and would hand out the same ones again."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class Fetched:
    """A wave on its way."""

    def __init__(self, wave: Tensor, arrival: torch.cuda.Event | None) -> None:
        self._wave, self._arrival = wave, arrival

    def wait(self) -> Tensor:
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._wave


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The items, each only when `depth` more have been asked for: with a GPU, their work has then begun."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
