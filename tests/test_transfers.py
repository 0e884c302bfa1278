"""Waves to and from a device, and work that is begun ahead."""

import numpy as np
import pytest
import torch

from pyunetsep.transfers import Transfers, ahead

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_waves_arrive_as_they_left(device, dtype):
    transfers = Transfers(device)
    wave = np.arange(12, dtype=dtype).reshape(2, 6)
    read_only = wave.copy()
    read_only.flags.writeable = False
    tensor = torch.from_numpy(wave)
    for source in (wave, wave[:, ::-1], np.asfortranarray(wave), read_only, wave[:, 2:5], tensor, tensor[:, ::2]):
        staged = transfers.staged(source)
        assert staged.is_contiguous() and staged.is_pinned() == (device.type == "cuda")
        there = transfers.bring(staged)
        assert there.device == device or there.device.type == device.type == "cuda"
        back = transfers.fetch(there, CPU).wait()
        assert back.numpy().dtype == dtype
        assert np.array_equal(back.numpy(), np.asarray(source))


def test_a_wave_that_is_there_already_is_not_copied(device):
    transfers = Transfers(device)
    wave = torch.ones(2, 3, device=device)
    assert transfers.staged(wave) is wave
    assert transfers.bring(wave) is wave
    assert transfers.fetch(wave, wave.device).wait() is wave


def test_what_is_fetched_was_finished(device):
    """Copies on their own streams wait for the work, and the work for them."""
    transfers = Transfers(device)
    waiting = []
    for i in range(8):
        there = transfers.bring(transfers.staged(torch.full((1, 1 << 20), float(i))))
        for _ in range(20):
            there = there + 1
        waiting.append(transfers.fetch(there, CPU))
        del there
    for i, fetched in enumerate(waiting):
        assert (fetched.wait() == i + 20).all()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_are_begun_ahead(depth):
    log = []

    def items():
        for i in range(5):
            log.append(f"begin {i}")
            yield i

    for i in ahead(items(), depth):
        log.append(f"end {i}")
    assert [line for line in log if line.startswith("end")] == [f"end {i}" for i in range(5)]
    for i in range(5 - depth):
        assert log.index(f"end {i}") == log.index(f"begin {i + depth}") + 1
