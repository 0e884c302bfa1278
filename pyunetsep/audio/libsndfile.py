"""`soundfile`, which loads libsndfile, imported when the first file is met: arrays are separated without it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import soundfile as soundfile
else:

    class _AtFirstUse:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("soundfile"), name)

    soundfile = _AtFirstUse()
