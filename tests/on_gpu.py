"""All that a GPU can test, in minutes, with whatever is installed: `make gpu-test` runs this after a build in place.

The tests that need CUDA, then every kernel on small inputs under compute-sanitizer, where that is installed. Test files
that need soundfile or soxr are left out where these are missing. $OUT, or else benchmarks/results, gets a JUnit report.
"""

import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS_S, SANITIZER_S = 200, 100  # that each may take
TOOLS = ("memcheck", "racecheck")


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def without_files() -> list[str]:
    """Test files that need what is not installed here."""
    missing = [module for module in ("soundfile", "soxr", "hypothesis") if not installed(module)]
    pattern = re.compile(rf"^(import|from) ({'|'.join(missing)})\b", re.MULTILINE)
    return [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/test_*.py"))
            if missing and pattern.search(path.read_text())]  # fmt: skip


def run_tests() -> str:
    """What came of them, in a few words; nothing if all is well."""
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    left_out = without_files()
    for path in left_out:
        print(f"{path}: left out, it imports what is not installed here")
    options = ["-q", "-rfEs", "-k", "cuda or gpu", f"--junitxml={out / 'gpu-test.xml'}"]
    options += [f"--ignore={path}" for path in ("tests/emulated", *left_out)]
    options += ["-n", "4"] if installed("xdist") else []
    options += ["--timeout=120"] if installed("pytest_timeout") else []  # a kernel that hangs is one failure, not all
    environment = {**os.environ, "PYUNETSEP_REQUIRE_CUDA": "1"}
    status = limited([sys.executable, "-m", "pytest", *options], environment, TESTS_S)
    return {0: "", None: f"the tests did not end within {TESTS_S} s"}.get(status, "tests failed")


def limited(command: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """Runs it and returns its status; None if its time was up, and then all that it had started has ended too."""
    sys.stdout.flush()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def sanitize(tool: str) -> str:
    program = shutil.which("compute-sanitizer")
    if not program:
        print(f"{tool}: left out, compute-sanitizer is not installed (it comes with the CUDA toolkit)", flush=True)
        return ""
    print(f"{tool}:")
    helped = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    ours_alone = ["--kernel-regex", "kns=pyunetsep"] if "--kernel-regex" in helped.stdout + helped.stderr else []
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *ours_alone]
    command += [sys.executable, "-m", "tests.on_gpu", "--kernels"]
    # without torch's cache each tensor's bounds are the driver's too
    status = limited(command, {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, SANITIZER_S)
    return {0: "", None: f"{tool} did not end within {SANITIZER_S} s"}.get(status, f"{tool} found errors")


def run_kernels() -> None:
    """Each kernel in each precision, on inputs that take an instrumented GPU little time."""
    import torch

    from pyunetsep import ops
    from pyunetsep.benchmark import random_network
    from pyunetsep.config import PRESETS
    from pyunetsep.cuda_plan import CudaPlan

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # the presets' own channels, which decide which kernels run; patches as small as they may be, and of odd tiles
    for name, model in PRESETS.items():
        for upsampling in ("transposed", "nearest"):
            unet = dataclasses.replace(model.unet, upsampling=upsampling)
            networks = {stem: random_network(unet, seed) for seed, stem in enumerate(model.stems)}
            magnitude = torch.rand(2, unet.input_channels, 64, 192, device=device).mT
            for precision in (torch.float16, torch.bfloat16, torch.float32)[:: 1 if upsampling == "transposed" else 2]:
                if device.type == "cuda":
                    plan = CudaPlan(networks, device=device, precision=precision)
                    for masked in (False, True):
                        plan.estimate(magnitude, masked=masked)
                    torch.cuda.synchronize()
                print(name, upsampling, precision, flush=True)
    for n_fft in (64, 128, 1024, 4096):
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
        print("transforms", n_fft, flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    if sys.argv[1:] == ["--kernels"]:
        run_kernels()
        return 0
    problems = list(filter(None, [run_tests(), *map(sanitize, TOOLS)]))
    print("GPU tests:", "; ".join(problems) or "all is well")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
