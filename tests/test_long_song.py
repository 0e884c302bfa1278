"""A song of three hours in bounded memory, with the real network: `make test-long`, about ten minutes on two cores."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyunetsep import ModelUnavailableError, models

RATE, LIMIT_GIB = 44_100, 1.5
SHORT_MIN, LONG_MIN = 10, 180
STEMS = ("vocals", "accompaniment")


def write_noise(path: Path, minutes: int) -> None:
    minute = np.random.default_rng(0).normal(0, 0.1, (60 * RATE, 2)).clip(-0.4, 0.4)
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        for _ in range(minutes):
            file.write(minute)


def peak_gib(arguments: list[str]) -> float:
    """Memory of a command, which must succeed."""
    command = [sys.executable, "-m", "pyunetsep", *arguments]
    _, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, command), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs os.wait4")
def test_three_hours_take_the_memory_of_ten_minutes(tmp_path, record_property):
    try:
        models.locate("spleeter-2stems")
    except ModelUnavailableError as error:
        pytest.skip(f"needs the weights of spleeter-2stems: {error}")
    peaks = {}
    for minutes in (SHORT_MIN, LONG_MIN):
        song = tmp_path / f"{minutes}.wav"
        write_noise(song, minutes)
        peaks[minutes] = peak_gib(["separate", str(song), "-o", str(tmp_path / "stems"), "-d", "cpu"])
        print(f"{minutes} min: peak memory {peaks[minutes]:.3f} GiB")
    record_property("peak_gib", peaks)
    assert peaks[LONG_MIN] <= 1.1 * peaks[SHORT_MIN]
    assert peaks[LONG_MIN] <= LIMIT_GIB

    stems = [soundfile.SoundFile(tmp_path / "stems" / str(LONG_MIN) / f"{stem}.wav") for stem in STEMS]
    assert [stem.frames for stem in stems] == [LONG_MIN * 60 * RATE] * 2
    with soundfile.SoundFile(song) as mixture:
        for second in np.linspace(0, LONG_MIN * 60 - 2, 200).astype(int):  # also across the blocks
            for file in (*stems, mixture):
                file.seek(int(second) * RATE)
            total = sum(stem.read(RATE) for stem in stems)
            assert np.abs(total - mixture.read(RATE)).max() <= 2 * 2**-15
