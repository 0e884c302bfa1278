"""Examples: functions of seed, step and index alone, whose stems add up to their mixture."""

import dataclasses

import numpy as np
import pytest
import torch

from pyunetsep.data import STEMS, Recording, Track
from pyunetsep.errors import DataError
from pyunetsep.training import augmentation
from pyunetsep.training.config import merged
from pyunetsep.training.examples import Examples
from pyunetsep.training.sampling import Sampler, generator

from .synthesis import RATE_HZ, band, voice

CPU = torch.device("cpu")
PLAIN = {
    "speed_share": 0,
    "equaliser_share": 0,
    "drive_share": 0,
    "reverb_share": 0,
    "swap_share": 0,
    "silence_share": 0,
}


def recording(name, kind="song", seconds=14.0, seed=0, channels=1):
    waves = {"vocals": voice(seconds, seed), "accompaniment": band(seconds, seed)}
    if kind != "song":
        waves = {stem: wave for stem, wave in waves.items() if stem == ("vocals" if kind == "speech" else kind)}
    waves = {stem: np.tile(wave, (channels, 1)).astype(np.float16) for stem, wave in waves.items()}
    track = Track(name=name, sources={}, kind=kind)
    return Recording(track=track, waves=waves, sample_rate_hz=RATE_HZ)


@pytest.fixture(scope="module")
def recordings():
    return [
        recording("one", seconds=30.0),
        recording("two", seed=1),
        recording("loose", "vocals", seed=2),
        recording("short", "accompaniment", seconds=3.0, seed=3),
    ]


def config(**augmentation_values):
    values = {key: value for key, value in augmentation_values.items() if key in ("seed", "preset")}
    rest = {key: value for key, value in augmentation_values.items() if key not in values}
    return merged({**values, "augmentation": rest})


def everything():
    shares = dict.fromkeys(PLAIN, 1.0)
    return config(**{**shares, "silence_share": 0.1, "remix": 0.5})


def test_an_example_has_the_same_bits_in_any_batch(recordings):
    examples = Examples(recordings, everything(), CPU)
    together = examples.batch(3, range(6))
    again = Examples(recordings, everything(), CPU).batch(3, [5, 2])
    for i, index in enumerate([5, 2]):
        assert torch.equal(again.mixture[i], together.mixture[index])
        for stem in STEMS:
            assert torch.equal(again.stems[stem][i], together.stems[stem][index])


def test_other_seeds_steps_and_indices_are_other_examples(recordings):
    draws = {
        (seed, step, index): Sampler(recordings, config(seed=seed)).draw(step, index).stems["vocals"].position
        for seed in (0, 1)
        for step in (0, 1)
        for index in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)


def test_stems_add_up_to_a_mixture_whose_loudest_is_one(recordings):
    batch = Examples(recordings, everything(), CPU).batch(0, range(8))
    assert batch.mixture.shape == (8, 1, 512, 128) and batch.mixture.dtype == torch.complex64
    torch.testing.assert_close(batch.stems["vocals"] + batch.stems["accompaniment"], batch.mixture)
    torch.testing.assert_close(batch.magnitude.amax((1, 2, 3)), torch.ones(8))
    for stem in STEMS:
        torch.testing.assert_close(batch.magnitudes[stem], batch.stems[stem].abs())


def test_without_augmentation_an_example_is_a_piece_of_a_song(recordings):
    examples = Examples(recordings[:1], config(**PLAIN, remix=0.0, gain_db=0.0), CPU)
    draw = examples.sampler.draw(0, 0)
    wave = examples._waves([draw], "vocals")[0, 0]
    song = torch.from_numpy(recordings[0].waves["vocals"][0].astype(np.float32))
    start = int(draw.stems["vocals"].position * (len(song) - examples.samples - augmentation.TAPS + 1))
    piece = song[start : start + examples.samples]
    gain = wave.norm() / piece.norm()
    torch.testing.assert_close(wave, piece * gain, rtol=1e-5, atol=1e-6)
    # both stems are entered at the same place
    assert draw.stems["vocals"].position == draw.stems["accompaniment"].position
    assert "vocals of one at" in examples.describe(draw)


def test_stems_have_the_levels_that_were_drawn(recordings):
    examples = Examples(recordings, config(**PLAIN, gain_db=8.0), CPU)
    draws = [examples.sampler.draw(0, index) for index in range(8)]
    for stem in STEMS:
        levels = examples._waves(draws, stem).square().mean((1, 2)).sqrt()
        wanted = [augmentation.MEAN_LEVEL * 10 ** (draw.stems[stem].gain_db / 20) for draw in draws]
        torch.testing.assert_close(levels, torch.tensor(wanted), rtol=1e-4, atol=0)


def test_pauses_are_not_brought_up_to_the_level_of_singing():
    quiet = recording("pause", seconds=40.0)
    for wave in quiet.waves.values():
        wave[:, RATE_HZ * 10 :] *= np.float16(0.001)
    examples = Examples([quiet], config(**PLAIN, remix=0.0, gain_db=0.0), CPU)
    levels = []
    for index in range(30):
        draw = examples.sampler.draw(0, index)
        gain = 10 ** (draw.stems["vocals"].gain_db / 20)
        levels.append(float(examples._waves([draw], "vocals").square().mean().sqrt() / gain))
    usual = float(np.sqrt(np.mean(quiet.waves["vocals"].astype(np.float64) ** 2)))
    assert max(levels) == pytest.approx(augmentation.MEAN_LEVEL, rel=1e-4)
    assert min(levels) < 0.05 * augmentation.MEAN_LEVEL  # 60 dB down in the recording, and no more than 20 dB up here
    assert examples._usual_level(0, "vocals") == pytest.approx(usual, rel=1e-3)


def test_short_recordings_are_padded_and_long_ones_are_entered_anywhere(recordings):
    examples = Examples(recordings, config(**PLAIN, remix=1.0), CPU)
    starts = []
    for index in range(80):
        draw = examples.sampler.draw(0, index)
        wave = examples._waves([draw], "accompaniment")[0, 0]
        if draw.stems["accompaniment"].recording == 3:
            sounding = wave.nonzero()
            starts.append(int(sounding[0]))
            assert int(sounding[-1] - sounding[0]) < 3.0 * RATE_HZ, draw
    assert len(set(starts)) > 3


def test_silence_comes_as_often_as_asked(recordings):
    sampler = Sampler(recordings, config(silence_share=0.25))
    silent = [{stem for stem, drawn in sampler.draw(0, i).stems.items() if drawn.silent} for i in range(400)]
    assert 70 < sum(stems == {"vocals"} for stems in silent) < 130
    assert 70 < sum(stems == {"accompaniment"} for stems in silent) < 130
    batch = Examples(recordings, config(**{**PLAIN, "silence_share": 0.5}), CPU).batch(0, range(4))
    assert all((batch.stems["vocals"][i] == 0).all() or (batch.stems["accompaniment"][i] == 0).all() for i in range(4))


def test_remixes_pair_different_recordings(recordings):
    sampler = Sampler(recordings, config(remix=1.0))
    draws = [sampler.draw(0, index).stems for index in range(50)]
    assert {draw["vocals"].recording for draw in draws} == {0, 1, 2}
    assert {draw["accompaniment"].recording for draw in draws} == {0, 1, 3}
    together = Sampler(recordings, config(remix=0.0))
    assert all(len({drawn.recording for drawn in together.draw(0, i).stems.values()}) == 1 for i in range(20))


def test_speech_is_drawn_less_often_than_singing():
    sampler = Sampler(
        [recording("sung", "vocals"), recording("spoken", "speech"), recording("song")], config(remix=1.0)
    )
    counts = np.bincount([sampler.draw(0, i).stems["vocals"].recording for i in range(600)], minlength=3)
    assert counts[1] < 0.5 * counts[0] and counts[1] > 0


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.0001, 1.25])
def test_speed_changes_pitch_and_nothing_else(speed):
    samples, frequency = 4000, 300.0
    time = torch.arange(augmentation.samples_needed(samples, speed), dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * frequency * time / RATE_HZ)[None]
    played = augmentation.change_speed(wave, speed, samples)
    first = 0 if speed == 1.0 else 1  # interpolation needs a sample before
    expected = torch.sin(
        2 * torch.pi * frequency * (torch.arange(samples, dtype=torch.float64) * speed + first) / RATE_HZ
    )[None]
    torch.testing.assert_close(played, expected, rtol=0, atol=2e-3)


def test_rooms_add_a_tail_of_the_energy_that_was_drawn(recordings):
    sampler = Sampler(recordings, config(**{**PLAIN, "reverb_share": 1.0}))
    stems = [sampler.draw(0, i).stems["vocals"] for i in range(3)]
    waves = torch.zeros(3, 1, 2 * RATE_HZ)
    waves[..., 0] = 1.0
    augmentation.add_rooms(waves, stems, [generator(0, 0, i) for i in range(3)], RATE_HZ)
    for wave, stem in zip(waves, stems, strict=True):
        tail = wave[0, 1:].square()
        assert abs(float(tail.sum()) / stem.reverb_gain - 1) < 0.3  # a sample of the room lies on the direct sound
        within = round(stem.reverb_s * RATE_HZ)
        assert tail[within // 2 :].sum() < 2e-3 * tail.sum()
    untouched = torch.ones(1, 1, 8)
    augmentation.add_rooms(untouched, [dataclasses.replace(stems[0], reverb_gain=0.0)], [generator(0, 0, 0)], RATE_HZ)
    assert (untouched == 1).all()


def test_equalisers_are_smooth_and_bounded(recordings):
    sampler = Sampler(recordings, config(**{**PLAIN, "equaliser_share": 1.0}, equaliser_db=3.0))
    draws = [sampler.draw(0, i) for i in range(20)]
    curves_db = 20 * augmentation.equalisers(draws, "vocals", 0, 512, torch.zeros(1)).log10()[:, 0, 0]
    assert curves_db.abs().max() <= 9.001
    assert curves_db.std() > 1.0 and curves_db.diff().abs().max() < 1.0


def test_clipping_is_soft(recordings):
    sampler = Sampler(recordings, config(**{**PLAIN, "drive_share": 1.0}))
    stems = [sampler.draw(0, i).stems["vocals"] for i in range(4)]
    waves = torch.linspace(-1, 1, 101).expand(4, 1, 101).clone()
    augmentation.clip_softly(waves, stems)
    slopes = waves.diff()
    assert (slopes > 0).all() and (slopes[..., 50] > slopes[..., -1]).all()
    assert (waves.abs().amax((1, 2)) <= 1.0).all()


def test_channels_are_swapped_in_both_stems():
    left = recording("song", channels=2)
    left.waves["vocals"][1] = 0
    left.waves["accompaniment"][1] = 0
    examples = Examples([left], config(**{**PLAIN, "swap_share": 0.5}, preset="spleeter"), CPU)
    seen = set()
    for index in range(8):
        draw = examples.sampler.draw(0, index)
        loud = [bool(examples._waves([draw], stem)[0, 0].abs().max() > 0) for stem in STEMS]
        assert loud[0] == loud[1]
        seen.add(loud[0])
    assert seen == {True, False}


def test_one_stem_alone_is_nothing_to_train_on(recordings):
    with pytest.raises(DataError, match="no recording of accompaniment"):
        Sampler(recordings[2:3], config())
