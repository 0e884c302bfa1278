"""Files that are there whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, hidden beside `path`, that is put in its place when the context ends.

    It is on disk before it has its name, and its name is before this returns, where the system can sync folders. After
    any failure it is gone, and what was at `path` is still there. A process that is killed leaves `.name.*.part`.

    Raises:
        OSError: as the system has it, with the names of the files; callers know what it means to their users.
    """
    short = os.fsencode(path.name)[:100].decode("utf-8", "ignore")  # names end at 255 bytes, or at 143 (eCryptfs)
    temporary = path.with_name(f".{short}.{secrets.token_hex(4)}.part")
    file = open(temporary, "xb")  # noqa: SIM115, if this fails there is nothing to remove
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes or replaces a file, see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def _sync(folder: Path) -> None:
    """Has a folder's names written to disk; Windows and some network file systems cannot, and the file is whole."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
