"""Which seconds of which recordings make an example, and what is done to them: drawn from seed, step and index alone.

So nothing has to be remembered to go on after an interruption, and it does not matter which process makes an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data import STEMS, Recording
from ..errors import DataError
from .config import AugmentationConfig, TrainingConfig

LONGEST_S = {"vocals": 300.0, "accompaniment": 600.0}  # no recording counts for more when it is drawn by length
SPEECH_WEIGHT = 0.3  # of a second of speech, to one of singing
LEVEL_DB = 6.0  # mixtures are louder or softer by up to this
EQUALISER_WAVES = 3
REVERB_S = (0.2, 1.0)  # the time in which a room's sound falls by 60 dB
REVERB_GAIN = (0.1, 0.6)  # energy of the room's sound to that of the direct one
DRIVE = (1.0, 6.0)  # of the soft clipping, in units of the stem's mean level over full scale
STEPS_SHIFT = 20  # bits that an index within a batch may have


@dataclass(frozen=True)
class StemDraw:
    """One stem of an example."""

    recording: int  # its index
    position: float  # where it is entered, as a share of what there is to choose from
    speed: float = 1.0
    gain_db: float = 0.0
    equaliser_db: tuple[float, ...] = (0.0,) * EQUALISER_WAVES
    drive: float = 0.0
    reverb_s: float = 0.0
    reverb_gain: float = 0.0
    swapped: bool = False
    silent: bool = False


@dataclass(frozen=True)
class Draw:
    """Everything random about an example but its dropout."""

    step: int
    index: int
    stems: dict[str, StemDraw]
    noise: np.random.Generator = field(repr=False)  # for the rooms


def generator(seed: int, step: int, index: int) -> np.random.Generator:
    """The random numbers of one example."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, (step << STEPS_SHIFT) | index], np.uint64)))


class Sampler:
    """Draws examples from recordings."""

    def __init__(self, recordings: Sequence[Recording], config: TrainingConfig) -> None:
        self.config = config
        self.pools = {
            stem: _Pool(
                {i: _weight(recording, stem) for i, recording in enumerate(recordings) if stem in recording.waves}
            )
            for stem in STEMS
        }
        songs = [i for i, recording in enumerate(recordings) if all(stem in recording.waves for stem in STEMS)]
        self.songs = _Pool({i: recordings[i].duration_s for i in songs})
        missing = [stem for stem in STEMS if not self.pools[stem]]
        if missing:
            raise DataError(f"data: there is no recording of {' or of '.join(missing)} to train on")

    def draw(self, step: int, index: int) -> Draw:
        """The example `index` of a step's batch."""
        augmentation = self.config.augmentation
        rng = generator(self.config.seed, step, index)
        if self.songs and rng.random() >= augmentation.remix:
            song, position, speed = self.songs.draw(rng), rng.random(), _speed(rng, augmentation)
            sources = dict.fromkeys(STEMS, (song, position, speed))
        else:
            sources = {stem: (self.pools[stem].draw(rng), rng.random(), _speed(rng, augmentation)) for stem in STEMS}
        level = rng.uniform(-LEVEL_DB, LEVEL_DB)
        difference = rng.uniform(-1.0, 1.0) * augmentation.gain_db
        gains_db = {"vocals": level + difference / 2, "accompaniment": level - difference / 2}
        swapped = rng.random() < augmentation.swap_share
        silence = rng.random() / max(augmentation.silence_share, 1e-9)  # below 1 the vocals are, below 2 the rest
        stems = {}
        for stem in STEMS:
            equalised, driven, roomy = rng.random(3)
            waves = rng.uniform(-1.0, 1.0, EQUALISER_WAVES) * augmentation.equaliser_db
            drive, reverb_s, reverb_gain = rng.uniform(*DRIVE), rng.uniform(*REVERB_S), rng.uniform(*REVERB_GAIN)
            in_room = stem == "vocals" and roomy < augmentation.reverb_share
            recording, position, speed = sources[stem]
            stems[stem] = StemDraw(
                recording=recording,
                position=position,
                speed=speed,
                gain_db=gains_db[stem],
                equaliser_db=tuple(waves * (equalised < augmentation.equaliser_share)),
                drive=drive if driven < augmentation.drive_share else 0.0,
                reverb_s=reverb_s if in_room else 0.0,
                reverb_gain=reverb_gain if in_room else 0.0,
                swapped=swapped,
                silent=int(silence) == STEMS.index(stem),
            )
        return Draw(step, index, stems, rng)


class _Pool:
    """Recordings to draw from, each with a weight."""

    def __init__(self, weights: dict[int, float]) -> None:
        self.indices = list(weights)
        self.cumulative = np.cumsum(list(weights.values()))

    def __len__(self) -> int:
        return len(self.indices)

    def draw(self, rng: np.random.Generator) -> int:
        place = np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right")
        return self.indices[min(int(place), len(self) - 1)]


def _weight(recording: Recording, stem: str) -> float:
    weight = SPEECH_WEIGHT if recording.track.kind == "speech" else 1.0
    return weight * min(recording.duration_s, LONGEST_S[stem])


def _speed(rng: np.random.Generator, augmentation: AugmentationConfig) -> float:
    changed, exponent = rng.random(), rng.uniform(-1.0, 1.0)
    return float((1.0 + augmentation.speed) ** exponent) if changed < augmentation.speed_share else 1.0
