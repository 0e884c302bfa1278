"""What ptxas said of each CUDA kernel as it was compiled: registers, stack, spills, shared memory.

The build keeps ptxas's words next to each object (CMakeLists.txt). `make compile-report` prints them as a table, and
test_build.py sees to it that no kernel uses local memory.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc" / "cuda"


@dataclass(frozen=True)
class Compiled:
    """A kernel, or a function that ptxas did not inline into it, on one architecture."""

    source: str
    architecture: str
    name: str  # mangled
    registers: int | None  # None: a function, its kernels' registers include its own
    stack_bytes: int
    spill_bytes: int  # stored and loaded
    shared_bytes: int  # static; what launches ask for comes on top

    @property
    def local_bytes(self) -> int:
        return self.stack_bytes + self.spill_bytes


def parse(source: str, log: str) -> list[Compiled]:
    """What a compiler's log says of its kernels."""
    found = []
    for entry in log.split("Compiling entry function ")[1:]:
        architecture = re.match(r"'\w+' for '(\w+)'", entry)[1]
        for i, part in enumerate(entry.split("Function properties for ")[1:]):
            name = re.match(r"\w+", part)[0]
            stack, *spills = (int(re.search(rf"(\d+) bytes {what}", part)[1])
                              for what in ("stack frame", "spill stores", "spill loads"))  # fmt: skip
            # The first is the kernel itself.
            registers = int(re.search(r"Used (\d+) registers", part)[1]) if i == 0 else None
            local, shared = (sum(map(int, re.findall(rf"(\d+) bytes {what}", part))) for what in ("lmem", "smem"))
            found.append(Compiled(source, architecture, name, registers, max(stack, local), sum(spills), shared))
    return found


def latest_build() -> Path:
    """The folder of the newest build with CUDA kernels.

    Raises:
        FileNotFoundError: if there is none, or sources have changed since.
    """
    folders = [path.parent for path in ROOT.glob("build/kernels-*/kernels.json")
               if json.loads(path.read_text())["cuda_toolkit"]]  # fmt: skip
    builds = [
        (library.stat().st_mtime, folder) for folder in folders for library in folder.glob("*pyunetsep_kernels.*")
    ]
    if not builds:
        raise FileNotFoundError("there is no build with CUDA kernels in build/: PYUNETSEP_CUDA=ON pip install -e .")
    built, folder = max(builds)
    changed = [path.name for path in [*SOURCES.glob("*.cu*"), *SOURCES.glob("*.h")] if path.stat().st_mtime > built]
    if changed:
        raise FileNotFoundError(f"the CUDA kernels were built before {', '.join(sorted(changed))} changed: build anew")
    return folder


def compile_report(folder: Path) -> list[Compiled]:
    """Of all sources of a build."""
    objects = folder / "CMakeFiles" / "pyunetsep_kernels.dir" / "csrc" / "cuda"
    logs = {path.name: objects / f"{path.name}.o.log" for path in sorted(SOURCES.glob("*.cu"))}
    return [compiled for source, log in logs.items() for compiled in parse(source, log.read_text())]


def architectures(folder: Path) -> list[str]:
    """That a build has code for."""
    built_for = json.loads((folder / "kernels.json").read_text())["cuda_architectures"].split()
    return [f"sm_{name.removesuffix('-real')}" for name in built_for if not name.endswith("-virtual")]


def demangled(names: list[str]) -> list[str]:
    """As in the source, but for namespaces and parameters."""
    names = [re.sub(r"_GLOBAL__N__\w{8}_\d+_\w+?_cu_\w{8}", lambda match: "_" * len(match[0]), name) for name in names]
    if shutil.which("c++filt"):
        answer = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True)
        names = answer.stdout.splitlines()
    names = [re.sub(r"\(anonymous namespace\)::|pyunetsep::|cuda::|_{20,}::|^void ", "", name) for name in names]
    return [re.sub(r"\((?!\w+\)\w).*\)( const)?$", "", name) for name in names]


def main() -> int:
    try:
        report = compile_report(latest_build())
    except FileNotFoundError as error:
        sys.exit(str(error))
    headings = ("registers", "stack", "spills", "shared", "architecture", "kernel")
    print("{:>9} {:>6} {:>6} {:>6}  {:12}  {}".format(*headings))
    source = ""
    for compiled, name in zip(report, demangled([compiled.name for compiled in report]), strict=True):
        if compiled.source != source:
            source = compiled.source
            print(f"\n{source}")
        registers = "-" if compiled.registers is None else compiled.registers
        numbers = registers, compiled.stack_bytes, compiled.spill_bytes, compiled.shared_bytes
        print("{:>9} {:>6} {:>6} {:>6}".format(*numbers) + f"  {compiled.architecture:12}  {name}")
    local = sum(compiled.local_bytes > 0 for compiled in report)
    print(f"\n{len(report)} kernels and functions, {local} with local memory; sizes in bytes")
    return int(local > 0)


if __name__ == "__main__":
    sys.exit(main())
