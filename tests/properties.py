"""Property tests: hypothesis, or stand-ins by which they skip where it is not installed, as beside many a GPU."""

from unittest.mock import MagicMock

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:
    st = MagicMock()  # whatever strategies are made of

    def given(*_, **__):
        return pytest.mark.skip(reason="needs hypothesis")

    def settings(**_):
        return lambda test: test

else:
    settings.register_profile("pyunetsep", deadline=None)  # a busy machine is not a failure
    settings.load_profile("pyunetsep")

__all__ = ["given", "settings", "st"]
