"""The commands' progress bars: on a terminal, in a pipe, and with lines between."""

from __future__ import annotations

import io
import math
import sys
from typing import Any

import pytest

from pyunetsep.cli import evaluate, separate, train


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, bar: Any, *steps: tuple[Any, ...]) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    for step in steps:
        bar.show(*step)
    bar.say("a line")
    bar.close()
    bar.close()
    return stream.getvalue()


BARS = {
    "evaluate": (evaluate._ProgressBar, [(0, 4, "song 1"), (4, 4, "")], "  0% |", "song 1, "),
    "train": (train._ProgressBar, [("decoded", 1, 2, ""), ("steps", 7, 9, "loss 1.0")], "decoded:  ", "steps:  "),
    "separate": (lambda: separate._ProgressBar(1, "cpu", str), [(0.0, 3.5), (3.5, 3.5)], "  0% |", " of 4 s, "),
    "separate a pipe": (lambda: separate._ProgressBar(1, "cpu", str), [(0.0, math.inf), (3.5, math.inf)], ": 0 s in "),
    "separate songs": (lambda: separate._ProgressBar(2, "cpu", str), [(0.0, 3.5), (1.75, 3.5)], "0.0 of 2 songs, "),
}


@pytest.mark.parametrize("command", BARS)
def test_a_bar(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    make, steps, *words = BARS[command]
    line = "pyunetsep: a line\n" if command == "train" else "a line\n"
    terminal = shown(monkeypatch, Terminal(), make(), *steps)
    assert all(word in terminal for word in words)
    assert line in terminal.split("\r")  # it begins where the bar was wiped away
    assert shown(monkeypatch, io.StringIO(), make(), *steps) == line
    assert shown(monkeypatch, Terminal(), make()) == line  # before there is a bar
