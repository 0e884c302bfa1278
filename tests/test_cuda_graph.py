"""Which calls become graphs, and what a graph gives back."""

import threading
import warnings

import pytest
import torch

from pyunetsep.cuda_graph import CudaGraphs


def scaled(x, y=None, *, factor=2.0):
    return x * factor + (0 if y is None else y), None


def other(x, y=None, *, factor=2.0):
    return scaled(x, y, factor=factor)


class Counted(CudaGraphs):
    """Graphs that are none, so that what is captured can be seen without a GPU."""

    def __init__(self, **options):
        super().__init__(torch.device("cuda"), **options)
        self.captured = []

    def _capture(self, function, tensors, flags):
        self.captured.append((function, tuple(x if x is None else tuple(x.shape) for x in tensors), *flags.values()))
        return lambda *tensors: function(*tensors, **flags)


def test_on_a_cpu_a_call_is_a_call():
    graphs = CudaGraphs(torch.device("cpu"))
    for _ in range(3):
        result, nothing = graphs(scaled, torch.ones(2), factor=3.0)
        assert result.tolist() == [3, 3] and nothing is None
    assert not graphs.graphs


def test_the_second_call_of_a_kind_is_captured():
    graphs = Counted()
    x, y = torch.ones(2), torch.ones(3)
    for tensors, flags in [((x,), {}), ((y,), {}), ((x, x), {}), ((x, None), {}), ((x,), {"factor": 3.0})] * 3:
        assert torch.equal(graphs(scaled, *tensors, **flags)[0], scaled(*tensors, **flags)[0])
    for _ in range(2):
        graphs(other, x)
        graphs(scaled, x.double())
    assert graphs.captured == [
        (scaled, ((2,),)),
        (scaled, ((3,),)),
        (scaled, ((2,), (2,))),
        (scaled, ((2,), None)),
        (scaled, ((2,),), 3.0),
        (other, ((2,),)),
        (scaled, ((2,),)),
    ]


def test_the_kind_that_was_called_longest_ago_goes_first():
    graphs = Counted(limit=2)
    a, b, c = (torch.ones(size) for size in (1, 2, 3))
    for x in (a, a, b, b, a, c, c):  # c drives b out
        graphs(scaled, x)
    assert len(graphs.graphs) == 2 and len(graphs.captured) == 3
    graphs(scaled, a)
    assert len(graphs.captured) == 3
    graphs(scaled, b)
    graphs(scaled, b)
    assert len(graphs.captured) == 4


class Uncapturable(Counted):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def _capture(self, function, tensors, flags):
        raise self.error


def test_where_nothing_can_be_captured_there_are_no_graphs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphs = Uncapturable(torch.OutOfMemoryError("CUDA out of memory"))
        for _ in range(3):
            assert graphs(scaled, torch.ones(1))[0].tolist() == [2]
        assert not graphs.graphs and not graphs.limit
    graphs = Uncapturable(RuntimeError("operation not permitted when stream is capturing"))
    assert graphs(scaled, torch.ones(1))[0].tolist() == [2]
    with pytest.warns(RuntimeWarning, match="goes on without CUDA graphs, slower: operation not permitted"):
        assert graphs(scaled, torch.ones(1))[0].tolist() == [2]
    assert not graphs.graphs and not graphs.limit


def test_stopped_graphs_are_freed():
    graphs = Counted()
    graphs(scaled, torch.ones(1))
    graphs(scaled, torch.ones(1))
    graphs.stop()
    assert not graphs.graphs
    assert graphs(scaled, torch.ones(1))[0].tolist() == [2]
    assert len(graphs.captured) == 1


def test_a_call_that_fails_leaves_the_graphs_usable():
    def failing(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphs = Counted()
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            graphs(failing, torch.ones(1))
    assert graphs(scaled, torch.ones(1))[0].tolist() == [2]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("limit", [1, 8])
def test_graphs_give_what_the_function_gives(device, limit):
    graphs = CudaGraphs(device, limit=limit)
    made = []
    for i in range(4):
        for size in (5, 7):
            for y in (None, torch.arange(size, device=device) * 0.5):
                x = torch.full((2, size), float(i), device=device)
                # with a strided tensor, as segments are
                made.append((graphs(scaled, x[:1], y, factor=i % 2 + 1.0)[0], x[:1], y, i % 2 + 1.0))
    for result, x, y, factor in made:  # none was written over by a later call
        assert torch.equal(result, scaled(x, y, factor=factor)[0])
    assert len(graphs.graphs) <= limit
    graphs.stop()
    assert torch.equal(graphs(scaled, x)[0], scaled(x)[0])


@pytest.mark.filterwarnings("error")  # so that a capture that fails is seen
def test_threads_share_graphs(device):
    graphs, wrong = CudaGraphs(device), []

    def work(seed):
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(stream), torch.inference_mode():
            for i in range(50):
                x = torch.full((1000 + i % 2,), float(seed * 100 + i), device=device)
                if not torch.equal(graphs(scaled, x)[0], 2 * x):
                    wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
