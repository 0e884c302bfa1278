"""Threads take turns at reading NumPy's files."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pyunetsep import npy


def test_what_was_saved_is_loaded_or_mapped(tmp_path: Path) -> None:
    wave, file = np.arange(6, dtype=np.float16).reshape(2, 3), tmp_path / "wave.npy"
    np.save(file, wave)
    np.testing.assert_array_equal(npy.load(file), wave)
    mapped = npy.load(file, mmap_mode="r")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    with file.open("rb") as stream:
        np.testing.assert_array_equal(npy.load(stream), wave)


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        npy.load(tmp_path / "object.npy")


def test_threads_parse_headers_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, load = [], [], np.load

    def slow(*arguments: object, **keywords: object) -> np.ndarray:
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return load(*arguments, **keywords)

    np.save(tmp_path / "wave.npy", np.zeros(3))
    monkeypatch.setattr(np, "load", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(npy.load, [tmp_path / "wave.npy"] * 8))
    assert most == [1] * 8


def test_nothing_else_loads_them() -> None:
    package = Path(npy.__file__).parent
    users = {file.name for file in package.rglob("*.py") if "np.load(" in file.read_text()}
    assert users == {"npy.py"}
