"""The front door, for arrays and files, with a tiny model: what comes out is what went in, and it adds up."""

import threading
import warnings

import numpy as np
import pytest
import soundfile
import torch

import pyunetsep
from pyunetsep import ClippingWarning, InvalidAudioError, Separator, SeparatorConfig
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, checkpoint, noise

STEMS = ["vocals", "accompaniment"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # the networks are too small to share out


@pytest.fixture(params=[SPLEETER_LIKE, JANSSON_LIKE], ids=["spleeter", "jansson2017"])
def separator(request):
    return Separator(checkpoint(request.param), device="cpu")


@pytest.fixture
def spleeter():
    return Separator(checkpoint(SPLEETER_LIKE), device="cpu")


def song(samples=9_000, channels=2, seed=0):
    return noise(channels, samples, seed).T.contiguous().numpy()


# ---- sums, rates, blocks


@pytest.mark.parametrize("rate", [8_000, 4_000, 44_100, 48_000, 192_000, 11_025, 1_000])
def test_stems_add_up_to_the_mixture_at_any_rate(separator, rate):
    mixture = song()
    stems = separator(mixture, rate)
    assert list(stems) == STEMS
    total = stems["vocals"].astype(np.float64) + stems["accompaniment"]
    assert np.abs(total - mixture).max() < 1e-6
    assert np.abs(stems["vocals"]).max() > 1e-3


def test_a_resampled_stem_is_the_stem_of_the_model_rate_and_its_share_of_the_rest(spleeter):
    """A tone in the band goes the way of the networks; one that the model's rate cannot hold is shared by the gain."""
    time = np.arange(24_000) / 16_000
    low, high = 0.3 * np.sin(2 * np.pi * 700 * time), 0.3 * np.sin(2 * np.pi * 6_500 * time)
    whole = spleeter((low + high).astype(np.float32), 16_000)["vocals"]
    halved = spleeter(low[::2].astype(np.float32), 8_000)["vocals"]
    inner = slice(4_000, 20_000)
    spectrum = np.abs(np.fft.rfft(whole[inner] * np.hanning(16_000)))
    expected = np.abs(np.fft.rfft(halved[2_000:10_000] * np.hanning(8_000)))
    np.testing.assert_allclose(spectrum[700], 2 * expected[700], rtol=2e-3)
    assert 0.05 < spectrum[6_500] / (0.3 * 4_000) < 0.95  # a share: neither all nor nothing


def test_the_same_bits_on_every_run_and_however_the_song_is_cut(spleeter, monkeypatch):
    mixture = song()
    first = spleeter(mixture, 22_050)
    monkeypatch.setattr("pyunetsep.separator.BLOCK_S", 0.01)
    again = spleeter(mixture, 22_050)
    for stem in STEMS:
        assert np.array_equal(first[stem], again[stem])


def test_exact_mode_does_not_share_what_the_network_does_not_see(spleeter):
    stems = spleeter(song(), 8_000, exact=True)
    assert np.abs(sum(stems.values()) - song()).max() > 1e-3


def test_one_stem_is_the_same_as_among_all(separator):
    mixture = song()
    stems = separator(mixture, 16_000)
    for stem in STEMS:
        alone = separator(mixture, 16_000, stem=stem)
        assert list(alone) == [stem]
        assert np.array_equal(alone[stem], stems[stem])


# ---- types, shapes, sizes


@pytest.mark.parametrize("samples", [0, 1, 2, 100])
@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_short_songs(separator, samples, rate):
    mixture = song(samples)
    stems = separator(mixture, rate)
    for stem in STEMS:
        assert stems[stem].shape == (samples, 2)
    assert np.abs(sum(stems.values()) - mixture).max(initial=0.0) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floats_keep_their_dtype(spleeter, dtype):
    mixture = song().astype(dtype)
    before = mixture.copy()
    stems = spleeter(mixture, 8_000)
    step = np.finfo(mixture.dtype.newbyteorder("=")).eps
    assert {stem.dtype for stem in stems.values()} == {np.dtype(dtype)}
    assert np.abs(sum(stem.astype(np.float64) for stem in stems.values()) - mixture).max() <= 2 * step
    assert np.array_equal(mixture, before)


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_integers_keep_their_dtype_and_add_up_to_one_step_a_stem(spleeter, dtype):
    mixture = np.round(song().astype(np.float64) * np.iinfo(dtype).max).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stems = spleeter(mixture, 48_000)
    assert {stem.dtype for stem in stems.values()} == {np.dtype(dtype)}
    total = sum(stem.astype(np.int64) for stem in stems.values())
    assert np.abs(total - mixture).max() <= 2


def test_integers_that_clip_warn_with_the_peak_and_rescale_avoids_it(spleeter):
    loud = np.where(song() > 0, 32_767, -32_768).astype(np.int16)
    with pytest.warns(ClippingWarning, match=r"(vocals|accompaniment) peaks at 1\.\d+ of full scale and was clipped"):
        stems = spleeter(loud, 8_000)
    assert max(np.abs(stem.astype(int)).max() for stem in stems.values()) >= 32_767
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rescaled = spleeter(loud, 8_000, rescale=True)
    gain = np.abs(rescaled["vocals"].astype(int) + rescaled["accompaniment"]) / 32_767
    assert gain.max() - gain.min() < 1e-3 and gain.max() < 1.0


def test_one_dimension_is_mono_and_comes_back_so(separator):
    mono = song(channels=1)
    stems, columns = separator(mono[:, 0], 8_000), separator(mono, 8_000)
    assert stems["vocals"].shape == (9_000,)
    assert np.array_equal(stems["vocals"], columns["vocals"][:, 0])


def test_six_channels(separator):
    stems = separator(song(channels=6), 8_000)
    assert stems["vocals"].shape == (9_000, 6)
    first = separator(song(channels=6)[:, :2], 8_000)
    np.testing.assert_allclose(stems["vocals"][:, :2], first["vocals"], atol=1e-6)


def test_tensors_are_channels_by_samples_and_may_be_many_songs(spleeter):
    batch = torch.stack([noise(2, 3_000, seed) for seed in range(3)])
    stems = spleeter(batch, 8_000)
    assert isinstance(stems["vocals"], torch.Tensor) and stems["vocals"].shape == batch.shape
    for i in range(3):
        alone = spleeter(batch[i], 8_000)
        assert torch.equal(stems["vocals"][i], alone["vocals"])
        assert np.array_equal(spleeter(batch[i].T.numpy(), 8_000)["vocals"], alone["vocals"].T.numpy())
    assert spleeter(batch[0, 0], 8_000)["vocals"].shape == (3_000,)
    assert spleeter(batch[0].to(torch.bfloat16), 8_000)["vocals"].dtype == torch.bfloat16
    assert spleeter(batch[:0], 8_000)["vocals"].shape == (0, 2, 3_000)
    needs_grad = batch[0].clone().requires_grad_()
    assert torch.equal(spleeter(needs_grad, 8_000)["vocals"], stems["vocals"][0])


def test_silence(separator):
    stems = separator(np.zeros((5_000, 2), np.float32), 44_100)
    assert not any(stem.any() for stem in stems.values())


# ---- mistakes


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "audio must be a NumPy array or a torch tensor, got list"),
        (np.zeros(9, np.complex64), TypeError, "audio must be int16, .* float64; got complex64"),
        (np.zeros(9, np.uint8), TypeError, "got uint8"),
        (np.zeros(9, bool), TypeError, "got bool"),
        (np.zeros(9, object), TypeError, "got object"),
        (np.zeros((), np.float32), InvalidAudioError, "got 0 dimensions"),
        (np.zeros((1, 2, 9), np.float32), InvalidAudioError, r"got 3 dimensions, shape \(1, 2, 9\)"),
        (np.zeros((2, 44_100), np.float32), InvalidAudioError, "got 44100 in shape .*is the array transposed"),
        (np.zeros((9, 0), np.float32), InvalidAudioError, "1 to 64 channels, got 0"),
        (torch.zeros(44_100, 2), InvalidAudioError, "got 44100 in shape .*is the array transposed"),
        (torch.zeros(()), InvalidAudioError, "0 dimensions"),
    ],
)
def test_arrays_that_are_no_songs(spleeter, audio, error, message):
    with pytest.raises(error, match=message):
        spleeter(audio, 8_000)


@pytest.mark.parametrize("rate", [0, -1, 999, 10**7, 44_100.5, float("nan"), float("inf")])
def test_rates_that_are_none(spleeter, rate):
    with pytest.raises(ValueError, match="sample_rate must be a whole number of Hz from 1000 to 768000, got"):
        spleeter(song(10), rate)


def test_a_rate_that_is_no_number(spleeter):
    with pytest.raises(TypeError, match="sample_rate must be a number of Hz, got str"):
        spleeter(song(10), "44100")


@pytest.mark.parametrize("stem", ["drums", [], ["vocals", "drums"], ""])
def test_stems_that_the_model_has_not(spleeter, stem):
    with pytest.raises(ValueError, match="stem must be of vocals, accompaniment; got"):
        spleeter(song(10), 8_000, stem=stem)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_sample_is_named(spleeter, bad):
    mixture = song(100_000)
    mixture[90_000, 0] = mixture[50_000, 1] = bad
    with pytest.raises(InvalidAudioError, match=r"got -?(nan|inf) at sample 50000 \(6\.250 s\) of channel 1"):
        spleeter(mixture, 8_000)
    stems = spleeter(mixture, 8_000, sanitize=True)
    mixture[90_000, 0] = mixture[50_000, 1] = 0
    assert np.array_equal(stems["vocals"], spleeter(mixture, 8_000)["vocals"])


def test_devices():
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got 'gpu'"):
        Separator(checkpoint(), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(pyunetsep.DeviceError, match=r"device 'cuda' cannot be used: .*CUDA"):
            Separator(checkpoint(), device="cuda")


# ---- progress and cancellation


def test_progress_rises_to_the_whole(spleeter):
    calls = []
    spleeter(song(100_000), 8_000, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (12.5, 12.5) and len(calls) == 3


def test_cancel(spleeter):
    cancel = threading.Event()
    with pytest.raises(pyunetsep.Cancelled, match=r"cancelled after 5\.0 s of 12\.5 s"):
        spleeter(song(100_000), 8_000, progress=lambda *_: cancel.set(), cancel=cancel)


def test_threads_share_a_separator(spleeter):
    expected = spleeter(song(), 16_000)["vocals"]
    results = [None] * 4

    def work(i):
        results[i] = spleeter(song(), 16_000)["vocals"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)


# ---- files


@pytest.fixture
def wav(tmp_path):
    def write(name="song.wav", samples=9_000, channels=2, rate=8_000, subtype="PCM_16", **options):
        path = tmp_path / name
        soundfile.write(path, song(samples, channels), rate, subtype=subtype, **options)
        return path

    return write


def read(path):
    return soundfile.read(path, always_2d=True, dtype="float64")[0]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_file_becomes_files_like_it(spleeter, wav, tmp_path, subtype, rate):
    path = wav(subtype=subtype, rate=rate)
    result = spleeter.separate_file(path, tmp_path / "out")
    assert result.error is None and result.skipped == [] and result.duration_s == 9_000 / rate
    assert result.outputs == {stem: tmp_path / "out" / "song" / f"{stem}.wav" for stem in STEMS}
    for output in result.outputs.values():
        info = soundfile.info(output)
        assert (info.frames, info.channels, info.samplerate, info.subtype) == (9_000, 2, rate, subtype)
    step = {"PCM_16": 2**-15, "PCM_24": 2**-23, "PCM_32": 2**-31}.get(subtype, 1e-6 / 2)
    total = sum(read(output) for output in result.outputs.values())
    assert np.abs(total - read(path)).max() <= 2 * step


def test_a_file_and_its_array_give_the_same(spleeter, wav, tmp_path):
    path = wav(subtype="FLOAT", samples=100_000)
    result = spleeter.separate_file(path, tmp_path / "out")
    array, rate = soundfile.read(path, dtype="float32")
    for stem, made in spleeter(array, rate).items():
        assert np.array_equal(soundfile.read(result.outputs[stem], dtype="float32")[0], made)


def test_part_of_a_file(spleeter, wav, tmp_path):
    path = wav(subtype="FLOAT")
    result = spleeter.separate_file(path, tmp_path / "out", start_s=0.25, duration_s=0.5, stem="vocals")
    array, rate = soundfile.read(path, dtype="float32")
    expected = spleeter(array[2_000:6_000], rate)["vocals"]
    assert np.array_equal(soundfile.read(result.outputs["vocals"], dtype="float32")[0], expected)


def test_existing_outputs(spleeter, wav, tmp_path):
    path, out = wav(), tmp_path / "out"
    outputs = spleeter.separate_file(path, out).outputs
    first = {stem: output.read_bytes() for stem, output in outputs.items()}
    with pytest.raises(pyunetsep.OutputExistsError, match=r"vocals\.wav: exists already"):
        spleeter.separate_file(path, out)
    outputs["vocals"].write_bytes(b"mine")
    outputs["accompaniment"].unlink()
    result = spleeter.separate_file(path, out, skip_existing=True)
    assert result.skipped == ["vocals"] and outputs["vocals"].read_bytes() == b"mine"
    assert outputs["accompaniment"].read_bytes() == first["accompaniment"]
    spleeter.separate_file(path, out, overwrite=True)
    assert outputs["vocals"].read_bytes() == first["vocals"]


def test_an_input_is_never_its_own_output(spleeter, wav, tmp_path):
    (tmp_path / "vocals").mkdir()
    path = wav("vocals/vocals.wav")
    before = path.read_bytes()
    with pytest.raises(pyunetsep.OutputExistsError, match="is the file that a stem would be written to"):
        spleeter.separate_file(path, tmp_path, overwrite=True)
    assert path.read_bytes() == before


def test_two_inputs_with_one_output_name(spleeter, wav, tmp_path):
    first, second = wav(), wav("song.flac")
    with pytest.raises(pyunetsep.OutputExistsError, match=r"song\.flac and .*song\.wav would both write to"):
        list(spleeter.separate_files([first, second], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_one_bad_file_does_not_stop_the_others(spleeter, wav, tmp_path):
    bad = tmp_path / "text.mp3"
    bad.write_text("no music\n" * 100)
    results = list(spleeter.separate_files([wav("a.wav"), bad, tmp_path / "none.wav", wav("b.wav")], tmp_path / "out"))
    assert [result.error is None for result in results] == [True, False, False, True]
    assert "text.mp3" in str(results[1].error) and "none.wav" in str(results[2].error)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def test_nothing_is_left_of_a_failure_in_the_middle(spleeter, wav, tmp_path):
    path = wav(subtype="FLOAT", samples=100_000)
    array, rate = soundfile.read(path, dtype="float32")
    array[90_000] = np.nan
    soundfile.write(path, array, rate, subtype="FLOAT")
    with pytest.raises(InvalidAudioError, match="sample 90000"):
        spleeter.separate_file(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spleeter.separate_file(path, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()


def test_unicode_names(spleeter, wav, tmp_path):
    path = wav("Ünïcødé – 歌 🎤.wav")
    outputs = spleeter.separate_file(path, tmp_path / "出力").outputs
    assert outputs["vocals"] == tmp_path / "出力" / "Ünïcødé – 歌 🎤" / "vocals.wav" and outputs["vocals"].exists()


def test_clipping_in_a_file_warns_with_the_peak_and_rescale_avoids_it(spleeter, wav, tmp_path):
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.where(song() > 0, 0.999, -1.0), 8_000, subtype="PCM_16")
    with pytest.warns(ClippingWarning, match=r"peaks at 1\.\d+ of full scale, and \d+ samples were clipped"):
        result = spleeter.separate_file(path, tmp_path / "out")
    assert max(result.peaks.values()) > 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = spleeter.separate_file(path, tmp_path / "rescaled", rescale=True)
    assert max(np.abs(read(output)).max() for output in result.outputs.values()) == pytest.approx(1.0, abs=1e-3)


def test_more_channels_than_can_be_separated(spleeter, tmp_path):
    path = tmp_path / "many.wav"
    soundfile.write(path, np.zeros((10, 65)), 8_000)
    with pytest.raises(InvalidAudioError, match="has 65 channels; at most 64"):
        spleeter.separate_file(path, tmp_path / "out")


def test_memory_of_a_long_song_is_that_of_a_segment(spleeter, wav, tmp_path):
    """What waits inside a stream does not grow with the song."""
    import tracemalloc

    peaks = []
    for seconds in (20, 80):
        path = wav(f"{seconds}.wav", samples=seconds * 8_000)
        tracemalloc.start()
        spleeter.separate_file(path, tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_model_normalised_by_the_songs_maximum_reads_the_song_twice(wav, tmp_path):
    import dataclasses

    separator = Separator(checkpoint(dataclasses.replace(JANSSON_LIKE, normalisation="song")), device="cpu")
    mixture = song(30_000)
    loud, quiet = separator(mixture, 8_000), separator(mixture / 64, 8_000)
    np.testing.assert_allclose(quiet["vocals"] * 64, loud["vocals"], atol=1e-5)
    path = wav(samples=30_000, subtype="FLOAT")
    result = separator.separate_file(path, tmp_path / "out")
    assert np.array_equal(soundfile.read(result.outputs["vocals"], dtype="float32")[0], loud["vocals"])


def test_a_configuration_of_ones_own():
    plain = Separator(checkpoint(JANSSON_LIKE), device="cpu", config=SeparatorConfig(grids=1, overlap=0.0))
    default = Separator(checkpoint(JANSSON_LIKE), device="cpu")
    assert not np.array_equal(plain(song(), 4_000)["vocals"], default(song(), 4_000)["vocals"])
    with pytest.raises(ValueError, match="grids must divide the hop of 96 samples, got 5"):
        Separator(checkpoint(JANSSON_LIKE), device="cpu", config=SeparatorConfig(grids=5))(song(), 4_000)
