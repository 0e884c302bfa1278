"""A song of three hours in bounded memory, with the real network: `make test-long`, about ten minutes on two cores."""

import os
import sys

import numpy as np
import pytest
import soundfile

from pyunetsep import ModelUnavailableError, models

HOURS, RATE, LIMIT_GIB = 3, 44_100, 1.5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs os.wait4")
def test_three_hours_within_one_and_a_half_gib(tmp_path, record_property):
    try:
        models.locate("spleeter-2stems")
    except ModelUnavailableError as error:
        pytest.skip(f"needs the weights of spleeter-2stems: {error}")
    song = tmp_path / "long.wav"
    minute = np.random.default_rng(0).normal(0, 0.1, (60 * RATE, 2)).clip(-0.4, 0.4)
    with soundfile.SoundFile(song, "w", RATE, 2, "PCM_16") as file:
        for _ in range(HOURS * 60):
            file.write(minute)

    arguments = [sys.executable, "-m", "pyunetsep", "separate", str(song), "-o", str(tmp_path / "stems"), "-d", "cpu"]
    _, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, arguments), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    gib = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    record_property("peak_gib", round(gib, 3))
    print(f"peak memory {gib:.3f} GiB")
    assert gib <= LIMIT_GIB

    stems = [soundfile.SoundFile(tmp_path / "stems" / "long" / f"{stem}.wav") for stem in ("vocals", "accompaniment")]
    assert [stem.frames for stem in stems] == [HOURS * 3600 * RATE] * 2
    with soundfile.SoundFile(song) as mixture:
        for second in np.linspace(0, HOURS * 3600 - 2, 200).astype(int):  # also across the blocks
            for file in (*stems, mixture):
                file.seek(int(second) * RATE)
            total = sum(stem.read(RATE) for stem in stems)
            assert np.abs(total - mixture.read(RATE)).max() <= 2 * 2**-15
