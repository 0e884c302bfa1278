import dataclasses

import numpy as np
import pytest
import torch

from pyunetsep import InvalidAudioError, Separator, SeparatorConfig
from pyunetsep.audio import resampling_delay_s
from pyunetsep.schedule import Schedule, latency_of, prompt_patches, schedule_within, whole_patches
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, checkpoint, noise

MODELS = {"spleeter": SPLEETER_LIKE, "jansson": JANSSON_LIKE}


def separator(model=SPLEETER_LIKE, **config):
    return Separator(checkpoint(model), device="cpu", config=SeparatorConfig(**config))


def blocks(song, sizes):
    """The song's blocks of these sizes, over and over."""
    start = 0
    while start < len(song):
        size = sizes[0]
        sizes = (*sizes[1:], size)
        yield song[start : start + size]
        start += size


def streamed(stream, song, sizes):
    with stream:
        parts = [stream.push(block) for block in blocks(song, sizes)]
        parts.append(stream.flush())
    return {name: np.concatenate([part[name] for part in parts]) for name in stream.stems}


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_streamed_stems_are_those_of_the_whole_song(model, rate):
    song = noise(2, 3 * rate + 17).T.numpy()
    separate = separator(model)
    whole = separate(song, rate)
    random = np.random.default_rng(rate)
    for _ in range(20):
        sizes = tuple(random.integers(1, rate, 7).tolist())
        stems = streamed(separate.stream(rate, 2), song, sizes)
        for name, stem in whole.items():
            assert stems[name].shape == song.shape and stems[name].dtype == song.dtype
            assert np.abs(stems[name] - stem).max() <= 1e-5


@pytest.mark.parametrize("exact", [False, True])
def test_options_are_those_of_the_whole_song(exact):
    song = noise(2, 20_000).T.numpy()
    song[123] = np.nan
    separate = separator()
    whole = separate(song, 8_000, stem="vocals", exact=exact, sanitize=True)
    stems = streamed(separate.stream(8_000, 2, stem="vocals", exact=exact, sanitize=True), song, (900,))
    assert list(stems) == ["vocals"]
    assert np.abs(stems["vocals"] - whole["vocals"]).max() <= 1e-5


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("latency_s", [None, 0.25, 0.12])
def test_stems_are_out_within_the_latency(model, rate, latency_s):
    song = noise(2, 2 * rate).T.numpy()
    separate = separator(model)
    if latency_s is not None:
        model_rate = model.spectrogram.sample_rate_hz
        latency_s += resampling_delay_s(rate, model_rate) + resampling_delay_s(model_rate, rate)
    pushed = returned = 0
    worst_s = 0.0
    with separate.stream(rate, 2, latency_s=latency_s) as stream:
        assert latency_s is None or stream.latency_s <= latency_s
        for block in blocks(song, (1, 33, 470)):
            returned += len(stream.push(block)["vocals"])
            pushed += len(block)
            worst_s = max(worst_s, (pushed - returned) / rate)
        returned += len(stream.flush()["vocals"])
    assert worst_s <= stream.latency_s
    assert worst_s > 0.6 * stream.latency_s  # no empty promise either
    assert returned == pushed == len(song)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("latency_s", [0.3, 0.14, 0.1])
def test_prompt_stems_add_up_and_do_not_depend_on_the_blocks(model, latency_s):
    rate = model.spectrogram.sample_rate_hz
    song = noise(2, 2 * rate).T.numpy()
    separate = separator(model)
    once = streamed(separate.stream(rate, 2, latency_s=latency_s), song, (len(song),))
    again = streamed(separate.stream(rate, 2, latency_s=latency_s), song, (1000, 1))
    total = sum(once.values())
    assert np.abs(total - song).max() <= 1e-6
    for name in once:
        assert np.abs(once[name] - again[name]).max() <= 1e-6


@pytest.mark.parametrize("kind", ["int16", "float64", "one channel", "tensor", "mono tensor"])
def test_stems_are_like_the_blocks(kind):
    wave = noise(2, 12_000)
    song, channels = wave.T.numpy(), 2
    if kind == "int16":
        song = (song * 2**15).astype(np.int16)
    elif kind == "float64":
        song = song.astype(np.float64)
    elif kind == "one channel":
        song, channels = np.ascontiguousarray(song[:, 0]), 1
    elif kind == "tensor":
        song = wave.double()
    elif kind == "mono tensor":
        song, channels = wave[0], 1
    separate = separator()
    whole = separate(song, 8_000)["vocals"]
    with separate.stream(8_000, channels) as stream:
        pieces = (
            torch.split(song, 700, -1) if isinstance(song, torch.Tensor) else np.split(song, range(700, 12_000, 700))
        )
        parts = [stream.push(piece)["vocals"] for piece in pieces] + [stream.flush()["vocals"]]
    joined = torch.cat(parts, -1) if isinstance(song, torch.Tensor) else np.concatenate(parts)
    assert joined.dtype == whole.dtype and joined.shape == whole.shape
    assert np.abs(np.asarray(joined, np.float64) - np.asarray(whole, np.float64)).max() <= (
        1 if kind == "int16" else 1e-5
    )


def test_empty_blocks_and_empty_songs():
    with separator().stream(8_000, 2) as stream:
        assert stream.push(np.zeros((0, 2), np.float32))["vocals"].shape == (0, 2)
        assert stream.flush()["vocals"].shape == (0, 2)


def test_a_refused_block_leaves_the_stream_as_it_was():
    song = noise(2, 12_000).T.numpy()
    separate = separator()
    whole = separate(song, 8_000)["vocals"]
    with separate.stream(8_000, 2) as stream:
        parts = [stream.push(song[:5_000])["vocals"]]
        bad = song[5_000:6_000].copy()
        bad[7, 1] = np.inf
        for _ in range(2):  # the second message still counts from the song's beginning
            with pytest.raises(InvalidAudioError, match=r"inf at sample 5007 \(0\.626 s\) of channel 1"):
                stream.push(bad)
        with pytest.raises(InvalidAudioError, match=r"one song of 2 channels, got shape \(1000,\)"):
            stream.push(song[5_000:6_000, 0])
        with pytest.raises(TypeError, match=r"NumPy array of 2 dimensions, float32; got a NumPy array of .* float64"):
            stream.push(song[5_000:6_000].astype(np.float64))
        with pytest.raises(TypeError, match="got a tensor"):
            stream.push(torch.from_numpy(song[5_000:6_000].T.copy()))
        with pytest.raises(InvalidAudioError, match="one song"):
            stream.push(torch.zeros(2, 2, 100))
        parts += [stream.push(song[5_000:])["vocals"], stream.flush()["vocals"]]
    assert np.abs(np.concatenate(parts) - whole).max() <= 1e-5


def test_an_ended_stream_says_so():
    stream = separator().stream(8_000, 1)
    with pytest.raises(ValueError, match="nothing was pushed"):
        stream.flush()
    stream.push(np.zeros(10, np.float32))
    stream.flush()
    for ended in (lambda: stream.push(np.zeros(10, np.float32)), stream.flush):
        with pytest.raises(ValueError, match="has ended"):
            ended()
    with separator().stream(8_000, 1) as left:
        pass
    with pytest.raises(ValueError, match="has ended"):
        left.push(np.zeros(10, np.float32))


def test_what_cannot_stream_says_why():
    with pytest.raises(ValueError, match=r"cannot stream.*loudest magnitude of the whole song"):
        separator(dataclasses.replace(JANSSON_LIKE, normalisation="song")).stream(8_000, 2)
    for latency_s in (0.0, -1.0, 0.01, float("nan")):
        with pytest.raises(ValueError, match=r"latency_s must be at least 0\.0\d+ s"):
            separator().stream(8_000, 2, latency_s=latency_s)
    for options, problem in (
        ({"channels": 0}, ValueError),
        ({"channels": 65}, ValueError),
        ({"channels": 2.0}, TypeError),
        ({"channels": True}, TypeError),
        ({"sample_rate": 999}, ValueError),
        ({"stem": "drums"}, ValueError),
    ):
        with pytest.raises(problem, match=next(iter(options))):
            separator().stream(**options)


def test_streams_of_one_separator_are_strangers():
    separate = separator()
    songs = [noise(1, 9_000, seed=seed)[0].numpy() for seed in (1, 2)]
    streams = [separate.stream(8_000, 1) for _ in songs]
    parts = [[], []]
    for start in range(0, 9_000, 500):
        for stream, song, made in zip(streams, songs, parts, strict=True):
            made.append(stream.push(song[start : start + 500])["vocals"])
    for stream, song, made in zip(streams, songs, parts, strict=True):
        made.append(stream.flush()["vocals"])
        assert np.abs(np.concatenate(made) - separate(song, 8_000)["vocals"]).max() <= 1e-5


def test_memory_does_not_grow_with_the_song():
    separate = separator()
    with separate.stream(8_000, 2) as stream:
        held = []
        for second in range(60):
            stream.push(noise(2, 8_000, seed=second).T.numpy())
            inner = stream._stream
            waves = (
                [unmixer.pending for unmixer in inner.unmixers] + list(inner.mixture.waves) + list(inner.narrow.waves)
            )
            held.append(sum(wave.untyped_storage().nbytes() for wave in waves))
    assert max(held[30:]) <= max(held[:30])


def test_schedules():
    model = SPLEETER_LIKE  # patches of 64 frames, 4 ms each
    whole = whole_patches(model, SeparatorConfig())
    assert whole == Schedule(context=0, step=48, fade=16, ahead=0)
    assert schedule_within(None, model, SeparatorConfig(), grids=1, spent_s=0.1) == whole
    for frames in range(1, model.patch_frames):
        prompt = prompt_patches(model, frames)
        assert prompt.wait == frames and prompt.context + prompt.wait == model.patch_frames
        assert prompt.fade <= prompt.step  # what join_patches wants
        exactly = latency_of(frames, model, 1) + 0.1
        assert schedule_within(exactly, model, SeparatorConfig(), grids=1, spent_s=0.1) == prompt
        assert schedule_within(exactly + 1e-4, model, SeparatorConfig(), grids=1, spent_s=0.1) == prompt


def test_a_block_may_be_filled_anew_once_it_was_pushed():
    song = noise(2, 12_000)
    separate = separator()
    whole = separate(song, 8_000)["accompaniment"]
    block, parts = torch.empty(2, 500), []
    with separate.stream(8_000, 2) as stream:
        for start in range(0, 12_000, 500):
            block.copy_(song[:, start : start + 500])
            parts.append(stream.push(block)["accompaniment"])
        parts.append(stream.flush()["accompaniment"])
    assert (torch.cat(parts, -1) - whole).abs().max() <= 1e-5
