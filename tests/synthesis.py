"""Songs made by formulas, for training tests: a voice that glides and trembles, over chords and a drum."""

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 8192


def voice(seconds: float, seed: int) -> np.ndarray:
    """Syllables with a vibrato, sixteen harmonics and pauses: [samples]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    notes = rng.uniform(180, 420, int(seconds * 2) + 2)
    pitch = np.interp(time, np.arange(len(notes)) / 2, notes) * (1 + 0.02 * np.sin(2 * np.pi * 5.5 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    harmonics = sum(np.sin(k * phase) / k * (k * pitch < RATE_HZ / 2) for k in range(1, 17))
    sung = np.interp(time, np.arange(len(notes)) / 2, rng.random(len(notes)) > 0.25)
    return 0.15 * harmonics * sung


def band(seconds: float, seed: int) -> np.ndarray:
    """Chords that change every half second, and a drum on each beat: [samples]."""
    rng = np.random.default_rng(1000 + seed)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    beat = (time * 2).astype(int)
    roots = rng.choice([98.0, 110.0, 130.8, 146.8], beat[-1] + 1)[beat]
    chord = sum(np.sin(2 * np.pi * roots * ratio * time) for ratio in (1.0, 1.25, 1.5, 2.0, 3.0))
    drum = rng.standard_normal(len(time)) * np.exp(-25 * (time % 0.5))
    return 0.06 * chord + 0.15 * drum


def write_songs(folder: Path, songs: int = 4, seconds: float = 16.0) -> Path:
    """A folder of songs, each with its stems."""
    for i in range(songs):
        song = folder / f"song{i}"
        song.mkdir(parents=True)
        for stem, wave in (("vocals", voice(seconds, i)), ("accompaniment", band(seconds, i))):
            soundfile.write(song / f"{stem}.wav", wave.astype(np.float32), RATE_HZ, subtype="FLOAT")
    return folder
