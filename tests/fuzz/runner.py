"""Runs fuzzing processes one after the other, and keeps what made one of them die. For POSIX systems."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .driver import best
from .guard import Shared, corpus

ROOT = Path(__file__).parents[2]
IN_MEMORY = Path("/dev/shm")
STALLED_S = 300.0  # without an answer, however busy the machine
MAX_DEATHS = 50
EXITED = "exited"  # of its own accord, before it was done
POLL_S, TELL_S = 0.1, 60.0
VERSIONS = ("atheris", "av", "numpy", "safetensors", "soundfile", "torch")


@dataclass
class Report:
    """What came of fuzzing one target."""

    driver: str
    seed: int
    inputs: int = 0
    accepted: int = 0  # of these
    seconds: float = 0.0
    inputs_per_s: float = 0.0
    slowest_input_s: float = 0.0  # of the processor
    peak_memory_mib: float = 0.0  # resident, of the whole process
    coverage: int | None = None  # edges of Python's bytecode, as libFuzzer counts them
    kept_inputs: int | None = None  # those that reached new code
    findings: tuple[str, ...] = ()


def fuzz(
    name: str,
    *,
    folder: Path,
    seconds: float = math.inf,
    inputs: int = 2**31 - 1,
    driver: str | None = None,
    seed: int = 1,
    tell: Callable[[str], object] = lambda line: None,
) -> Report:
    """Fuzzes a target until time or inputs are used up.

    Args:
        name: of the target, see `guard.load`.
        folder: where findings/<target> has inputs that went wrong, and grown/<target> those that reached new code, from
            which the next run goes on.
        driver: "atheris" or "mutation"; None is the best that is installed.
        tell: is given a line a minute.
    Raises:
        RuntimeError: the fuzzing process itself does not work; the message ends with what it said.
    """
    report = Report(driver or best(), seed)
    findings, grown = (folder / kind / name for kind in ("findings", "grown"))
    for kept in (findings, grown):
        kept.mkdir(parents=True, exist_ok=True)
    with _work_folder() as work:
        (work / "grown").symlink_to(grown.absolute())
        (work / "seeds").mkdir()
        for file, data in corpus(name).items():
            (work / "seeds" / file).write_bytes(data)
        shared = Shared.at(work / "shared")
        began = time.monotonic()
        for life in range(MAX_DEATHS):
            left_s, left = seconds - (time.monotonic() - began), inputs - shared.inputs
            if left_s <= 0 or left <= 0:
                break
            options = ["--seed", str(seed + life), "--inputs", str(left)]
            options += ["--seconds", str(left_s)] if math.isfinite(left_s) else []
            process, before = _started(name, report.driver, work, findings, options), shared.inputs
            death = _watch(process, shared, report, lambda: tell(_line(name, shared, began)))
            report.coverage = _coverage(work / "log", report.coverage)
            if death == EXITED and shared.inputs == before:
                said = (work / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name}: the fuzzing process stopped with {process.returncode}; it said:\n{said}")
            if death is None:
                break
            _keep(death, shared.input, findings, work)
        report.seconds = round(time.monotonic() - began, 1)
        report.inputs, report.accepted, report.slowest_input_s = shared.inputs, shared.accepted, shared.slowest_s
    report.inputs_per_s = round(report.inputs / max(report.seconds, 0.1), 1)
    report.slowest_input_s = round(report.slowest_input_s, 3)
    report.kept_inputs = sum(1 for _ in grown.iterdir()) if report.driver == "atheris" else None
    report.findings = tuple(sorted(path.name for path in findings.iterdir() if path.suffix != ".txt"))
    return report


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """In memory where that is possible; children write all their files there."""
    folder = Path(tempfile.mkdtemp(prefix="pyunetsep-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _started(name: str, driver: str, work: Path, findings: Path, options: list[str]) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TMPDIR": str(work),
        "OMP_NUM_THREADS": "1",
        # a large allocation is asked of the system, where the limit is, and one thread's heap is not many threads'
        "MALLOC_MMAP_THRESHOLD_": str(2**17),
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, "-m", "tests.fuzz.driver", name, "--driver", driver]
    command += ["--work", str(work), "--findings", str(findings), *options]
    with open(work / "log", "wb") as log:  # libsndfile prints to standard output
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def _watch(process: subprocess.Popen[bytes], shared: Shared, report: Report, tell: Callable[[], object]) -> str | None:
    """Waits for the end of the process: None if it was done, else what it died of."""
    inputs, changed, told, stalled = shared.inputs, time.monotonic(), time.monotonic(), False
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(POLL_S)
            now = time.monotonic()
            if shared.inputs != inputs:
                inputs, changed = shared.inputs, now
            elif now - changed > STALLED_S:
                stalled = True
                process.kill()
            if now - told > TELL_S:
                told = now
                tell()
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    report.peak_memory_mib = max(report.peak_memory_mib, round(usage.ru_maxrss * unit / 2**20, 1))
    if process.returncode >= 0:
        return EXITED if process.returncode else None
    number = signal.Signals(-process.returncode)
    if number == signal.SIGPROF:
        return "too-slow"
    return "stalled" if stalled else number.name


def _keep(death: str, data: bytes, findings: Path, work: Path) -> None:
    """Writes down what killed the process, and takes it out of what the next one begins with."""
    (findings / f"{death}-{hashlib.sha256(data).hexdigest()[:8]}").write_bytes(data)
    for folder in ("seeds", "grown"):
        for path in (work / folder).iterdir():
            if path.read_bytes() == data:
                path.unlink()


def _coverage(log: Path, before: int | None) -> int | None:
    found = re.findall(r"\bcov: (\d+)", log.read_text(errors="replace"))
    return max(int(found[-1]), before or 0) if found else before


def _line(name: str, shared: Shared, began: float) -> str:
    seconds = time.monotonic() - began
    return (
        f"{name}: {shared.inputs} inputs in {seconds:.0f} s ({shared.inputs / seconds:.0f}/s), "
        f"{shared.accepted} accepted, {shared.findings} findings"
    )


def save(path: Path, reports: dict[str, Report]) -> None:
    """Writes the reports to a file of results, beside those of other targets that are in it."""
    earlier: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    made = {"commit": _commit(), "date": time.strftime("%Y-%m-%d"), "versions": _versions()}
    results = {name: {**dataclasses.asdict(report), **made} for name, report in reports.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": {**earlier, **results}}, indent=2, sort_keys=True) + "\n")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
