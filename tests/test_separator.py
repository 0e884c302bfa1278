"""The front door, for arrays and files, with a tiny model: what comes out is what went in, and it adds up."""

import copy
import dataclasses
import pickle
import threading
import warnings

import numpy as np
import pytest
import soundfile
import torch

import pyunetsep
from pyunetsep import ClippingWarning, InvalidAudioError, Separator, SeparatorConfig
from pyunetsep.engine import Networks
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
    for pair in range(0, 6, 2):
        alone = separator(song(channels=6)[:, pair : pair + 2], 8_000)
        assert np.array_equal(stems["vocals"][:, pair : pair + 2], alone["vocals"])


def test_a_channel_that_is_left_over_is_separated_by_itself(separator):
    stems = separator(song(channels=3), 8_000)
    alone = separator(song(channels=3)[:, 2], 8_000)
    assert np.array_equal(stems["vocals"][:, 2], alone["vocals"])


# ---- one mask for all channels


@pytest.fixture(params=["patch", "song"])
def by_middle(request):
    """A mono network that hears the mean of a song's channels."""
    model = dataclasses.replace(JANSSON_LIKE, normalisation=request.param)
    return Separator(checkpoint(model), device="cpu", config=SeparatorConfig(stereo_masks="mid"))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [4_000, 44_100])
def test_stems_by_the_masks_of_the_middle_add_up(by_middle, rate, channels):
    mixture = song(channels=channels)
    stems = by_middle(mixture, rate)
    total = stems["vocals"].astype(np.float64) + stems["accompaniment"]
    assert np.abs(total - mixture).max() < 1e-6


@pytest.mark.parametrize("rate", [4_000, 11_025])
def test_masks_of_the_middle_make_the_stems_of_the_middle(by_middle, rate):
    """In the band and above it, where gains share out the rest: channels' stems, added up, are their sum's."""
    mixture = song(channels=3)
    each = Separator(checkpoint(by_middle.model), device="cpu")
    expected = each(mixture.mean(1, keepdims=True), rate)["vocals"]
    np.testing.assert_allclose(by_middle(mixture, rate)["vocals"].mean(1, keepdims=True), expected, atol=1e-6)


def test_masks_of_the_middle_do_not_depend_on_blocks(by_middle, monkeypatch):
    mixture = song()
    first = by_middle(mixture, 22_050)
    monkeypatch.setattr("pyunetsep.separator.BLOCK_S", 0.01)
    for stem, wave in by_middle(mixture, 22_050).items():
        assert np.array_equal(first[stem], wave)


def test_masks_of_the_middle_take_half_the_work_in_stereo(monkeypatch):
    worked_on = []
    estimate = Networks.estimate

    def counted(self, magnitude, stems, **options):
        worked_on[-1] += magnitude.shape[0] * len(stems)
        return estimate(self, magnitude, stems, **options)

    monkeypatch.setattr(Networks, "estimate", counted)
    for choice in ("each", "mid"):
        worked_on.append(0)
        Separator(checkpoint(JANSSON_LIKE), device="cpu", config=SeparatorConfig(stereo_masks=choice))(song(), 4_000)
    assert worked_on[0] == 2 * worked_on[1] > 0


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.int16])
@pytest.mark.parametrize("rate", [8_000, 11_025])
def test_tensors_are_as_good_as_arrays(spleeter, dtype, rate):
    mixture = noise(2, 20_000)
    mixture = mixture.to(dtype) if dtype.is_floating_point else (mixture * 2**15).to(dtype)
    expected = spleeter(mixture.T.numpy(), rate)
    for stem, wave in spleeter(mixture, rate).items():
        assert wave.dtype == dtype and np.array_equal(wave.T.numpy(), expected[stem])


def test_silence(separator):
    stems = separator(np.zeros((5_000, 2), np.float32), 44_100)
    assert not any(stem.any() for stem in stems.values())


# ---- mistakes


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "audio must be a NumPy array or a dense torch tensor, got list"),
        (torch.zeros(2, 9, device="meta"), TypeError, "dense torch tensor"),
        (torch.zeros(2, 9).to_sparse(), TypeError, "dense torch tensor"),
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_the_first_bad_sample_is_named(spleeter, bad):
    mixture = song(100_000)
    mixture[90_000, 0] = mixture[50_000, 1] = bad
    with pytest.raises(InvalidAudioError, match=r"got \S+ at sample 50000 \(6\.250 s\) of channel 1"):
        spleeter(mixture, 8_000)
    stems = spleeter(mixture, 8_000, sanitize=True)
    mixture[90_000, 0] = mixture[50_000, 1] = 0
    assert np.array_equal(stems["vocals"], spleeter(mixture, 8_000)["vocals"])


def test_a_bad_sample_is_counted_from_the_beginning_of_the_file(spleeter, tmp_path):
    mixture = song(20_000)
    mixture[12_345, 0] = np.nan
    soundfile.write(tmp_path / "nan.wav", mixture, 8_000, subtype="FLOAT")
    with pytest.raises(InvalidAudioError, match=r"nan\.wav: .* at sample 12345 \(1\.543 s\)"):
        spleeter.separate_file(tmp_path / "nan.wav", tmp_path / "out", start_s=1.0)
    with pytest.raises(InvalidAudioError, match=r"song 1: .* at sample 12345"):
        spleeter(torch.from_numpy(np.stack((np.zeros_like(mixture), mixture))).mT, 8_000)


def test_sanitised_samples_do_not_spoil_the_peak_of_the_song():
    separator = Separator(checkpoint(dataclasses.replace(JANSSON_LIKE, normalisation="song")), device="cpu")
    mixture = song(20_000)
    mixture[5, 0] = np.nan
    stems = separator(mixture, 8_000, sanitize=True)
    mixture[5, 0] = 0
    assert np.array_equal(stems["vocals"], separator(mixture, 8_000)["vocals"])


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_views_and_read_only_arrays(spleeter, rate):
    mixture = song()
    expected = spleeter(mixture, rate)["vocals"]
    backwards = np.ascontiguousarray(mixture[::-1])[::-1]
    swapped = np.ascontiguousarray(mixture[:, ::-1])[:, ::-1]
    read_only = mixture.copy()
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in (backwards, swapped, read_only, np.asfortranarray(mixture)):
            assert np.array_equal(spleeter(array, rate)["vocals"], expected)


def test_names_and_paths_where_others_are_wanted(spleeter):
    with pytest.raises(TypeError, match=r"got str; Separator\.from_pretrained loads a model by name or path"):
        Separator("spleeter-2stems")
    with pytest.raises(TypeError, match=r"got str; Separator\.separate_file takes a path"):
        spleeter("song.wav")
    assert repr(spleeter) == "Separator('tiny', device='cpu')"


def test_devices():
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got 'gpu'"):
        Separator(checkpoint(), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(pyunetsep.DeviceError, match=r"device 'cuda' cannot be used: .*CUDA"):
            Separator(checkpoint(), device="cuda")


# ---- progress and cancellation


def test_progress_rises_to_the_whole_as_stems_are_made(spleeter):
    calls = []
    spleeter(song(100_000), 8_000, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert all(done < 12.5 for done, _ in calls[:-1])
    assert calls[-1] == (12.5, 12.5)
    calls.clear()
    spleeter(torch.zeros(2, 1, 8_000), 8_000, progress=lambda done, total: calls.append((done, total)))
    assert (1.0, 2.0) in calls
    assert calls[-1] == (2.0, 2.0)


@pytest.mark.parametrize("samples", [100_000, 100])
def test_cancel(spleeter, samples):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(pyunetsep.Cancelled, match="cancelled"):
        spleeter(song(samples), 8_000, cancel=cancel)
    cancel.clear()
    with pytest.raises(pyunetsep.Cancelled, match="cancelled"):
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


def test_a_batch_never_writes_over_its_own_inputs(spleeter, wav, tmp_path):
    (tmp_path / "out" / "song").mkdir(parents=True)
    first, second = wav(), wav("out/song/vocals.wav")
    before = second.read_bytes()
    with pytest.raises(pyunetsep.OutputExistsError, match=r"vocals\.wav lies where a stem of .*song\.wav would be"):
        spleeter.separate_files([first, second], tmp_path / "out", overwrite=True)
    assert second.read_bytes() == before


@pytest.mark.parametrize("name", ["...wav", "..wav"])
def test_stems_stay_inside_the_output_folder(spleeter, wav, tmp_path, name):
    outputs = spleeter.separate_file(wav(name, format="WAV"), tmp_path / "out").outputs
    assert all(output.resolve().parent.parent == tmp_path / "out" for output in outputs.values())


def test_mistakes_in_calls_about_files_come_at_once(spleeter, wav, tmp_path):
    with pytest.raises(TypeError, match=r"paths must be a list of paths, got 'song\.wav'"):
        spleeter.separate_files("song.wav")
    with pytest.raises(ValueError, match="stem must be of"):
        spleeter.separate_files(["song.wav"], stem="drums")
    with pytest.raises(ValueError, match="overwrite and skip_existing exclude each other"):
        spleeter.separate_file(wav(), tmp_path / "out", overwrite=True, skip_existing=True)


@pytest.mark.parametrize("rate", [999, 800_000])
def test_files_of_rates_that_cannot_be_separated(spleeter, wav, tmp_path, rate):
    with pytest.raises(InvalidAudioError, match=rf"song\.wav: has a rate of {rate} Hz; 1000 to 768000"):
        spleeter.separate_file(wav(rate=rate), tmp_path / "out")


def test_an_output_folder_that_cannot_be_made(spleeter, wav, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(
        pyunetsep.AudioFileError, match=r"out.song: the output folder cannot be made: (not a directory|file exists)"
    ):
        spleeter.separate_file(wav(), tmp_path / "out")


@pytest.mark.parametrize("rescale", [False, True])
def test_a_full_disk_leaves_nothing(spleeter, wav, tmp_path, monkeypatch, rescale):
    """A limit on the size of files stands for the disk: both fail a write in the middle."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = wav(samples=100_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(pyunetsep.AudioFileError, match="file too large"):
            spleeter.separate_file(path, tmp_path / "out", rescale=rescale)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()


def test_a_batch_goes_on_after_a_song_that_memory_cannot_hold(spleeter, wav, tmp_path, monkeypatch):
    separate_file = spleeter.separate_file

    def short_of_memory(path, *arguments, **options):
        if path.name == "a.wav":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return separate_file(path, *arguments, **options)

    monkeypatch.setattr(spleeter, "separate_file", short_of_memory)
    results = list(spleeter.separate_files([wav("a.wav"), wav("b.wav")], tmp_path / "out"))
    assert isinstance(results[0].error, pyunetsep.DeviceError)
    assert "batch_patches" in str(results[0].error)
    assert results[1].error is None


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
    with pytest.warns(ClippingWarning, match=r"peaks at 1\.\d+ of full scale, samples clipped: \d+"):
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


def test_a_model_normalised_by_the_songs_maximum_reads_the_song_twice(wav, tmp_path):
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


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda separator: pickle.loads(pickle.dumps(separator))])
def test_a_separator_can_be_copied(copied):
    separator = Separator(checkpoint(), device="cpu")
    audio = noise(2, 3_000).numpy().T
    expected = separator(audio, 8_000)
    for stem, wave in copied(separator)(audio, 8_000).items():
        assert np.array_equal(wave, expected[stem])


def test_a_model_in_float64_stays_in_float64(monkeypatch):
    double = checkpoint()
    for network in double.networks.values():
        network.double()
    audio = noise(2, 3_000).numpy().T.astype(np.float64)
    separator = Separator(double, device="cpu")
    stems = separator(audio, 8_000)
    assert not separator._plans
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    for stem, wave in separator(audio, 8_000).items():
        np.testing.assert_allclose(wave, stems[stem], atol=1e-9)


def test_kernels_off_means_no_plans(monkeypatch):
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    separator = Separator(checkpoint(), device="cpu")
    audio = noise(2, 3_000).numpy().T
    plain = separator(audio, 8_000)
    assert not separator._plans
    monkeypatch.setenv("PYUNETSEP_KERNELS", "1")
    for stem, wave in separator(audio, 8_000).items():
        np.testing.assert_allclose(wave, plain[stem], atol=1e-6)
    assert list(separator._plans) == list(separator.networks)


# ---- precision, GPUs, memory


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_halves_are_for_a_gpu(precision):
    with pytest.raises(ValueError, match=f"precision must be float32 on a CPU, got '{precision}'; float16 and bfloat"):
        Separator(checkpoint(), device="cpu", config=SeparatorConfig(precision=precision))
    with pytest.raises(ValueError, match="precision must be float32 on a CPU"):  # before any download
        Separator.from_pretrained("none", device="cpu", config=SeparatorConfig(precision=precision))


def test_float32_may_be_asked_for_anywhere(spleeter):
    asked = Separator(checkpoint(), device="cpu", config=SeparatorConfig(precision="float32"))
    for exact in (False, True):
        expected = spleeter(song(), 8_000, exact=exact)["vocals"]
        assert np.array_equal(asked(song(), 8_000, exact=exact)["vocals"], expected)


@pytest.fixture
def on_gpu(monkeypatch):
    """A Separator that believes itself on a GPU, and plans that remember what they were made for."""

    class Plan:
        def __init__(self, networks, *, device, precision):
            self.stems, self.device, self.precision, self.dtype = tuple(networks), device, precision, torch.float32

    monkeypatch.setattr("pyunetsep.separator.CudaPlan", Plan)

    def make(config=None, tiny=None):
        separator = Separator(tiny or checkpoint(), device="cpu")
        separator.device, separator.config = torch.device("cuda:0"), config or SeparatorConfig()
        return separator

    return make


def test_a_gpu_gets_one_plan_of_all_networks_for_each_precision(on_gpu):
    separator = on_gpu()
    engine = separator._engine(separator._config(exact=False))
    assert engine.estimator.precision == torch.float16 and engine.estimator.stems == ("vocals", "accompaniment")
    assert engine.estimator.device == torch.device("cuda:0") and engine.graphs.limit and engine.batch == 128
    assert separator._engine(separator.config) is engine
    exact = separator._engine(separator._config(exact=True))
    assert exact is not engine and exact.estimator.precision == torch.float32
    by_hand = on_gpu(SeparatorConfig(precision="bfloat16", batch_patches=3))
    for exact in (False, True):
        engine = by_hand._engine(by_hand._config(exact))
        assert engine.estimator.precision == torch.bfloat16 and engine.batch == 3


def test_a_gpu_without_kernels_runs_plain_pytorch_in_the_models_dtype(on_gpu, monkeypatch):
    double = checkpoint()
    for network in double.networks.values():
        network.double()
    separator = on_gpu(tiny=double)
    engine = separator._engine(separator.config)
    assert isinstance(engine.estimator, Networks) and engine.estimator.dtype == torch.float64
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    separator = on_gpu()
    engine = separator._engine(separator.config)
    assert isinstance(engine.estimator, Networks) and engine.graphs is None
    separator = on_gpu(SeparatorConfig(precision="float16"))
    with pytest.raises(ValueError, match=r"precision float16 needs the kernels \(no PYUNETSEP_KERNELS=0\)"):
        separator._engine(separator.config)


@pytest.mark.parametrize("depth", [1, 2])
def test_blocks_that_are_begun_ahead_are_the_same_blocks(spleeter, wav, tmp_path, monkeypatch, depth):
    mixture = song(50_000)
    songs = torch.stack([noise(2, 20_000, seed) for seed in range(3)])
    path = wav(samples=50_000, subtype="FLOAT")
    expected, of_songs = spleeter(mixture, 8_000), spleeter(songs, 8_000)["vocals"]
    monkeypatch.setattr("pyunetsep.separator.BLOCK_S", 0.5)
    monkeypatch.setattr(Separator, "_ahead", depth)
    calls = []
    stems = spleeter(mixture, 8_000, progress=lambda done, total: calls.append(done))
    assert all(np.array_equal(stems[stem], expected[stem]) for stem in STEMS)
    assert calls == sorted(calls) and calls[-1] == 6.25
    calls.clear()
    assert torch.equal(spleeter(songs, 8_000, progress=lambda done, total: calls.append(done))["vocals"], of_songs)
    assert calls == sorted(calls) and calls[-1] == 7.5
    outputs = spleeter.separate_file(path, tmp_path / "out").outputs
    for stem in STEMS:
        assert np.array_equal(soundfile.read(outputs[stem], dtype="float32")[0], expected[stem])


class ShortOfMemory(Separator):
    """As on a GPU that holds so many patches at once."""

    limit = 1

    def _estimators(self):
        return {stem: self.Network(self, network) for stem, network in self.networks.items()}

    class Network:
        def __init__(self, owner, network):
            self.owner, self.network, self.device, self.dtype = owner, network, network.device, network.dtype

        def estimate(self, magnitude, **options):
            if magnitude.shape[0] > self.owner.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.network.estimate(magnitude, **options)


def test_a_smaller_batch_is_remembered(spleeter, wav, tmp_path):
    separator = ShortOfMemory(checkpoint(), device="cpu", config=SeparatorConfig(batch_patches=8))
    for _ in range(2):
        for stem, wave in separator(song(50_000), 8_000).items():
            np.testing.assert_allclose(wave, spleeter(song(50_000), 8_000)[stem], atol=1e-6)
        assert separator._engine(separator.config).batch == 1
    separator.limit = 0
    with pytest.raises(pyunetsep.DeviceError, match="cpu is out of memory, with batch_patches down to 1"):
        separator(song(50_000), 8_000)
    (result,) = separator.separate_files([wav()], tmp_path / "out")
    assert isinstance(result.error, pyunetsep.DeviceError) and not (tmp_path / "out").exists()
