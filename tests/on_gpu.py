"""All that a GPU can test, in minutes, with whatever is installed: `make gpu-test` runs this after a build in place.

The tests that need CUDA; then every kernel on small inputs under compute-sanitizer, where that is installed; then, in
the time that is left, all other tests, the emulated ones last. Test files that need soundfile or soxr are left out
where these are missing. $OUT, or else benchmarks/results, gets JUnit reports and what the sanitizer says.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
OUT = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
TOTAL_S = 390  # eight minutes, less the build
GPU_TESTS_S, SANITIZER_S = 190, 80  # that these may take of it, each tool by itself
LEAST_S = 20  # in less, no tests are begun
GRACE_S = 15  # to end by itself, and report, what was interrupted
TOOLS = ("memcheck", "racecheck")
ON_GPU = "cuda or gpu"  # in the names of tests that need one
BUILD_EMULATED = "from tests.emulated.library import COMPILER, emulated_library; COMPILER[0] and emulated_library()"


@dataclasses.dataclass(frozen=True)
class Outcome:
    words: str
    failed: bool = False


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def without_files() -> list[str]:
    """Test files that need what is not installed here."""
    missing = [module for module in ("soundfile", "soxr") if not installed(module)]
    pattern = re.compile(rf"^(import|from) ({'|'.join(missing)})\b", re.MULTILINE)
    return [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/test_*.py"))
            if missing and pattern.search(path.read_text())]  # fmt: skip


def run_tests(name: str, options: list[str], seconds: float, *, workers: int, must_end: bool = False) -> Outcome:
    """`workers`: processes, where xdist is installed; `must_end`: to be cut short is to fail."""
    print(f"{name}:")
    if seconds < LEAST_S:
        return Outcome("left out, no time is left")
    report = OUT / f"{name.lower().replace(' ', '-')}.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-rfEs", f"--junitxml={report}", *options]
    options += ["-n", str(workers)] if installed("xdist") else []
    options += ["--timeout=120"] if installed("pytest_timeout") else []  # a kernel that hangs is one failure, not all
    environment = {**os.environ, "PYUNETSEP_REQUIRE_CUDA": "1"}
    status = limited([sys.executable, "-m", "pytest", *options], environment, seconds)
    words, failed = counted(report)
    if status is None:
        return Outcome(f"CUT SHORT after {seconds:.0f} s, {words}", failed or must_end)
    return Outcome(words, failed or status != 0)


def counted(report: Path) -> tuple[str, bool]:
    """How many tests passed and did not, by their JUnit report; and whether some failed."""
    suite = ElementTree.parse(report).find("testsuite") if report.exists() else None
    if suite is None:
        return "no report was written", False
    tests, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    words = f"{tests - failures - errors - skipped} passed, {failures + errors} failed, {skipped} skipped"
    return words, failures + errors > 0


def limited(
    command: list[str], environment: dict[str, str], seconds: float, output: IO[str] | None = None
) -> int | None:
    """Runs it and returns its status; None if its time was up, and then all that it had started has ended too."""
    sys.stdout.flush()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(max(0, seconds - GRACE_S))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then says what it has done
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def sanitize(tool: str) -> Outcome:
    program = shutil.which("compute-sanitizer")
    if not program:
        return Outcome("left out, compute-sanitizer is not installed (it comes with the CUDA toolkit)")
    helped = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    ours_alone = ["--kernel-regex", "kns=pyunetsep"] if "--kernel-regex" in helped.stdout + helped.stderr else []
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *ours_alone]
    # it has time to say what it has found if the kernels end by themselves
    command += [sys.executable, "-m", "tests.on_gpu", "--kernels", str(SANITIZER_S - 2 * GRACE_S)]
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / f"{tool}.txt", "w+") as log:
        # without torch's cache each tensor's bounds are the driver's too
        status = limited(command, {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, SANITIZER_S, log)
        log.seek(0)
        said = log.read()
    print(f"{tool}:\n{said}")
    found = status not in (0, None) or re.search(r"^=+ (Invalid|Error)", said, re.MULTILINE) is not None
    cut = re.search(r"^CUT SHORT.*", said, re.MULTILINE)
    words = ["found errors" if found else "found nothing"]
    if cut or status is None:
        words.append(cut[0] if cut else f"CUT SHORT after {SANITIZER_S} s")
    return Outcome(", ".join(words), found)


def run_kernels(seconds: float) -> None:
    """Each kernel in each precision, as far as `seconds` reach."""
    ends = time.monotonic() + seconds
    import torch

    for name, run in kernel_runs():
        if time.monotonic() > ends:
            print(f"CUT SHORT before {name}", flush=True)
            break
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(name, flush=True)


def kernel_runs() -> Iterator[tuple[str, Callable[[], None]]]:
    """On inputs that take an instrumented GPU little time."""
    import torch

    from pyunetsep.config import PRESETS

    for n_fft in (64, 128, 1024, 4096):
        yield f"transforms {n_fft}", functools.partial(run_transforms, n_fft)
    for precision in (torch.float16, torch.bfloat16, torch.float32):
        for name in PRESETS:
            for upsampling in ("transposed", "nearest"):
                if upsampling == "transposed" or precision != torch.bfloat16:
                    run = functools.partial(run_networks, name, upsampling, precision)
                    yield f"{name} {upsampling} {precision}", run
        for name in PRESETS:
            yield f"training {name} {precision}", functools.partial(run_training, name, precision)


def run_training(preset: str, precision: Any) -> None:
    """A step's forward and back, through all training kernels at the preset's own channels."""
    import torch

    from pyunetsep.config import PRESETS
    from pyunetsep.ops import training
    from pyunetsep.unet import UNet

    unet = PRESETS[preset].unet
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = UNet(unet).to(device).train()
    magnitude = torch.rand(2, unet.input_channels, 128, 192, device=device)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        mask = network(magnitude)
    training.masked_l1(mask.float(), magnitude, magnitude).backward()
    if device.type == "cuda":  # what a network's convolutions do themselves there
        x = torch.rand(training.map_shape(2, 32, 8, 12, device), device=device).to(precision)
        norm = torch.cat((training.norm_statistics(x, 32, 1.0), torch.rand(2, 32, device=device)))
        training.norm_apply(x, norm, None, (1e-3, 1.0, 0.2, 0.0))


def run_transforms(n_fft: int) -> None:
    import torch

    from pyunetsep import ops

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hop, bins, window = n_fft // 4 - 1, n_fft // 4, torch.hann_window(n_fft, device=device)
    wave = torch.randn(2, 9 * hop + n_fft + 5, device=device)
    spectrum, magnitude = ops.stft(wave, window, hop, 1, bins)
    ops.magnitudes(wave, window, hop, 1, bins)
    mask = ops.ratio_mask(torch.rand(2, *magnitude.shape, device=device), magnitude)
    ops.masked_istft(spectrum, mask, mask[..., 0], window, hop, 1)
    ops.mask_wave(wave, mask, mask[..., 0], window, window, hop, 1)
    for dtype in (torch.float32, torch.float64):
        ops.overlap_add(torch.randn(3, 7, n_fft, device=device, dtype=dtype), window.to(dtype), hop)
        ops.ratio_mask(torch.rand(3, 1001, device=device, dtype=dtype))


def run_networks(preset: str, upsampling: Any, precision: Any) -> None:
    """The preset's own channels, which decide which kernels run; patches as small as they may be, and of odd tiles."""
    import torch

    from pyunetsep.benchmark import random_network
    from pyunetsep.config import PRESETS
    from pyunetsep.cuda_plan import CudaPlan

    unet = dataclasses.replace(PRESETS[preset].unet, upsampling=upsampling)
    networks = {stem: random_network(unet, seed) for seed, stem in enumerate(PRESETS[preset].stems)}
    if not torch.cuda.is_available():
        return
    magnitude = torch.rand(2, unet.input_channels, 64, 192, device="cuda").mT
    plan = CudaPlan(networks, device=magnitude.device, precision=precision)
    for masked in (False, True):
        plan.estimate(magnitude, masked=masked)


def main() -> int:
    if sys.argv[1:2] == ["--kernels"]:
        run_kernels(float(sys.argv[2]))
        return 0
    ends = time.monotonic() + TOTAL_S
    left_out = without_files()
    ignored = [f"--ignore={path}" for path in ("tests/emulated", *left_out)]
    outcomes = {"GPU tests": run_tests("GPU tests", ["-k", ON_GPU, *ignored], GPU_TESTS_S, workers=4, must_end=True)}
    outcomes |= {tool: sanitize(tool) for tool in TOOLS}
    workers = max(1, (os.cpu_count() or 1) // 2)
    others = ["-k", f"not ({ON_GPU})", *ignored]
    outcomes["other tests"] = run_tests("other tests", others, ends - time.monotonic(), workers=workers)
    if ends - time.monotonic() > LEAST_S:  # once, not in each process
        limited([sys.executable, "-c", BUILD_EMULATED], {**os.environ}, ends - time.monotonic())
    emulated = ["tests/emulated"]
    outcomes["emulated tests"] = run_tests("emulated tests", emulated, ends - time.monotonic(), workers=workers)
    print()
    for path in left_out:
        print(f"{path}: left out, it imports what is not installed here")
    for name, outcome in outcomes.items():
        print(f"{name}: {'FAILED, ' if outcome.failed else ''}{outcome.words}")
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
