"""Hostile input: the corpus of tests/fuzz, some more of the same, and that the fuzzer notices what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from pyunetsep.checkpoint import parse_json
from pyunetsep.config import SPLEETER, ModelConfig, from_dict, to_dict
from tests.fuzz import guard
from tests.fuzz.guard import Limits, Target
from tests.fuzz.mutation import dumped, odd_value, spoilt, spoilt_json
from tests.properties import given, settings, st

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of memory and time are POSIX's")

NAMES = guard.names()
IN_PROCESS = [name for name in NAMES if name != "audio"]  # decoders in C could take the tests with them
FILES = [(name, file) for name in NAMES for file in guard.corpus(name)]


@pytest.fixture(autouse=True)
def slow_is_an_error() -> Iterator[None]:
    """The signal that kills a fuzzing process only fails a test."""

    def fail(*_: object) -> None:
        raise TimeoutError("took longer than the target's limit")

    before = signal.signal(signal.SIGPROF, fail)
    yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize(("name", "file"), FILES, ids=map("-".join, FILES))
def test_the_corpus(name: str, file: str) -> None:
    """Seeds are sound, and what went wrong once is an error that is documented, or accepted."""
    target, data = guard.load(name), guard.corpus(name)[file]
    if file.startswith("seed-"):
        target.run(data)
    assert guard.outcome(target, data) == "accepted" or not file.startswith("seed-")


def test_the_corpus_is_small_and_whole() -> None:
    assert sum(len(data) for name in NAMES for data in guard.corpus(name).values()) < 200_000
    assert all(any(file.startswith("seed-") for file in guard.corpus(name)) for name in NAMES)
    assert {path.name for path in guard.CORPUS.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", IN_PROCESS)
@settings(max_examples=150)
@given(data=st.data())
def test_more_of_the_same(name: str, data: Any) -> None:
    target = guard.load(name)
    seed = data.draw(st.sampled_from([*guard.corpus(name).values()]))
    random = data.draw(st.randoms(use_true_random=True))
    guard.outcome(target, target.mutate(seed, random)[: target.limits.max_bytes])


@pytest.mark.parametrize("name", IN_PROCESS)
@settings(max_examples=100)
@given(data=st.binary(max_size=300))
def test_bytes_that_mean_nothing(name: str, data: bytes) -> None:
    guard.outcome(guard.load(name), data)


def test_values_that_could_just_be_read_are_not_too_deep_to_be_named() -> None:
    """The message that refuses lists in lists once recursed beyond what Python allows, at one depth of these."""
    sound = to_dict(SPLEETER)
    for depth in range(sys.getrecursionlimit() - 300, sys.getrecursionlimit() + 20):
        with pytest.raises(ValueError, match=r"nested too deep|must be"):
            from_dict(ModelConfig, {**sound, "stems": parse_json(b"[" * depth + b"]" * depth, "it")})


# The fuzzer itself


def test_mutations_follow_from_their_seed() -> None:
    seed = {"a": [1, {"b": 2.5}], "c": "text"}
    for number in range(200):
        assert spoilt(bytes(40), Random(number), head=9) == spoilt(bytes(40), Random(number), head=9)
        assert dumped(spoilt_json(seed, Random(number))) == dumped(spoilt_json(seed, Random(number)))
    assert seed == {"a": [1, {"b": 2.5}], "c": "text"}
    assert len({spoilt(bytes(40), Random(number)) for number in range(200)}) > 100
    assert spoilt(b"", Random(0)) is not None


def test_odd_values_become_text() -> None:
    random = Random(0)
    texts = {dumped({"x": odd_value(random)}) for _ in range(2000)}
    assert any(len(text) > 2000 and text.count(b"[") > 900 for text in texts)
    assert any(b"1" + b"0" * 4999 in text for text in texts)


TROUBLE = '''
import ctypes, os, random, time
from tests.fuzz.guard import Limits, Target

def target(data):
    """What a reader should not do, by the first byte."""
    what = data[:1]
    if what == b"R":
        raise ValueError("refused")
    if what == b"E":
        raise KeyError("not documented")
    if what == b"M":
        bytearray(2**26)
    if what == b"H":
        while True:
            pass
    if what == b"C":
        os.abort()
    if what == b"X":
        os._exit(5)

TARGET = Target(
    run=target, documented=(ValueError,), seeds=lambda: {}, mutate=lambda data, random: random.choice(LETTERS),
    limits=Limits(memory_bytes=2**22, memory_per_byte=1, cpu_s=0.2, max_bytes=64),
)
LETTERS = [b"%c" % letter for letter in LETTERS]
'''


def run_fuzzer(folder: Path, *arguments: str, letters: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m tests.fuzz`, with a target `trouble` that is given these letters."""
    (folder / "trouble.py").write_text(f"LETTERS = {letters.encode()!r}\n{TROUBLE}")
    command = [sys.executable, "-m", "tests.fuzz", *arguments, "--driver", "mutation"]
    command += ["--folder", str(folder / "kept"), "--json", str(folder / "fuzz.json")]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("letter", "finding"),
    [
        ("E", "KeyError-trouble-target-"),
        pytest.param(
            *("M", "MemoryError-trouble-target-"),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only"),
        ),
        ("H", "too-slow-"),
        ("C", "SIGABRT-"),
        ("X", "exited-"),
    ],
)
def test_what_goes_wrong_is_found_and_kept(tmp_path: Path, letter: str, finding: str) -> None:
    done = run_fuzzer(tmp_path, "trouble", "--inputs", "12", letters=f"A{letter}RA")
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "fuzz.json").read_text())["results"]["trouble"]
    assert [name[: len(finding)] for name in result["findings"]] == [finding]
    assert f"found {tmp_path / 'kept' / 'findings' / 'trouble' / finding}" in done.stdout
    assert (tmp_path / "kept" / "findings" / "trouble" / result["findings"][0]).read_bytes() == letter.encode()
    assert 0 < result["accepted"] < result["inputs"] and result["driver"] == "mutation"


def test_a_sound_target_has_no_findings_and_results_add_up(tmp_path: Path) -> None:
    assert run_fuzzer(tmp_path, "trouble", "--inputs", "200", letters="AR").returncode == 0
    assert run_fuzzer(tmp_path, "headers", "--seconds", "0.5").returncode == 0
    results = json.loads((tmp_path / "fuzz.json").read_text())["results"]
    assert results["trouble"]["findings"] == [] and results["trouble"]["inputs"] == 200
    assert results["headers"]["inputs"] > len(guard.corpus("headers")) and results["headers"]["inputs_per_s"] > 0


def test_a_target_that_cannot_even_start_is_no_finding(tmp_path: Path) -> None:
    done = run_fuzzer(tmp_path, "no_such_module", "--inputs", "5")
    assert done.returncode == 1 and "No module named 'no_such_module'" in done.stderr
    assert not (tmp_path / "fuzz.json").exists()


def test_audio_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = run_fuzzer(tmp_path, "audio", "--inputs", "600")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "fuzz.json").read_text())["results"]["audio"]["accepted"] > 50


def test_how_long_must_be_said(tmp_path: Path) -> None:
    done = run_fuzzer(tmp_path, "headers")
    assert done.returncode == 2 and "say how long" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_limits_grow_with_the_input() -> None:
    limits = Limits(memory_bytes=2**20, memory_per_byte=2**24, cpu_s=1.0, max_bytes=100)

    def run(data: bytes) -> None:
        np.empty(2**30, np.uint8)  # too large for holes in the heap, which earlier tests have left and are mapped

    target = Target(run=run, documented=(), seeds=dict, mutate=lambda data, random: data, limits=limits)
    with pytest.raises(MemoryError):
        guard.outcome(target, bytes(5))
    assert guard.outcome(target, bytes(100)) == "accepted"
