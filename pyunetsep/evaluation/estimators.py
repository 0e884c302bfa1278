"""What makes estimates of a song's stems: a model, and the yardsticks, oracle masks and the mixture itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..audio import Wave
from ..data import STEMS
from .song import Song

if TYPE_CHECKING:
    from ..separator import Separator

ORACLE, MIXTURE = "oracle", "mixture"  # as --model names them
ORACLE_SEGMENT = 2**19  # samples that are transformed at once


class Estimator(Protocol):
    """Estimates of both stems from a song, of which models see the mixture alone."""

    # Yardsticks know the stems, and are as good at the rate that is scored as at the song's.
    yardstick: bool

    def identity(self) -> dict[str, Any]:
        """What its scores are filed under, as plain JSON types: other scores are expected where it changes."""

    def estimate(self, song: Song) -> dict[str, Wave]:
        """{"vocals", "accompaniment"}: waves like the song's."""


@dataclass(frozen=True)
class Model:
    """A model as `pyunetsep separate` runs it."""

    separator: Separator
    exact: bool
    digest: str  # of its weights

    yardstick = False

    def identity(self) -> dict[str, Any]:
        from ..config import to_dict

        config = json.dumps(to_dict(self.separator.model), sort_keys=True).encode()
        return {
            "name": self.separator.info.name,
            "tensors_sha256": self.digest,
            "config_sha256": hashlib.sha256(config).hexdigest(),
        }

    def estimate(self, song: Song) -> dict[str, Wave]:
        wanted = [stem for stem in STEMS if stem in self.separator.model.stems]
        mixture = np.ascontiguousarray(song.mixture.T, np.float32)
        made = self.separator(mixture, song.sample_rate_hz, stem=wanted, exact=self.exact)
        waves = {stem: made[stem].T for stem in wanted}
        for stem, other in (STEMS, STEMS[::-1]):  # of a model for one of them, the rest is the other
            if stem not in waves:
                waves[stem] = song.mixture - waves[other]
        return {stem: waves[stem] for stem in STEMS}


@dataclass(frozen=True)
class OracleMask:
    """The ideal ratio mask |V|^2 / (|V|^2 + |A|^2) on the mixture's spectrogram, channel by channel.

    Hann windows of 4096 samples every 1024, at rates up to 16 kHz of 1024 every 256: about a tenth of a second. The
    accompaniment is the rest. Source: Liutkus and Badeau, ICASSP 2015 (alpha = 2); "IRM2" of SiSEC 2018.
    """

    yardstick = True

    def identity(self) -> dict[str, Any]:
        return {"name": ORACLE, "mask": "|V|^2 / (|V|^2 + |A|^2)", "stft": "4096/1024; 1024/256 up to 16 kHz"}

    def estimate(self, song: Song) -> dict[str, Wave]:
        n_fft = 1024 if song.sample_rate_hz <= 16_000 else 4096
        pairs = zip(song.stems["vocals"], song.stems["accompaniment"], strict=True)
        vocals = np.stack([self._masked(vocals, accompaniment, n_fft) for vocals, accompaniment in pairs])
        return {"vocals": vocals, "accompaniment": song.mixture - vocals}

    @staticmethod
    def _masked(vocals: np.ndarray, accompaniment: np.ndarray, n_fft: int) -> np.ndarray:
        """One channel. Segments see n_fft samples beyond their ends, so that the result has no seams."""
        import torch

        waves = torch.from_numpy(np.stack((vocals, accompaniment)).astype(np.float64))
        made = torch.empty(waves.shape[1], dtype=waves.dtype)
        window = torch.hann_window(n_fft, dtype=waves.dtype)
        for start in range(0, len(made), ORACLE_SEGMENT):
            size = min(ORACLE_SEGMENT, len(made) - start)
            first = min(start, n_fft)  # samples before the segment
            part = waves[:, start - first : start + size + n_fft]
            spectra = torch.stft(part, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True)
            power = spectra.abs() ** 2
            mask = power[0] / power.sum(0).clamp(min=torch.finfo(power.dtype).tiny)
            whole = torch.istft(mask * spectra.sum(0), n_fft, n_fft // 4, window=window, length=part.shape[1])
            made[start : start + size] = whole[first : first + size]
        return made.numpy()


@dataclass(frozen=True)
class MixtureAsEstimate:
    """No separation at all: the mixture, as it is, for both stems."""

    yardstick = True

    def identity(self) -> dict[str, Any]:
        return {"name": MIXTURE}

    def estimate(self, song: Song) -> dict[str, Wave]:
        return dict.fromkeys(STEMS, song.mixture)


def load_estimator(model: str, *, device: str = "auto", exact: bool = False, offline: bool = False) -> Estimator:
    """The yardstick of that name, or else a model: a registered name, a file or a folder.

    Raises:
        UnknownModelError, ModelUnavailableError, CheckpointError, DeviceError: as `Separator.from_pretrained`.
        ValueError: the model has neither vocals nor accompaniment.
    """
    if model == ORACLE:
        return OracleMask()
    if model == MIXTURE:
        return MixtureAsEstimate()
    from .. import models
    from ..checkpoint import tensor_digest
    from ..separator import Separator

    separator = Separator.from_pretrained(model, device=device, offline=offline)
    if not any(stem in separator.model.stems for stem in STEMS):
        raise ValueError(f"{model}: has the stems {', '.join(separator.model.stems)}, none of {', '.join(STEMS)}")
    path = models.locate(model, offline=True)
    # a Spleeter checkpoint that was never converted is known by the hash of its data
    digest = tensor_digest(path) if path.is_file() else separator.info.source_sha256
    return Model(separator, exact, digest)
