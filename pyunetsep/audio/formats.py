"""What a file is made of, and which formats can hold what."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import AudioFormatError
from .files import GuardedFile, sequential_sound_file
from .libsndfile import soundfile

# libsndfile's scale runs from 0 (best) to 1. LAME's V0 (~250 kbit/s, no low-pass), Vorbis quality 9 (~350 kbit/s)
# and ~370 kbit/s Opus in stereo: a stem is often processed further, and peers' cut highs are users' first complaint.
COMPRESSION_LEVEL = {"MPEG_LAYER_III": 0.0, "VORBIS": 0.1, "OPUS": 0.3}

# Bits of the sample types whose values lie on a grid in [-1, 1 - 2^(1 - bits)]; other types that clip count as 16.
PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
PCM_BITS |= {"ALAC_16": 16, "ALAC_20": 20, "ALAC_24": 24, "ALAC_32": 32, "DWVW_12": 12, "DWVW_16": 16, "DWVW_24": 24}

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}
SAMPLE_BYTES |= {"DOUBLE": 8}

# These hold values beyond full scale.
UNBOUNDED_SUBTYPES = frozenset({"FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"})

# How files are named that are likely to be read, with PyAV's help or without.
AUDIO_EXTENSIONS = frozenset(
    {".aac", ".aif", ".aifc", ".aiff", ".ape", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mp3", ".mp4", ".mpc"}
    | {".oga", ".ogg", ".opus", ".rf64", ".snd", ".tta", ".w64", ".wav", ".webm", ".wma", ".wv"}
)

_NAMES = {"AIF": "AIFF", "OGA": "OGG", "SND": "AU", "WAVE": "WAV"}
_EXTENSIONS = {"WAVEX": ".wav", "RF64": ".wav", "MAT4": ".mat", "MAT5": ".mat", "IRCAM": ".sf", "MPC2K": ".mpc"}
_UNWRITABLE = frozenset({"RAW", "SD2"})  # no header; a second file beside the first
# libsndfile writes ALAC through a temporary file of its own, and crashes if there is no room for it.
_UNWRITABLE_SUBTYPES = frozenset({"ALAC_16", "ALAC_20", "ALAC_24", "ALAC_32"})
_BY_QUALITY = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000, 352800, 384000)


@dataclass(frozen=True)
class AudioFormat:
    """What a file is, enough to write its twin.

    Attributes:
        container: libsndfile's major format ("WAV", "FLAC", "MP3", "OGG", "AIFF", ...), or the name of a format
            that only PyAV reads ("M4A", "WEBM", ...).
        subtype: libsndfile's sample type ("PCM_16", "FLOAT", "VORBIS", "OPUS", "MPEG_LAYER_III", ...), or the codec
            ("AAC", ...).
    """

    container: str
    subtype: str

    def __str__(self) -> str:
        return f"{self.container}/{self.subtype}"


def extension(format: AudioFormat) -> str:
    """The usual extension of a file in `format`, with its dot: ".wav", ".flac", ".opus", ..."""
    if format == AudioFormat("OGG", "OPUS"):
        return ".opus"
    return _EXTENSIONS.get(format.container, f".{format.container.lower()}")


def output_format(
    container: str | None, subtype: str | None, like: AudioFormat, sample_rate_hz: int, channels: int
) -> AudioFormat:
    """Resolve what to write from what was asked for and what the input is.

    Args:
        container: "wav", "flac", "mp3", "ogg", "opus", ... (any case, a leading dot is ignored); None for that of
            `like`, or WAV where libsndfile cannot write it (m4a, mp4, ...).
        subtype: "PCM_16", "PCM_24", "FLOAT", ... (any case); None for that of `like` where the container has it,
            else the nearest that loses nothing (what was decoded from a lossy file, and may exceed full scale, is
            FLOAT in WAV), else the best that the container has.
        like: format of the input.
        sample_rate_hz: of the output.
        channels: of the output.
    Raises:
        AudioFormatError: unknown names, or the format cannot hold the rate, the channels or the subtype; the message
            says what would fit.
    """
    known = _writable()
    if container is None:
        name = "WAV" if like.container == "RF64" else like.container  # the writer upgrades a WAV by itself
        if name not in known or (subtype is None and not _first_fit(name, like, sample_rate_hz, channels)):
            name = "WAV"
    else:
        name = container.lstrip(".").upper()
        name = _NAMES.get(name, name)
        if name == "OPUS":
            name, subtype = "OGG", subtype or "OPUS"
        if name not in known:
            names = ", ".join(sorted(name.lower() for name in known))
            raise AudioFormatError(f"container: cannot write {container!r}; libsndfile writes {names} (and opus)")
    if subtype is None:
        found = _first_fit(name, like, sample_rate_hz, channels)
        format = AudioFormat(name, found or soundfile.default_subtype(name) or like.subtype)
    else:
        format = AudioFormat(name, subtype.upper())
    check_format(format, sample_rate_hz, channels)
    return format


def check_format(format: AudioFormat, sample_rate_hz: int, channels: int, samples: int | None = None) -> None:
    """Raise an AudioFormatError that says what would fit, unless `format` can hold such a wave."""
    if not _fits(format, sample_rate_hz, channels):
        raise AudioFormatError(_misfit(format, sample_rate_hz, channels))
    if samples == 0 and not _fits(format, sample_rate_hz, channels, samples=0):
        raise AudioFormatError(f"{format} cannot hold a wave of 0 samples; WAV can")


def _first_fit(container: str, like: AudioFormat, sample_rate_hz: int, channels: int) -> str | None:
    """The sample type of `container` that keeps most of `like`."""
    wanted = next((f"PCM_{bits}" for bits in (16, 24, 32) if PCM_BITS.get(like.subtype, 99) <= bits), "FLOAT")
    at = _BY_QUALITY.index(like.subtype if like.subtype in _BY_QUALITY else wanted)
    candidates = [like.subtype, *_BY_QUALITY[at:], *reversed(_BY_QUALITY[:at])]
    default = soundfile.default_subtype(container)
    candidates += [default] if default else []
    return next((s for s in candidates if _fits(AudioFormat(container, s), sample_rate_hz, channels)), None)


def _misfit(format: AudioFormat, sample_rate_hz: int, channels: int) -> str:
    """Why `format` does not fit and what would."""
    subtypes = _subtypes(format.container)
    if format.subtype not in subtypes:
        return f"{format.container} has no subtype {format.subtype}; it has {', '.join(subtypes)}"
    problem = f"{format} cannot hold {channels} channels at {sample_rate_hz} Hz"
    rates = [str(rate_hz) for rate_hz in _RATES_HZ if _fits(format, rate_hz, channels)]
    if rates:
        return f"{problem}; with {channels} channels it takes {', '.join(rates)} Hz"
    counts = [count for count in range(channels - 1, 0, -1) if count <= 32 and _fits(format, sample_rate_hz, count)]
    if counts:
        return f"{problem}; at this rate it takes up to {counts[0]} channels"
    others = [s for s in subtypes if _fits(AudioFormat(format.container, s), sample_rate_hz, channels)]
    return f"{problem}; {'use ' + ' or '.join(others) if others else 'use WAV'}"


def _subtypes(container: str) -> list[str]:
    """What libsndfile can write in `container`, as far as it says so."""
    if container not in _writable():
        return []
    return [subtype for subtype in soundfile.available_subtypes(container) if subtype not in _UNWRITABLE_SUBTYPES]


def _writable() -> set[str]:
    return set(soundfile.available_formats()) - _UNWRITABLE


@lru_cache(maxsize=4096)
def _fits(format: AudioFormat, sample_rate_hz: int, channels: int, samples: int = 1) -> bool:
    """Whether libsndfile writes such a wave and reads it back: `check_format` knows no rates and no channels."""
    if format.subtype not in _subtypes(format.container):
        return False
    memory = io.BytesIO()
    guard = GuardedFile(memory)
    try:
        with sequential_sound_file(
            guard,
            "w",
            samplerate=sample_rate_hz,
            channels=channels,
            subtype=format.subtype,
            format=format.container,
            compression_level=COMPRESSION_LEVEL.get(format.subtype),
        ) as writer:
            writer.write(np.zeros((samples, channels), np.float32))
        memory.seek(0)
        with sequential_sound_file(guard) as reader:
            fits = (reader.samplerate, reader.channels) == (sample_rate_hz, channels)
    except (soundfile.SoundFileError, OverflowError, TypeError, ValueError):
        fits = False
    guard.check()
    return fits
