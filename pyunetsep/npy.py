"""NumPy's files, read by one thread at a time.

NumPy parses a file's header with `ast.literal_eval`, and threads that do so at once make Python 3.11 raise SystemError
now and then, for they share its parser's depth counter (python/cpython#106905).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

_parsing = threading.Lock()


def load(file: Path | BinaryIO, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """An array of `np.save`, never a pickled one; errors are those of `np.load`."""
    with _parsing:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
