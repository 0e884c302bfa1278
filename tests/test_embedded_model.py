"""The model inside the package: on a fresh machine without a network and without a cache."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import pyunetsep
from pyunetsep import models
from tests.synthesis import RATE_HZ, band, voice

NAME = "jansson2017"
PUBLISHED = dict(models.EMBEDDED)


@pytest.fixture
def fresh_machine(tmp_path, monkeypatch):
    """No cache, no downloads, an empty home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYUNETSEP_CACHE", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("PYUNETSEP_OFFLINE", "1")
    monkeypatch.setattr(models.subprocess, "run", None)  # a download would fail
    yield
    assert not (tmp_path / "home").exists()


def test_it_is_the_published_one(fresh_machine):
    assert [*PUBLISHED] == [NAME]
    assert models.verify(NAME).status == "ok"
    checkpoint = models.load(NAME)
    preset = pyunetsep.PRESETS[NAME]
    assert checkpoint.config.unet.trained == preset.unet.trained
    assert dataclasses.replace(checkpoint.config, unet=preset.unet) == preset
    assert checkpoint.info.name == NAME and checkpoint.info.licence == "MIT"


def test_its_file_says_where_it_comes_from():
    info = models.describe(NAME)
    for part in ("Spleeter", "CC0", "CC-BY"):
        assert part in info["training_data"]
    for part in ("pyunetsep train", "--licence permissive", "seed 0", "GNSDR"):
        assert part in info["source"]
    assert models.embedded_path(NAME).stat().st_size < 40e6


def test_it_finds_a_voice_that_it_has_not_heard(fresh_machine):
    """A voice made by formulas is no singer, so this asks only for a good part of it."""
    vocals, accompaniment = voice(30, seed=7), band(30, seed=7)
    stems = pyunetsep.separate(vocals + accompaniment, RATE_HZ, model=NAME)
    np.testing.assert_allclose(stems["vocals"] + stems["accompaniment"], vocals + accompaniment, atol=1e-6)
    for truth, mixed, made in (
        (vocals, accompaniment, stems["vocals"]),
        (accompaniment, vocals, stems["accompaniment"]),
    ):
        improvement_db = 10 * np.log10(np.sum(mixed**2) / np.sum((made - truth) ** 2))
        assert improvement_db > 3


def test_the_command_line_separates_with_it(tmp_path):
    rate_hz = 44_100
    song = np.random.default_rng(0).normal(0, 0.1, (3 * rate_hz, 2)).astype(np.float32)
    soundfile.write(tmp_path / "song.wav", song, rate_hz, subtype="FLOAT")
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PYUNETSEP_CACHE": "", "PYUNETSEP_OFFLINE": "1"}
    environment.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, "-m", "pyunetsep", "separate", "song.wav", "--model", NAME, "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (report,) = json.loads(done.stdout)["results"]
    made = sum(soundfile.read(tmp_path / path, dtype="float32")[0] for path in report["outputs"].values())
    np.testing.assert_allclose(made, song, atol=1e-6)


def test_what_cannot_be_fetched_names_it(fresh_machine):
    with pytest.raises(pyunetsep.ModelUnavailableError, match=f"--model {NAME}"):
        models.load("spleeter-2stems")
