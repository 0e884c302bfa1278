"""A file that is written anew for every input: in memory, where the system has such files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_FOLDER = tempfile.TemporaryDirectory(prefix="pyunetsep-fuzz-")


class InputFile:
    """A file of this name, in a folder of its own.

    Linux has files without a disk behind them, to which a link gives a name: a tenth of the time, and nothing stays of
    a process that crashes.
    """

    def __init__(self, name: str, *links: str) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
        self.path = self.folder / name
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create(name)
            self.path.symlink_to(f"/proc/{os.getpid()}/fd/{self._descriptor}")
        else:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT)
        for link in links:
            (self.folder / link).symlink_to(self.path)

    def write(self, data: bytes) -> None:
        """Replaces what is in it."""
        os.ftruncate(self._descriptor, len(data))  # not to 0, which would give pages back that are needed again
        os.pwrite(self._descriptor, data, 0)
