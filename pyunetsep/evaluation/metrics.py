"""The scores themselves: waves in, decibels out, NaN where a score is not defined.

| name | what | source |
| --- | --- | --- |
| v4 | BSS Eval v4, frames of 1 s, as museval computes it | Stöter, Liutkus, Ito, LVA/ICA 2018 |
| sdr | SDR over a whole song | Mitsufuji et al., Music Demixing Challenge 2021, Front. Signal Process. 2022 |
| nsdr | improvement of BSS Eval v3's SDR, at 8192 Hz | Vincent, Gribonval, Févotte, IEEE TASLP 14(4), 2006 |
| band | improvement of the plain energy ratio, below and above 4 kHz | - |

Each is a function of references and estimates, stem -> wave [channels, samples], all alike in shape. Sums run in
float64. museval and mir_eval are imported when they are needed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..audio import Wave
from .song import Song, energy, mono, resampled

Waves = Mapping[str, Wave]
Scores = dict[str, dict[str, float]]  # stem -> name of the score -> dB

METRICS = {  # in full, for whoever reads a table
    "v4": "BSS Eval v4 (museval), 1 s frames at the song's rate: median over frames, median over songs; 'SDR heard' is "
    "that of frames in which no stem is 60 dB below the mixture",
    "sdr": "SDR over whole songs (MDX/SDX challenges), at the song's rate; mean and median over songs",
    "nsdr": "BSS Eval v3 (mir_eval), 8192 Hz mono, in pieces: SDR less the mixture's; G.. are means weighted by length",
    "band": "energy-ratio SDR less the mixture's, mono: below 4096 Hz, above, full band; mean and median over songs",
}
LIBRARIES = {"v4": "museval", "nsdr": "mir_eval"}  # that a metric needs
EXTRA = "pip install 'pyunetsep[evaluate]'"

V3_RATE_HZ = BAND_RATE_HZ = 8192
MDX_EPSILON = 1e-7  # of the challenges' own program
BANDS = ("low", "high", "full")
V4_SCORES = ("sdr", "isr", "sir", "sar")  # in museval's order
V3_SCORES = ("sdr", "sir", "sar")  # in mir_eval's


def library_versions(metrics: tuple[str, ...]) -> dict[str, str]:
    """The versions of the libraries that compute these metrics.

    Raises:
        ImportError: one is missing, or a mir_eval that has no BSS Eval any more; the message says what to install.
    """
    versions = {}
    for metric, library in LIBRARIES.items():
        if metric in metrics:
            try:
                versions[library] = importlib.metadata.version(library)
                (_museval_metrics if library == "museval" else _mir_eval_separation)()
            except (ImportError, OSError) as error:  # PackageNotFoundError is an ImportError
                raise ImportError(f"the metric {metric} needs {library}: {EXTRA} ({error})") from error
    return versions


def v4(song: Song, estimates: Waves) -> Scores:
    """Median over frames of 1 s of BSS Eval v4, and how many frames there are.

    As `museval.evaluate` and its `TrackStore` do it: one filter of 512 taps a song, frames in which any reference or
    estimate is all zeros left out for all stems, infinite scores left out. Files that were encoded with loss have no
    zeros, and their pauses ruin the median: "heard_sdr" is that of the frames in which no stem is silent to
    `Song.silent_stems`.

    Returns:
        {stem: {"sdr", "isr", "sir", "sar", "heard_sdr", "frames", "undefined_frames", "heard_frames"}}
    Source: Stöter, Liutkus, Ito: The 2018 Signal Separation Evaluation Campaign, LVA/ICA 2018.
    """
    bss, references, rate_hz = _museval_metrics(), song.stems, song.sample_rate_hz
    groups = [np.stack([waves[stem].T.astype(np.float64) for stem in references]) for waves in (references, estimates)]
    scores = np.full((len(V4_SCORES), len(references), bss.Framing(rate_hz, rate_hz, groups[0].shape[1]).nwin), np.nan)
    # a wave of which museval takes the channels' sum to be silent: it refuses to go on
    if all(wave.sum(-1).any() for group in groups for wave in group):
        with _without_solution(), np.errstate(divide="ignore", invalid="ignore"):
            *scores[:], _ = bss.bss_eval(
                *groups, window=rate_hz, hop=rate_hz, compute_permutation=False,
                framewise_filters=False, bsseval_sources_version=False,
            )  # fmt: skip
        scores[~np.isfinite(scores)] = np.nan
    starts = range(0, scores.shape[2] * rate_hz, rate_hz)
    heard = np.array([not song.part(slice(start, start + rate_hz)).silent_stems for start in starts])
    return {
        stem: {
            **{name: _median(scores[k, i]) for k, name in enumerate(V4_SCORES)},
            "heard_sdr": _median(scores[0, i, heard]),
            "frames": len(heard),
            "undefined_frames": int(np.isnan(scores[0, i]).sum()),
            "heard_frames": int(heard.sum()),
        }
        for i, stem in enumerate(references)
    }


def sdr(song: Song, estimates: Waves) -> Scores:
    """10 log10((sum s^2 + eps) / (sum (s - e)^2 + eps)) over all samples and channels; NaN for a silent stem.

    Source: Mitsufuji et al., Music Demixing Challenge 2021, Frontiers in Signal Processing 2022.
    """
    return {
        stem: {
            "sdr": math.nan
            if stem in song.silent_stems
            else 10 * math.log10((energy(wave) + MDX_EPSILON) / (energy(wave, estimates[stem]) + MDX_EPSILON))
        }
        for stem, wave in song.stems.items()
    }


def improvement(reference: Wave, estimate: Wave, mixture: Wave) -> float:
    """How many dB nearer to the reference the estimate is than the mixture: 10 log10(|m - s|^2 / |e - s|^2)."""
    return decibels(energy(mixture, reference), energy(estimate, reference))


def decibels(energy_of: float, energy_to: float) -> float:
    """Their ratio in dB; NaN unless it is a number."""
    return 10 * math.log10(energy_of / energy_to) if energy_of > 0 and energy_to > 0 else math.nan


def nsdr(song: Song, estimates: Waves, before: Sequence[float] | None = None) -> Scores:
    """BSS Eval v3 of a mono piece at 8192 Hz; NSDR is the estimate's SDR less the mixture's.

    All NaN where a stem, or an estimate, is silent: the others' interference and artifacts cannot be told apart then.

    Args:
        before: `mixture_sdr(song)`, where it is known already.
    Returns:
        {stem: {"nsdr", "sdr", "sir", "sar"}}
    Source: Vincent et al. 2006 for the decomposition; Huang et al., ISMIR 2014, for NSDR on MIR-1K.
    """
    values = np.full((len(V3_SCORES), len(song.stems)), np.nan)
    if not song.silent_stems and all(estimates[stem].any() for stem in song.stems):
        values = _bss_eval_v3(song, [estimates[stem] for stem in song.stems])
    before = mixture_sdr(song) if before is None else before
    return {
        stem: {
            "nsdr": float(values[0, i] - before[i]),
            **{name: float(values[k, i]) for k, name in enumerate(V3_SCORES)},
        }
        for i, stem in enumerate(song.stems)
    }


def mixture_sdr(song: Song) -> list[float]:
    """The SDR of BSS Eval v3 that the mixture has as an estimate of each stem; NaN where one is silent."""
    if song.silent_stems:
        return [math.nan] * len(song.stems)
    return [float(value) for value in _bss_eval_v3(song, [song.mixture] * len(song.stems))[0]]


def band(song: Song, estimates: Waves) -> Scores:
    """The improvement in the band of a network at 8192 Hz, above it, and in both together, for the mono sums.

    A wave's low band is what resampling to 8192 Hz leaves of it, its high band what that takes away. NaN in a band in
    which a stem is silent.

    Returns:
        {stem: {"low", "high", "full"}}
    """
    rate_hz = song.sample_rate_hz
    references = {stem: _bands(wave, rate_hz) for stem, wave in song.stems.items()}
    parts = {name: Song({stem: bands[name] for stem, bands in references.items()}, rate_hz) for name in BANDS}
    scores: Scores = {}
    for stem in song.stems:
        made = _bands(estimates[stem], rate_hz)
        scores[stem] = {
            name: math.nan if part.silent_stems else improvement(part.stems[stem], made[name], part.mixture)
            for name, part in parts.items()
        }
    return scores


def _bands(wave: Wave, sample_rate_hz: int) -> dict[str, Wave]:
    full = mono(wave)
    low = resampled(full, sample_rate_hz, BAND_RATE_HZ)
    if sample_rate_hz <= BAND_RATE_HZ:
        return {"low": low, "high": np.zeros_like(full), "full": full}
    return {
        "low": low,
        "high": full - resampled(low, BAND_RATE_HZ, sample_rate_hz)[:, : full.shape[1]],
        "full": full,
    }


@contextmanager
def _without_solution() -> Iterator[None]:
    """Where no filter can be found, as for a few pure tones, what was to be computed stays as it is.

    Both libraries would go on with least squares then, but ask for NumPy 1's name of the error while they handle it.
    """
    try:
        yield
    except np.linalg.LinAlgError:
        pass
    except AttributeError as error:
        if not isinstance(error.__context__, np.linalg.LinAlgError):
            raise


def _median(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.median(defined)) if defined.size else math.nan


def _bss_eval_v3(song: Song, estimates: Sequence[Wave]) -> np.ndarray:
    """SDR, SIR, SAR of each stem, [scores, stems]; estimates [1, samples] in the order of the stems."""
    separation = _mir_eval_separation()
    references = np.concatenate(list(song.stems.values()))
    values = np.full((len(V3_SCORES), len(references)), np.nan)
    with warnings.catch_warnings(), np.errstate(divide="ignore"), _without_solution():
        # that the module goes with 0.9 is why the extra says mir_eval<0.9
        warnings.filterwarnings("ignore", r"mir_eval\.separation\.", FutureWarning)
        *values[:], _ = separation.bss_eval_sources(references, np.concatenate(estimates), compute_permutation=False)
    values[~np.isfinite(values)] = np.nan
    return values


@functools.cache
def _museval_metrics() -> ModuleType:
    """`museval.metrics` alone: `import museval` also imports musdb, which fails where there is no ffmpeg."""
    package = importlib.util.find_spec("museval")
    if package is None or not package.submodule_search_locations:
        raise ImportError("No module named 'museval'")
    path = Path(next(iter(package.submodule_search_locations)), "metrics.py")
    spec: Any = importlib.util.spec_from_file_location("museval.metrics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _mir_eval_separation() -> ModuleType:
    from mir_eval import separation

    return separation
