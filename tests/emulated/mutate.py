"""Breaks the CUDA sources, one small change at a time, and sees whether the emulated tests notice.

Removed or changed are: barriers, waits and commits of asynchronous copies, conditions and each of their parts, bounds,
flags that say what is inside, XORs in addresses, and constants that are added. For each such mutant the tests run that
launch a kernel of its file, until one fails. A mutant that survives shows what no test looks at, or is no mistake:
survivors.toml then says why. The exit code is 0 when it holds all survivors and no others.

A mutant costs one compilation, one link and the tests up to the first that fails.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutants"
SNAPSHOT = BUILD / "tests-of"  # of the tests: whoever edits meanwhile does not disturb
SURVIVORS = Path(__file__).with_name("survivors.toml")

# ---- Mutants


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    last_line: int
    start: int  # in the text
    end: int
    replacement: str
    before: str  # its line, or lines
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"


def only_code(text: str) -> str:
    """The text with blanks in place of what is not to be changed: comments, strings, the preprocessor's lines, checks
    of constants, and what the emulation does not compile.
    """

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"#ifdef PYUNETSEP_EMULATION\n.*?\n#else\n.*?\n#endif\n", blank, text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"", blank, text)
    text = re.sub(r"^ *#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.MULTILINE)
    return re.sub(r"static_assert\([^;]*;", blank, text)


def closing(code: str, start: int) -> int:
    """Where the bracket at `start` is closed."""
    depth = 0
    for i in range(start, len(code)):
        depth += (code[i] in "([{") - (code[i] in ")]}")
        if depth == 0:
            return i
    return len(code)


def operand(code: str, at: int, step: int) -> int:
    """The end of the part of a condition that begins, or ends, at `at`: up to what binds it no more."""
    opening, ending = ("([{", ")]}") if step > 0 else (")]}", "([{")
    depth = 0
    while 0 <= at < len(code):
        if depth == 0:
            ahead = code[at : at + 4] if step > 0 else code[max(at - 3, 0) : at + 1]
            if (
                code[at] in ending
                or code[at] in ";,?:"
                or (ahead.startswith if step > 0 else ahead.endswith)((" && ", " || ", " = ", " =\n"))
            ):
                break
            if step < 0 and code[: at + 1].endswith("return "):
                break
        depth += (code[at] in opening) - (code[at] in ending)
        at += step
    return at


def changes(code: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, replacement) of each mutant."""
    for match in re.finditer(r"(?:__syncthreads|__syncwarp|commit_copies|wait_copies<[^;]*>)\(\)(?=;)", code):
        yield match.start(), match.end(), "(void)0"
    for match in re.finditer(r"(?<=wait_copies<)([^;]*)(?=>\(\);)", code):
        yield match.start(), match.end(), f"({match[0]}) + 1"

    for match in re.finditer(r"\bif (?=\()", code):
        end = closing(code, match.end())
        condition = code[match.end() : end + 1]
        skips = re.match(r"\)?\s*\{?\s*(?:return|continue|break)\b", code[end + 1 :])
        yield match.end(), end + 1, f"({condition} && false)" if skips else f"({condition} || true)"
    for match in re.finditer(r"\bbool \w+ =\s+([^;]*);", code):
        yield match.start(1), match.end(1), f"({match[1]}) || true"
    for match in re.finditer(r"\bcopy_async16\(", code):
        end = closing(code, match.end() - 1)
        commas = [
            i
            for i in range(match.end(), end)
            if code[i] == "," and code[match.end() : i].count("(") == code[match.end() : i].count(")")
        ]
        if commas and code[commas[-1] + 1 : end].strip() != "true":
            yield commas[-1] + 2, end, "true"
    for match in re.finditer(r" && ", code):
        yield match.start(), operand(code, match.end(), 1), ""
        left = operand(code, match.start() - 1, -1) + 1
        if not code[:left].endswith(" && "):
            yield left, match.end(), ""

    other = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
    for match in re.finditer(r"(?<= )(<=?|>=?)(?= )", code):
        yield match.start(), match.end(), other[match[0]]
    for match in re.finditer(r"\bfor \([^;]*;([^;]*);", code):
        for bound in re.finditer(r" < ", match[1]):
            yield match.start(1) + bound.start(), match.start(1) + bound.end(), " < -1 + "

    for match in re.finditer(r" \^ ", code):
        yield match.start(), match.end(), " | 0 & "
    for match in re.finditer(r"(?<= [+-] )\d+\b(?![.\w])", code):
        for number in (int(match[0]) - 1, int(match[0]) + 1):
            yield match.start(), match.end(), str(number)


def mutants_of(path: Path) -> list[Mutant]:
    """In the order of the file."""
    text = path.read_text()
    found = []
    for start, end, replacement in sorted(set(changes(only_code(text)))):
        first, last = text.rfind("\n", 0, start) + 1, text.find("\n", end)
        before, after = text[first:last], text[first:start] + replacement + text[end:last]
        line = text.count("\n", 0, start) + 1
        last_line = line + text.count("\n", start, end)
        lines = (" ".join(x.split()) for x in (before, after))
        found.append(Mutant(path.name, line, last_line, start, end, replacement, *lines))
    return found


def lines_since(revision: str) -> set[tuple[str, int]]:
    """(file, line) of what was added to csrc/cuda, or changed, on the way here from where both have parted."""
    command = ["git", "diff", "--merge-base", "--unified=0", "--dst-prefix=b/", "--no-color", "--no-ext-diff"]
    diff = subprocess.run([*command, revision, "--", "csrc/cuda"], cwd=ROOT, capture_output=True, text=True)
    if diff.returncode:
        raise SystemExit(f"--since {revision}: {diff.stderr.strip()}")
    lines, name = set(), ""
    for header in re.finditer(r"^(?:\+\+\+ b/(.*)|@@ -\S+ \+(\d+)(?:,(\d+))? @@)", diff.stdout, re.MULTILINE):
        if header[1]:
            name = Path(header[1]).name
        else:
            first = int(header[2])
            lines |= {(name, line) for line in range(first, first + int(header[3] or 1))}
    return lines


# ---- What runs in a process of its own, forked: torch and pytest are imported once.


class Reporter:
    """Chooses and orders the tests, and tells of each as it starts and ends. Of what a test launches, too."""

    def __init__(self, to: Connection, tests: list[str] | None, library: SimpleNamespace) -> None:
        self.to, self.tests, self.library = to, tests, library

    def pytest_collection_modifyitems(self, items: list) -> None:
        if self.tests is not None:
            place = {test: i for i, test in enumerate(self.tests)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.launched()
        self.began, self.passed = time.monotonic(), True
        self.to.send(("start", nodeid))

    def pytest_runtest_logreport(self, report) -> None:
        self.passed &= report.outcome != "failed"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.to.send(("end", nodeid, time.monotonic() - self.began, self.passed, self.launched()))

    def launched(self) -> list[str]:
        names = self.library.take_launched().decode().split()
        return sorted({Path(name).name for name in names})


def run_tests(to: Connection, tree: Path, mutant: Mutant | None, tests: list[str] | None) -> None:
    """Builds the library of a tree, with the mutant in it, and runs the tests up to the first failure."""
    os.setpgrp()
    log = os.open(tree / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    import pytest
    import torch

    torch.set_num_threads(1)
    os.environ["PYUNETSEP_EMULATED_SOURCES"] = str(tree / "csrc")
    os.environ["CXX"] = f"{os.environ.get('CXX') or shutil.which('g++') or 'clang++'} -w"
    os.chdir(SNAPSHOT)
    sys.path[0] = str(SNAPSHOT)
    from tests.emulated import library

    if tests == []:
        to.send(("done",))
        return
    if mutant:
        path = tree / "csrc" / "cuda" / mutant.file
        text = path.read_text()
        path.write_text(text[: mutant.start] + mutant.replacement + text[mutant.end :])
    try:
        kernels = library.emulated_library()
    except subprocess.CalledProcessError:
        to.send(("uncompiled",))
        return
    kernels.take_launched.restype = library.ctypes.c_char_p
    if mutant is None:
        sources = (tree / "csrc" / "cuda").glob("*.cu")
        to.send(("includes", {path.name: {header.name for header in library.with_headers(path)} for path in sources}))
    files = ["tests/emulated"] if tests is None else sorted({test.split("::")[0] for test in tests})
    options = ["--ignore=tests/emulated/test_emulation.py"] if tests is None else ["-x"]
    pytest.main([*options, "-q", "-p", "no:cacheprovider", *files], plugins=[Reporter(to, tests, kernels)])
    to.send(("done",))


# ---- Workers, each with a tree


@dataclass
class Run:
    """Of the tests, on a mutant or on what it was made from."""

    mutant: Mutant | None
    limits: dict[str, float]  # seconds that a test may take
    began: float = field(default_factory=time.monotonic)
    test: str = ""
    test_began: float = 0.0
    ends: list[tuple[str, float, bool, list[str]]] = field(default_factory=list)
    includes: dict[str, set[str]] = field(default_factory=dict)  # what each source includes of ours
    outcome: str = ""
    killer: str = ""

    def hear(self, message: tuple) -> None:
        if message[0] == "start":
            self.test, self.test_began = message[1], time.monotonic()
        elif message[0] == "end":
            self.ends.append(message[1:])
            if not message[3] and not self.killer:
                self.outcome, self.killer = f"killed by {message[1]}", message[1]
            self.test = ""
        elif message[0] == "includes":
            self.includes = message[1]
        elif message[0] == "uncompiled":
            self.outcome = "did not compile"
        elif not self.outcome:
            self.outcome = "survived" if self.ends else "no test ran"

    def is_late(self) -> bool:
        return bool(self.test) and time.monotonic() - self.test_began > self.limits.get(self.test, 600.0)


class Worker:
    def __init__(self, number: int) -> None:
        self.tree = BUILD / f"worker-{number}"
        self.run: Run | None = None

    def prepare(self, csrc: Path) -> None:
        self.source = csrc
        shutil.rmtree(self.tree / "csrc", ignore_errors=True)
        shutil.copytree(csrc, self.tree / "csrc")
        (self.tree / "build" / "emulated").mkdir(parents=True, exist_ok=True)

    def start(self, mutant: Mutant | None, tests: list[str] | None, limits: dict[str, float]) -> None:
        self.run = Run(mutant, limits)
        self.objects = set(self.built())
        self.connection, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=run_tests, args=(theirs, self.tree, mutant, tests))
        self.process.start()
        theirs.close()

    def built(self) -> list[Path]:
        return list((self.tree / "build" / "emulated").iterdir())

    def poll(self) -> bool:
        """Hears what there is to hear. Whether the run is over, its traces are gone then."""
        run, over = self.run, False
        try:
            while self.connection.poll():
                run.hear(self.connection.recv())
        except (EOFError, ConnectionResetError):
            over = True
        if not over and run.is_late():
            run.outcome, run.killer = f"killed by the time limit of {run.test}", run.test
            over = True
            os.killpg(self.process.pid, signal.SIGKILL)
        if over:
            self.process.join()
            if not run.outcome:
                run.outcome, run.killer = f"killed by a crash ({self.process.exitcode}) of {run.test}", run.test
            if run.mutant:
                shutil.copy(self.source / "cuda" / run.mutant.file, self.tree / "csrc" / "cuda" / run.mutant.file)
                for path in set(self.built()) - self.objects:
                    path.unlink()
        return over


def take_snapshot() -> Path:
    """Of the tests, and of the sources, where they are then."""
    source = BUILD / "csrc"
    for target, origin in ((source, ROOT / "csrc"), (SNAPSHOT / "tests", ROOT / "tests")):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(origin, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", SNAPSHOT)
    return source


def survivors_listed(files: set[str]) -> dict[tuple[str, str, str], str]:
    """Reasons, by file and lines before and after."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10; pytest brings it there
        import tomli as tomllib
    entries = tomllib.loads(SURVIVORS.read_text()).get("survivor", []) if SURVIVORS.exists() else []
    return {
        (entry["file"], entry["before"], entry["after"]): entry["reason"] for entry in entries if entry["file"] in files
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", metavar="NAME", help="of csrc/cuda; default: all .cu and .cuh")
    parser.add_argument("--since", metavar="REVISION", help="take only mutants in lines that git says changed since")
    parser.add_argument("--sample", type=int, metavar="N", help="take only N of the mutants, always the same")
    parser.add_argument("--match", metavar="REGEX", help="take only mutants whose text, as it is printed, matches")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    options = parser.parse_args()

    changed = lines_since(options.since) if options.since else None
    source = ROOT / "csrc" if options.list else take_snapshot()
    names = options.files or sorted(path.name for path in (source / "cuda").glob("*.cu*"))
    mutants = [mutant for name in names for mutant in mutants_of(source / "cuda" / name)]
    possible = {(mutant.file, mutant.before, mutant.after) for mutant in mutants}
    if changed is not None:
        mutants = [
            mutant
            for mutant in mutants
            if any((mutant.file, line) in changed for line in range(mutant.line, mutant.last_line + 1))
        ]
    if options.match:
        mutants = [mutant for mutant in mutants if re.search(options.match, str(mutant))]
    if options.sample is not None and options.sample < len(mutants):
        chosen = set(random.Random(0).sample(range(len(mutants)), options.sample))
        mutants = [mutant for i, mutant in enumerate(mutants) if i in chosen]
    if options.list or not mutants:
        print(*mutants, f"{len(mutants)} mutants", sep="\n")
        return 0

    import hypothesis  # noqa: F401  (all imports that take long, once for all forks)
    import pytest  # noqa: F401
    import torch  # noqa: F401

    import pyunetsep.ops  # noqa: F401

    workers = [Worker(i) for i in range(max(1, min(options.workers, len(mutants))))]
    for worker in workers:
        worker.prepare(source)
    print("the sources as they are ...", flush=True)
    began = time.monotonic()
    workers[0].start(None, None, {})
    while not workers[0].poll():
        wait([workers[0].connection], timeout=0.5)
    baseline = workers[0].run
    if baseline.outcome != "survived":
        print(f"without mutants: {baseline.outcome}; see {workers[0].tree / 'log'}")
    reached = {test: launched for test, _, passed, launched in baseline.ends if passed}
    seconds = {test: duration for test, duration, _, _ in baseline.ends}
    if not reached:
        return 1
    for worker in workers[1:]:
        shutil.copytree(workers[0].tree / "build", worker.tree / "build", dirs_exist_ok=True)
    print(f"{len(reached)} tests in {time.monotonic() - began:.0f} s; {len(mutants)} mutants", flush=True)

    killers: dict[str, Counter[str]] = {name: Counter() for name in names}

    def tests_for(file: str) -> list[str]:
        """Those that reach the file; first those that killed its mutants, then the fast ones."""
        sources = {name for name, headers in baseline.includes.items() if file in headers}
        chosen = [test for test, launched in reached.items() if not sources or sources.intersection(launched)]
        return sorted(chosen, key=lambda test: (-killers[file][test], seconds[test]))

    waiting, done = list(reversed(mutants)), []
    busy: list[Worker] = []
    limits = {test: max(10.0, 20 * duration) for test, duration in seconds.items()}
    with contextlib.suppress(KeyboardInterrupt):
        while waiting or busy:
            for worker in workers:
                if waiting and worker not in busy:
                    mutant = waiting.pop()
                    worker.start(mutant, tests_for(mutant.file), limits)
                    busy.append(worker)
            wait([worker.connection for worker in busy], timeout=0.5)
            for worker in [worker for worker in busy if worker.poll()]:
                busy.remove(worker)
                run = worker.run
                killers[run.mutant.file].update([run.killer] if run.killer else [])
                done.append(run)
                took = time.monotonic() - run.began
                print(f"[{len(done)}/{len(mutants)}, {took:.0f} s] {run.mutant}\n    {run.outcome}", flush=True)
    for worker in busy:
        os.killpg(worker.process.pid, signal.SIGKILL)

    report = [{"file": run.mutant.file, "line": run.mutant.line, "before": run.mutant.before, "after": run.mutant.after,
               "outcome": run.outcome} for run in done]  # fmt: skip
    (BUILD / "report.json").write_text(json.dumps(report, indent=1))
    counts = Counter(re.sub(r" by .*", "", run.outcome) for run in done)
    print(f"\n{len(done)} mutants: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    listed = survivors_listed(set(names))
    survived = {
        (run.mutant.file, run.mutant.before, run.mutant.after): run.mutant for run in done if run.outcome == "survived"
    }
    unexplained = [mutant for key, mutant in survived.items() if key not in listed]
    untested = [run.mutant for run in done if run.outcome == "no test ran"]
    ran = {(run.mutant.file, run.mutant.before, run.mutant.after) for run in done}
    stale = [key for key in listed if key not in possible or (key in ran and key not in survived)]
    if unexplained:
        print(f"\n{len(unexplained)} survived and are not in {SURVIVORS.name}:", *unexplained, sep="\n")
    if untested:
        print(f"\n{len(untested)} met no test:", *untested, sep="\n")
    if stale:
        print(
            f"\n{len(stale)} in {SURVIVORS.name} did not survive, or are no mutants any more:",
            *map(" | ".join, stale),
            sep="\n",
        )
    return int(bool(unexplained or untested or stale or len(done) < len(mutants)))


if __name__ == "__main__":
    sys.exit(main())
