"""Functions of tensors as CUDA graphs: all of a call's kernels in one launch."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor | None, ...]
Function = Callable[..., Tensors]

_capturing = threading.Lock()  # CUDA captures one graph at a time in a process


class CudaGraphs:
    """Calls functions of tensors, on a GPU from the second call of a kind on as a graph.

    A kind is a function, its flags, and the tensors' shapes and dtypes. The first call of a kind just runs: it is the
    warm-up that a capture needs, and many songs' last segments never come again. Threads may share the graphs. Results
    are the caller's own. Functions must be hashable and wait for nothing on the GPU. What they change are tensors, in
    place; whatever else they know is the same at each call.
    """

    def __init__(self, device: torch.device, *, limit: int = 8) -> None:
        """`limit`: so many kinds are kept, those that were called last."""
        self.device, self.limit = device, limit if device.type == "cuda" else 0
        self.graphs: OrderedDict[Hashable, Graph | None] = OrderedDict()  # None: was called once
        self.stream: torch.cuda.Stream | None = None  # of all graphs, so that no two run at once
        self.pool: Any = None  # which is why they may share their memory
        self.lock = threading.Lock()

    def __call__(self, function: Function, *tensors: Tensor | None, **flags: Hashable) -> Tensors:
        """function(*tensors, **flags)"""
        like = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors)
        kind = (function, like, tuple(flags.items()))
        with self.lock:
            graph = self._graph(kind, function, tensors, flags)
            if graph is not None:
                return graph(*tensors)
        return function(*tensors, **flags)

    def stop(self) -> None:
        """Frees the graphs' memory, and makes no more of them."""
        with self.lock:
            self._stop()

    def _graph(self, kind: Hashable, function: Function, tensors: Tensors, flags: dict[str, Any]) -> Graph | None:
        if not self.limit:
            return None
        graph = None
        if kind in self.graphs:
            graph = self.graphs.pop(kind)
            if graph is None:
                try:
                    graph = self._capture(function, tensors, flags)
                except RuntimeError as error:  # whatever is wrong with the function itself, a plain call will tell
                    self._stop()
                    if not isinstance(error, torch.OutOfMemoryError):  # which comes on top of what plain calls take
                        warnings.warn(f"goes on without CUDA graphs, slower: {error}", RuntimeWarning, stacklevel=3)
                    return None
        self.graphs[kind] = graph
        if len(self.graphs) > self.limit:
            _, oldest = self.graphs.popitem(last=False)
            if oldest is not None:
                self._wait()
        return graph

    def _capture(self, function: Function, tensors: Tensors, flags: dict[str, Any]) -> Graph:
        if self.stream is None:
            # Streams come from pools, and may come again; of this priority nobody else asks for one.
            self.stream = torch.cuda.Stream(self.device, priority=-1)
        if not any(self.graphs.values()):  # a pool dies with its last graph
            self.pool = torch.cuda.graph_pool_handle()
        return Graph(function, tensors, flags, self.stream, self.pool)

    def _stop(self) -> None:
        self._wait()
        self.graphs.clear()
        self.limit = 0

    def _wait(self) -> None:
        """Until no graph runs that may be about to be freed."""
        if self.stream is not None:
            self.stream.synchronize()


class Graph:
    """One captured call. Its tensors are copied in and its results out, on the stream it was captured on."""

    def __init__(
        self, function: Function, tensors: Tensors, flags: dict[str, Any], stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self.function = function  # keeps the constants alive that the graph reads
        self.stream, self.graph = stream, torch.cuda.CUDAGraph()
        with _capturing, torch.cuda.stream(stream):
            self.inputs = tuple(
                None if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
                for tensor in tensors
            )
            # other threads may go on allocating memory
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs, **flags)

    def __call__(self, *tensors: Tensor | None) -> Tensors:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for static, tensor in zip(self.inputs, tensors, strict=True):
                if static is not None and tensor is not None:
                    static.copy_(tensor)
            self.graph.replay()
            results = tuple(None if output is None else output.clone() for output in self.outputs)
        current.wait_stream(self.stream)
        for result in results:
            if result is not None:
                result.record_stream(current)  # its memory is the graphs' stream's, and waits for this one's work
        return results
