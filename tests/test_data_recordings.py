"""Decoding, the cache of waves, and accompaniments that leak: on sound made here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pyunetsep.data import (
    Recording,
    Source,
    Track,
    cache,
    find_tracks,
    load_recordings,
    shared_accompaniments,
    without_leaks,
)
from pyunetsep.errors import AudioFileError, DataError

RATE_HZ = 8000


def noise(
    seconds: float, *, seed: int = 0, channels: int = 1, rate_hz: int = RATE_HZ, level: float = 0.1
) -> np.ndarray:
    """[samples, channels], as soundfile has it."""
    return level * np.random.default_rng(seed).standard_normal((round(seconds * rate_hz), channels))


def write(path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "FLOAT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, subtype=subtype)
    return path


def write_song(folder: Path, seconds: float = 1.0, seed: int = 0) -> Path:
    for i, stem in enumerate(("vocals", "accompaniment")):
        write(folder / f"{stem}.wav", noise(seconds, seed=2 * seed + i))
    return folder


def load(path: Path, folder: Path, **options: Any) -> list[Recording]:
    settings = {"sample_rate_hz": RATE_HZ, "channels": 1, "strict": True, **options}
    return load_recordings(find_tracks([path]), cache=folder, **settings)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the tracks that were decoded, not found in the cache."""
    seen = []
    decode = cache.decode_track

    def record(track: Track, *arguments: Any) -> dict[str, np.ndarray]:
        seen.append(track.name)
        return decode(track, *arguments)

    monkeypatch.setattr(cache, "decode_track", record)
    return seen


# Waves


def test_a_song_is_what_its_files_hold(tmp_path):
    write_song(tmp_path / "data" / "a")
    (recording,) = load(tmp_path / "data", tmp_path / "cache")
    assert (recording.samples, recording.duration_s, recording.sample_rate_hz) == (RATE_HZ, 1.0, RATE_HZ)
    assert list(recording.waves) == ["vocals", "accompaniment"]
    for stem, seed in (("vocals", 0), ("accompaniment", 1)):
        wave = recording.waves[stem]
        assert (wave.shape, wave.dtype, wave.flags.writeable) == ((1, RATE_HZ), np.float16, False)
        assert isinstance(wave, np.memmap)
        there = noise(1.0, seed=seed)[:, 0]
        error = wave[0].astype(np.float64) - there
        # a mantissa of 11 bits: 3/4 of a step's square on average, relative to the sample's own power of two
        assert 10 * np.log10(np.mean(there**2) / np.mean(error**2)) > 72


def test_peaks_beyond_full_scale_stay(tmp_path):
    write(tmp_path / "vocals" / "a.wav", noise(1.0, level=2.0))
    (recording,) = load(tmp_path, tmp_path / "cache")
    assert np.abs(recording.waves["vocals"]).max() > 4


@pytest.mark.parametrize(("there", "wanted"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_channels_and_rate(tmp_path, there, wanted):
    wave = noise(1.0, channels=there, rate_hz=44100)
    write(tmp_path / "vocals" / "a.wav", wave, 44100)
    (recording,) = load(tmp_path, tmp_path / "cache", sample_rate_hz=44100, channels=wanted)
    (halved,) = load(tmp_path, tmp_path / "cache", sample_rate_hz=22050, channels=wanted)
    assert halved.waves["vocals"].shape == (wanted, 22050)
    expected = wave.mean(axis=1, keepdims=True) if wanted == 1 else np.broadcast_to(wave, (44100, 2))
    np.testing.assert_allclose(recording.waves["vocals"], expected.T, atol=3e-4)


def test_sources_are_summed_and_cut(tmp_path):
    for i, stem in enumerate(("vocals", "drums", "bass", "other")):
        write(tmp_path / "a" / f"{stem}.wav", noise(1.0 + 0.02 * i, seed=i))
    (recording,) = load(tmp_path, tmp_path / "cache")
    assert recording.samples == RATE_HZ
    total = sum(noise(1.0 + 0.02 * i, seed=i)[:RATE_HZ, 0] for i in (1, 2, 3))
    np.testing.assert_allclose(recording.waves["accompaniment"][0], total, atol=5e-4)


def write_stem_mp4(path: Path, waves: list[np.ndarray]) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        streams = [container.add_stream("aac", rate=44100, layout="stereo", bit_rate=256000) for _ in waves]
        for stream, wave in zip(streams, waves, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T, np.float32), format="fltp", layout="stereo")
            frame.sample_rate = 44100
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)


def tone(frequency_hz: float) -> np.ndarray:
    wave = 0.2 * np.sin(2 * np.pi * frequency_hz * np.arange(44100) / 44100)
    return np.stack([wave, wave], axis=1)


def test_stem_mp4(tmp_path):
    frequencies_hz = (100, 200, 400, 800, 1600)  # mixture, drums, bass, other, vocals
    write_stem_mp4(tmp_path / "a.stem.mp4", [tone(frequency_hz) for frequency_hz in frequencies_hz])
    (recording,) = load(tmp_path, tmp_path / "cache")
    assert recording.samples >= RATE_HZ
    for stem, wanted_hz in (("vocals", {1600}), ("accompaniment", {200, 400, 800})):
        spectrum = np.abs(np.fft.rfft(recording.waves[stem][0, :RATE_HZ].astype(np.float32)))  # a bin a hertz
        heard_hz = {frequency_hz for frequency_hz in frequencies_hz if spectrum[frequency_hz] > 0.05 * RATE_HZ / 2}
        assert heard_hz == wanted_hz


def test_a_stem_mp4_with_too_few_streams(tmp_path):
    write_stem_mp4(tmp_path / "a.stem.mp4", [tone(440), tone(220)])
    with pytest.raises(DataError, match=r"a\.stem\.mp4, stream 4: there are only 2 audio streams"):
        load(tmp_path, tmp_path / "cache")


def test_a_stem_mp4_that_is_damaged(tmp_path):
    write_stem_mp4(tmp_path / "a.stem.mp4", [tone(100 * i) for i in range(1, 6)])
    (tmp_path / "a.stem.mp4").write_bytes((tmp_path / "a.stem.mp4").read_bytes()[:9999])
    with pytest.raises(DataError, match=r"a\.stem\.mp4"):
        load(tmp_path, tmp_path / "cache")


# What cannot be used

BAD = {
    "garbage": lambda path: path.write_bytes(b"no sound" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "no samples": lambda path: write(path, noise(0.0)),
    "truncated": lambda path: path.write_bytes(write(path, noise(1.0)).read_bytes()[:5000]),
    "silent": lambda path: write(path, noise(1.0, level=0.0)),
    "almost silent": lambda path: write(path, noise(1.0, level=1e-6)),
    "NaN": lambda path: write(path, np.where(np.arange(8000) == 4000, np.nan, noise(1.0)[:, 0])),
    "infinite": lambda path: write(path, np.where(np.arange(8000) == 4000, np.inf, noise(1.0)[:, 0])),
    "beyond float16": lambda path: write(path, noise(1.0, level=1e6)),
    "surround": lambda path: write(path, noise(1.0, channels=6)),
    "gone": lambda path: path.unlink(),
    "other length": lambda path: write(path, noise(1.2)),
    "other rate": lambda path: write(path, noise(2.0), 2 * RATE_HZ),
    "stereo": lambda path: write(path, noise(1.0, channels=2)),
}
SAYS = {
    "no samples": "holds no samples",
    "silent": "is silent",
    "almost silent": "is silent",
    "NaN": r"NaN or infinite at 0\.500 s",
    "infinite": r"NaN or infinite at 0\.500 s",
    "beyond float16": "louder than float16 can hold",
    "surround": "has 6 channels, want 1 or 2",
    "other length": r"last 1\.20 s and 1\.00 s; want equal lengths",
    "other rate": "16000 Hz",
    "stereo": "1 and 2 channels",
}


@pytest.mark.parametrize("damage", BAD)
def test_a_track_that_cannot_be_used(tmp_path, damage):
    for name in ("a", "b", "c"):
        write_song(tmp_path / "data" / name)
    tracks = find_tracks([tmp_path / "data"])
    BAD[damage](tmp_path / "data" / "b" / "accompaniment.wav")
    notices, steps = [], []
    recordings = load_recordings(
        tracks,
        sample_rate_hz=4000,
        channels=1,
        cache=tmp_path / "cache",
        notify=notices.append,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [recording.track.name for recording in recordings] == ["a", "c"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    (notice,) = notices
    assert str(tmp_path / "data" / "b" / "accompaniment.wav") in notice
    assert notice.endswith("; b is left out")
    with pytest.raises(DataError, match=SAYS.get(damage, "accompaniment")):
        load_recordings(tracks, sample_rate_hz=4000, channels=1, cache=tmp_path / "cache", strict=True)


def test_lengths_a_codec_apart_are_cut(tmp_path):
    write(write_song(tmp_path / "data" / "a") / "accompaniment.wav", noise(1.09))
    assert load(tmp_path / "data", tmp_path / "cache")[0].samples == RATE_HZ


def test_nothing_left(tmp_path, capsys):
    write(tmp_path / "vocals" / "a.wav", noise(1.0, level=0.0))
    with pytest.raises(DataError, match="of 1 tracks none can be used"):
        load(tmp_path, tmp_path / "cache", strict=False)
    assert "is silent; a is left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="no data"):
        load_recordings([], sample_rate_hz=RATE_HZ, channels=1, cache=tmp_path / "cache")


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="channels: got 3"):
        load_recordings([], sample_rate_hz=RATE_HZ, channels=3, cache=tmp_path)
    with pytest.raises(ValueError, match="sample_rate_hz: got 0"):
        load_recordings([], sample_rate_hz=0, channels=1, cache=tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    write(tmp_path / "vocals" / "a.wav", noise(1.0))
    (tmp_path / "file").touch()
    with pytest.raises(AudioFileError, match="the cache cannot be made"):
        load(tmp_path, tmp_path / "file" / "cache")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(AudioFileError, match="the cache cannot be written: no space left on device"):
        load(tmp_path, tmp_path / "cache", strict=False)
    assert not list((tmp_path / "cache").iterdir())


# The cache


def test_decoded_once(tmp_path, decoded):
    for name in "ab":
        write_song(tmp_path / "data" / name)
    first = load(tmp_path / "data", tmp_path / "cache")
    again = load(tmp_path / "data", tmp_path / "cache")
    assert sorted(decoded) == ["a", "b"]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.waves["vocals"], other.waves["vocals"])


def test_what_the_key_depends_on(tmp_path, decoded):
    path = write(tmp_path / "vocals" / "a.wav", noise(1.0))
    load(tmp_path, tmp_path / "cache")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    load(tmp_path, tmp_path / "cache")
    assert len(decoded) == 2
    load(tmp_path, tmp_path / "cache", channels=2)
    load(tmp_path, tmp_path / "cache", sample_rate_hz=4000)
    assert len(decoded) == 4
    write(path, noise(0.5))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))  # another size
    assert load(tmp_path, tmp_path / "cache")[0].duration_s == 0.5
    streams = [Track("a", {"vocals": (Source(path, stream),)}, "vocals") for stream in (0, 1)]
    keys = {cache._cache_files(track, RATE_HZ, 1, tmp_path)["vocals"] for track in streams}
    assert len(keys) == 2


@pytest.mark.parametrize("damage", ["cut", "grown", "header", "empty", "dtype", "channels", "other stem"])
def test_a_damaged_cache_is_made_anew(tmp_path, decoded, damage):
    write_song(tmp_path / "data" / "a")
    (before,) = load(tmp_path / "data", tmp_path / "cache")
    wave = np.array(before.waves["vocals"])
    (file,) = (tmp_path / "cache").glob("*-vocals.npy")
    content = file.read_bytes()
    file.unlink()  # not in place: it is mapped
    if damage in ("dtype", "channels", "other stem"):
        other = {"dtype": wave.astype(np.float32), "channels": np.repeat(wave, 2, axis=0), "other stem": wave[:, :-1]}
        np.save(file, other[damage])
    else:
        file.write_bytes(
            {"cut": content[:-2], "grown": content + b"\0", "header": b"x" + content[1:], "empty": b""}[damage]
        )
    (after,) = load(tmp_path / "data", tmp_path / "cache")
    assert len(decoded) == 2
    np.testing.assert_array_equal(after.waves["vocals"], wave)


def test_an_interrupt_leaves_whole_files_and_they_are_not_made_again(tmp_path, decoded):
    for i in range(6):
        write_song(tmp_path / "data" / f"{i}", seed=i)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "data", tmp_path / "cache", progress=interrupt)
    before = list(decoded)
    assert not list((tmp_path / "cache").glob(".*"))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2 * len(before)
    assert len(load(tmp_path / "data", tmp_path / "cache")) == 6
    assert sorted(decoded) == [str(i) for i in range(6)]


def test_a_killed_run_goes_on_where_it_was(tmp_path, decoded):
    for i in range(4):
        write_song(tmp_path / "data" / f"{i}", seed=i)
    folder = tmp_path / "cache"
    # stops for good in the middle of writing its third file
    script = f"""
import time, numpy as np
from pyunetsep.data import cache, find_tracks, load_recordings
cache.os.cpu_count = lambda: 1
save, count = np.save, 0
def slow(file, wave, **options):
    global count
    count += 1
    if count == 3:
        file.write(b"half"); file.flush(); time.sleep(600)
    save(file, wave, **options)
np.save = slow
tracks = find_tracks([{str(tmp_path / "data")!r}])
load_recordings(tracks, sample_rate_hz={RATE_HZ}, channels=1, cache={str(folder)!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while not (list(folder.glob(".*.part")) and len(list(folder.glob("*.npy"))) == 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (part,) = folder.glob(".*.part")
    assert len(load(tmp_path / "data", folder)) == 4
    assert len(decoded) == 3
    assert part.exists()  # it might be of a run that is still under way
    os.utime(part, (0, 0))
    load(tmp_path / "data", folder)
    assert not part.exists()


def test_two_at_once(tmp_path):
    for i in range(4):
        write_song(tmp_path / "data" / f"{i}", seed=i)
    results: list[list[Recording]] = []
    threads = [
        threading.Thread(target=lambda: results.append(load(tmp_path / "data", tmp_path / "cache"))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one.waves["vocals"], other.waves["vocals"])
    assert len(list((tmp_path / "cache").iterdir())) == 8


def test_few_decode_at_once(tmp_path, monkeypatch):
    for i in range(12):
        write(tmp_path / "data" / "vocals" / f"{i}.wav", noise(0.1, seed=i))
    at_work, most, lock = 0, 0, threading.Lock()
    decode = cache.decode_track

    def counted(*arguments: Any) -> dict[str, np.ndarray]:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        made = decode(*arguments)
        with lock:
            at_work -= 1
        return made

    monkeypatch.setattr(cache, "decode_track", counted)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert len(load(tmp_path / "data", tmp_path / "cache")) == 12
    assert most <= 4


@pytest.fixture
def few_files():
    """Sets this process's soft limit of open files; it is as before at the end."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_recordings_than_the_soft_limit_of_files(tmp_path, few_files):
    for i in range(8):
        write_song(tmp_path / "data" / f"{i}", 0.1, seed=i)
    opened = os.open(os.devnull, os.O_RDONLY)  # the lowest that is free
    os.close(opened)
    few_files(opened + 12)
    assert len(load(tmp_path / "data", tmp_path / "cache")) == 8


@pytest.mark.parametrize("there", [False, True])
def test_too_many_files_are_called_that(tmp_path, few_files, monkeypatch, there):
    for i in range(20):
        write_song(tmp_path / "data" / f"{i}", 0.1, seed=i)
    if there:
        load(tmp_path / "data", tmp_path / "cache")
    monkeypatch.setattr(cache, "_allow_many_files", lambda: None)  # as where the hard limit is as low
    opened = os.open(os.devnull, os.O_RDONLY)
    os.close(opened)
    few_files(opened + 24)
    with pytest.raises(AudioFileError, match="too many open files"):
        load(tmp_path / "data", tmp_path / "cache", strict=False)


def test_too_many_files_are_no_fault_of_a_track(tmp_path, few_files):
    (track,) = find_tracks([write_song(tmp_path / "a", 0.1)])
    cache.decode_track(track, RATE_HZ, 1)  # what it imports is there
    opened = os.open(os.devnull, os.O_RDONLY)
    os.close(opened)
    few_files(opened)
    with pytest.raises(AudioFileError, match=r"vocals\.wav: too many open files"):
        cache.decode_track(track, RATE_HZ, 1)


# Leaks


def recording(name: str, *, sample_rate_hz: int = 4000, **stems: np.ndarray) -> Recording:
    sources = {stem: (Source(Path(f"{name}/{stem}.wav")),) for stem in stems}
    kind = "song" if len(stems) == 2 else next(iter(stems))
    waves = {stem: np.atleast_2d(wave).astype(np.float16) for stem, wave in stems.items()}
    return Recording(Track(name, sources, kind), waves, sample_rate_hz)  # type: ignore[arg-type]


def mono(seconds: float, seed: int) -> np.ndarray:
    """Noise with little above 600 Hz, as music has; at 4 kHz."""
    wave = noise(seconds, seed=seed, rate_hz=4000)[:, 0]
    return np.convolve(wave, np.hanning(13), "same")


def test_shared_accompaniments():
    shared = mono(12, seed=1)
    train = [
        recording(
            "same", vocals=mono(60, 9), accompaniment=np.concatenate([mono(17.3, 2), -0.2 * shared, mono(30, 3)])
        ),
        recording("strange", accompaniment=mono(45, 4)),
        recording("short", accompaniment=shared[8000:32000]),  # 6 of the 12 seconds
        recording("silent", accompaniment=np.zeros(50000)),
        recording("stereo", accompaniment=np.stack([shared, 0.5 * shared + 0.02 * mono(12, 8)])),
        recording("singer", vocals=shared),
    ]
    held_out = [
        recording("held out", vocals=mono(40, 7), accompaniment=np.concatenate([mono(10, 5), shared, mono(15, 6)])),
        recording("innocent", accompaniment=mono(23, 10)),
        recording("excerpt", accompaniment=shared[4000:20000]),  # 4 seconds
        recording("a cappella", vocals=shared),
    ]
    steps: list[tuple[int, int]] = []
    leaks = shared_accompaniments(held_out, train, progress=lambda *step: steps.append(step))
    assert {leak[:2] for leak in leaks} == {
        *((name, "held out") for name in ("same", "short", "stereo")),
        *((name, "excerpt") for name in ("same", "short", "stereo")),
    }
    assert leaks == sorted(leaks, key=lambda leak: -leak[2])
    scores = {leak[:2]: leak[2] for leak in leaks}
    assert 0.99 < scores["same", "held out"] <= 1.001
    assert scores["same", "excerpt"] == pytest.approx(0.4**0.5, abs=0.05)  # 4 of 10 seconds, the rest is silence
    assert steps[-1][0] == steps[-1][1] == 4 + 3 + 1
    everything = shared_accompaniments(held_out, train, threshold=1e-9)
    assert max(score for name, _, score in everything if name == "strange") < 0.2
    assert max(score for name, _, score in everything if name == "silent") < 1e-3
    assert {name for name, _, _ in everything} == {"same", "strange", "short", "silent", "stereo"}
    assert shared_accompaniments(held_out, train[5:]) == shared_accompaniments([], train) == []


def test_scores_are_those_of_the_formula(monkeypatch):
    """Over the borders of tracks, of blocks and of groups of pieces."""
    from pyunetsep.data import leaks

    monkeypatch.setattr(leaks, "_FFT", 1 << 11)
    monkeypatch.setattr(leaks, "_PIECES", 3)
    waves = [noise(seconds, seed=seed, rate_hz=2000)[:, 0] for seed, seconds in enumerate((0.31, 1.7, 0.2, 3.3, 0.9))]
    train = [recording(f"{i}", sample_rate_hz=2000, accompaniment=wave) for i, wave in enumerate(waves)]
    whole = [recording("h", sample_rate_hz=2000, accompaniment=noise(1.77, seed=9, rate_hz=2000)[:, 0])]
    found = {name: score for name, _, score in shared_accompaniments(whole, train, piece_s=0.3, threshold=1e-9)}
    piece_ends = [600, 1200, 1800, 2400, 3000, 3540]
    for track in train:
        wave = track.waves["accompaniment"][0].astype(np.float64)
        wave = np.pad(wave, max(0, 600 - len(wave)))
        windows = np.lib.stride_tricks.sliding_window_view(wave, 600)
        pieces = np.stack(
            [whole[0].waves["accompaniment"][0].astype(np.float64)[end - 600 : end] for end in piece_ends]
        )
        wanted = np.abs(windows @ pieces.T) / np.linalg.norm(windows, axis=1)[:, None] / np.linalg.norm(pieces, axis=1)
        assert found[track.track.name] == pytest.approx(wanted.max(), abs=1e-5)


@pytest.fixture
def searches(monkeypatch) -> list[int]:
    """Has an entry for each search that was made, not found in the cache."""
    from pyunetsep.data import leaks

    seen, scores = [], leaks._scores

    def counted(*arguments: Any) -> np.ndarray:
        seen.append(len(seen))
        return scores(*arguments)

    monkeypatch.setattr(leaks, "_scores", counted)
    return seen


def karaoke(folder: Path) -> list[Recording]:
    """Two songs that share their accompaniment, and one of its own."""
    shared = noise(4, seed=1)
    for name, wave in (("a", shared), ("b", 0.5 * shared), ("c", noise(4, seed=2))):
        write(folder / "data" / name / "vocals.wav", noise(4, seed=3))
        write(folder / "data" / name / "accompaniment.wav", wave)
    return load(folder / "data", folder / "cache")


def test_a_search_is_kept(tmp_path, searches):
    a, b, c = karaoke(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    found = shared_accompaniments([a], [c, b], cache=kept)
    assert [leak[:2] for leak in found] == [("b", "a")]
    again = load(tmp_path / "data", tmp_path / "cache")
    renamed = replace(again[1], track=replace(again[1].track, name="another"))
    assert shared_accompaniments([again[0]], [again[2], again[1]], cache=kept) == found
    assert shared_accompaniments([a], [c, renamed], cache=str(kept)) == [("another", "a", found[0][2])]
    assert (len(searches), len(list(kept.iterdir()))) == (1, 1)
    assert shared_accompaniments([a], [c, b]) == found
    assert len(searches) == 2
    others = [([a], [b, c], {}), ([a], [c, b], {"piece_s": 2.0}), ([a], [c, b], {"threshold": 0.05}), ([a], [c], {})]
    for number, (held_out, train, options) in enumerate(others, 3):
        shared_accompaniments(held_out, train, cache=kept, **options)
        assert (len(searches), len(list(kept.iterdir()))) == (number, number - 1)
    assert shared_accompaniments([a], [c], cache=kept) == []
    assert len(searches) == 6


def test_waves_that_no_file_tells_apart_are_searched_each_time(tmp_path, searches):
    a, b, _ = karaoke(tmp_path)
    loose = replace(b, waves={stem: np.array(wave) for stem, wave in b.waves.items()})
    for _ in range(2):
        assert len(shared_accompaniments([a], [loose], cache=tmp_path)) == 1
    part = replace(b, waves={"accompaniment": b.waves["accompaniment"][:, :100]})
    assert len(shared_accompaniments([a], [b], cache=tmp_path)) == 1
    assert shared_accompaniments([a], [part], cache=tmp_path) == []
    assert len(searches) == 4


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"[[0, 0", b"{}x", b"3", b"[3]", b"[[0, 0]]", b"[[1, 0, 0.9]]", b"[[0, -1, 0.9]]", b"[[0, 0, NaN]]"),
        *(b"[[0, 0, 0.1]]", b"[[true, 0, 0.9]]", b'[["0", 0, 0.9]]', b"\xff", b"[" * 100_000),
    ],
)
def test_a_damaged_search_is_made_anew(tmp_path, searches, damage):
    a, b, _ = karaoke(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    found = shared_accompaniments([a], [b], cache=kept)
    (file,) = kept.iterdir()
    before = file.read_bytes()
    file.write_bytes(damage)
    assert shared_accompaniments([a], [b], cache=kept) == found
    assert (len(searches), file.read_bytes()) == (2, before)


def test_a_search_that_cannot_be_kept_is_made(tmp_path, searches):
    a, b, _ = karaoke(tmp_path)
    assert len(shared_accompaniments([a], [b], cache=tmp_path / "nowhere")) == 1
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("options", [{"piece_s": 0}, {"piece_s": 17}, {"threshold": 0}])
def test_arguments_of_leaks(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        shared_accompaniments([], [], **options)


def test_without_leaks():
    wave = mono(1, 0)
    train = [
        recording("song", vocals=wave, accompaniment=wave),
        recording("loose", accompaniment=wave),
        recording("clean", vocals=wave, accompaniment=wave),
        recording("singer", vocals=wave),
    ]
    kept = without_leaks(train, [("song", "x", 0.9), ("loose", "x", 0.8), ("song", "y", 0.7)])
    assert [(r.track.name, r.track.kind, list(r.waves), list(r.track.sources)) for r in kept] == [
        ("song", "vocals", ["vocals"], ["vocals"]),
        ("clean", "song", ["vocals", "accompaniment"], ["vocals", "accompaniment"]),
        ("singer", "vocals", ["vocals"], ["vocals"]),
    ]
    assert kept[0].waves["vocals"] is train[0].waves["vocals"]
    assert kept[0].track.group == train[0].track.group
    assert without_leaks(train, []) == train
