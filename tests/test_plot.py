"""Pictures are drawn; what they look like is for eyes."""

import struct
import sys

import numpy as np
import pytest

from pyunetsep.plot import plot_stems
from tests.tiny import noise


@pytest.mark.parametrize(("samples", "channels"), [(1, 0), (3_000, 1), (100_000, 2)])
def test_a_picture_of_any_song(tmp_path, samples, channels):
    pytest.importorskip("matplotlib")
    mixture = noise(max(1, channels), samples).T.numpy()
    mixture = mixture if channels else mixture[:, 0]
    stems = {"vocals": 0.3 * mixture, "accompaniment": 0.7 * mixture}
    plot_stems(mixture, stems, 8_000, tmp_path / "song.png")
    header = (tmp_path / "song.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert header.startswith(b"\x89PNG")
    assert width > 800 and height > 400


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pyunetsep\[plot\]'"):
        plot_stems(np.zeros(10), {"vocals": np.zeros(10)}, 8_000, tmp_path / "song.png")
