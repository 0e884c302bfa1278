"""The model-rate path: segments, grids, channels, masks. Tiny networks with random weights."""

import dataclasses
import itertools

import pytest
import torch

from pyunetsep import DeviceError
from pyunetsep.config import EXACT, SeparatorConfig
from pyunetsep.cuda_graph import CudaGraphs
from pyunetsep.engine import Engine, Networks
from pyunetsep.schedule import Schedule, whole_patches
from pyunetsep.unmixer import PeakMeter, Segment, Unmixer, middle
from tests.properties import given, settings, st
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, checkpoint, noise

FAMILIES = pytest.mark.parametrize("model", [SPLEETER_LIKE, JANSSON_LIKE], ids=["spleeter", "jansson2017"])
DEFAULT = SeparatorConfig()
MID = SeparatorConfig(stereo_masks="mid")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # the networks are too small to share out


def unmix(model, wave, config=DEFAULT, *, stems=None, block=10**9, dtype=torch.float32, peak=None):
    networks = {stem: network.to(dtype) for stem, network in checkpoint(model).networks.items()}
    with torch.inference_mode():
        unmixer = Unmixer(model, networks, config, wave.shape[0], stems or model.stems, peak=peak)
        parts = [unmixer.push(part) for part in wave.to(dtype).split(block, -1)] + [unmixer.flush()]
    return torch.cat([part for part, _ in parts], -1), torch.cat([gains for _, gains in parts], -1)


def noise_for(model, samples):
    return noise(model.unet.input_channels, samples)


@FAMILIES
@pytest.mark.parametrize("config", [DEFAULT, EXACT, SeparatorConfig(batch_patches=3)], ids=["default", "exact", "3"])
def test_blocks_of_any_size_give_the_same_bits(model, config):
    wave = noise_for(model, 5_000)
    whole, gains = unmix(model, wave, config)
    assert whole.shape == (2, *wave.shape)
    for block in (1_000, 317, 4_999):
        in_blocks, gains_in_blocks = unmix(model, wave, config, block=block)
        assert torch.equal(in_blocks, whole)
        assert torch.equal(gains_in_blocks, gains)


@FAMILIES
@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 63, 64, 65, 1_000, 2_047, 2_048, 2_049])
def test_as_many_samples_come_out_as_went_in(model, samples):
    for config in (DEFAULT, EXACT):
        stems, _ = unmix(model, noise(1, samples), config)
        assert stems.shape == (2, 1, samples)
        assert torch.isfinite(stems).all()


def spleeter_written_out(networks, wave):
    """spleeter-2stems' pipeline on a whole song in one piece: float64 [2, samples] -> {stem: [2, samples]}."""
    config, samples = SPLEETER_LIKE, wave.shape[-1]
    n, hop, bins = config.spectrogram.n_fft, config.spectrogram.hop_length, config.spectrogram.bins
    frames = -(-(samples + n) // hop)
    padded = torch.zeros(2, (frames - 1) * hop + n, dtype=torch.float64)
    padded[:, n : n + samples] = wave
    window = torch.hann_window(n, periodic=True, dtype=torch.float64)
    spectrum = torch.stft(padded, n, hop, window=window, center=False, return_complex=True)
    patches = -(-frames // config.patch_frames)
    magnitude = torch.zeros(2, bins, patches * config.patch_frames, dtype=torch.float64)
    magnitude[..., :frames] = spectrum[:, :bins].abs()
    batch = magnitude.view(2, bins, patches, config.patch_frames).permute(2, 0, 1, 3)
    estimates = [network(batch) * batch for network in networks.values()]
    total = sum(estimate**2 for estimate in estimates) + 1e-10
    stems = {}
    for stem, estimate in zip(networks, estimates, strict=True):
        mask = ((estimate**2 + 0.5e-10) / total).permute(1, 2, 0, 3).reshape(2, bins, -1)[..., :frames]
        masked = torch.zeros_like(spectrum)
        masked[:, :bins] = spectrum[:, :bins] * mask
        synthesised = torch.zeros_like(padded)
        for k in range(frames):
            synthesised[:, k * hop : k * hop + n] += torch.fft.irfft(masked[..., k], n) * window
        stems[stem] = synthesised[:, n : n + samples] * (2 / 3)
    return stems


@pytest.mark.parametrize("samples", [700, 5_003])
def test_exact_mode_is_spleeters_pipeline(samples):
    wave = noise(2, samples).double()
    networks = {stem: network.double() for stem, network in checkpoint().networks.items()}
    expected = spleeter_written_out(networks, wave)
    stems, _ = unmix(SPLEETER_LIKE, wave, EXACT, dtype=torch.float64, block=777)
    for made, stem in zip(stems, expected.values(), strict=True):
        torch.testing.assert_close(made, stem, rtol=0, atol=1e-13)


@FAMILIES
def test_ratio_masks_share_out_the_whole_mixture(model):
    wave = noise_for(model, 4_000)
    for extension in ("average", "upper"):
        stems, gains = unmix(model, wave, SeparatorConfig(mask_extension=extension))
        torch.testing.assert_close(stems.sum(0), wave, rtol=0, atol=1e-6)
        torch.testing.assert_close(gains.sum(0), torch.ones_like(gains[0]))


@pytest.mark.parametrize(("sample_rate_hz", "is_all"), [(8_000, True), (32_000, False)])
def test_the_upper_4_khz_of_the_band_speak_for_the_bins_above_it(sample_rate_hz, is_all):
    """Of a band that ends at 2 kHz that is all, of one to 8 kHz the upper half."""
    spectrogram = dataclasses.replace(SPLEETER_LIKE.spectrogram, sample_rate_hz=sample_rate_hz)
    model, wave = dataclasses.replace(SPLEETER_LIKE, spectrogram=spectrogram), noise(2, 4_000)
    _, upper = unmix(model, wave)
    _, average = unmix(model, wave, SeparatorConfig(mask_extension="average"))
    assert torch.equal(upper, average) == is_all


def test_zeros_above_the_band_leave_the_highs_out():
    stems, gains = unmix(SPLEETER_LIKE, noise(2, 4_000), EXACT)
    assert not gains.any()
    highs = torch.fft.rfft(stems)[..., 1_200:]  # of 2000 bins to 4 kHz; the network's band ends at 2 kHz
    assert highs.abs().max() < 1e-2 * torch.fft.rfft(stems).abs().max()


def test_a_missing_channel_is_a_repeated_one():
    mono = noise(1, 3_000)
    stems, _ = unmix(SPLEETER_LIKE, mono)
    doubled, _ = unmix(SPLEETER_LIKE, mono[[0, 0]])
    torch.testing.assert_close(stems[:, 0], doubled.mean(1))


@pytest.mark.parametrize("channels", [2, 5])
def test_masks_of_the_middle_are_what_the_middle_alone_would_get(channels):
    """So all channels' stems, added up, are its stem."""
    wave = noise(channels, 5_000)
    stems, gains = unmix(JANSSON_LIKE, wave, MID)
    of_middle, its_gains = unmix(JANSSON_LIKE, wave.mean(0, keepdim=True))
    torch.testing.assert_close(stems.mean(1, keepdim=True), of_middle, rtol=0, atol=1e-6)
    torch.testing.assert_close(gains, its_gains.expand(-1, channels, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(stems.sum(0), wave, rtol=0, atol=1e-6)
    each, _ = zip(*(unmix(JANSSON_LIKE, channel) for channel in wave.split(1)), strict=True)
    assert (stems - torch.cat(each, 1)).abs().max() > 1e-3


def test_where_the_middle_is_all_there_is_its_masks_change_nothing():
    mono = noise(1, 3_000)
    expected, gains = unmix(JANSSON_LIKE, mono)
    for wave in (mono, mono[[0, 0]]):
        stems, their_gains = unmix(JANSSON_LIKE, wave, MID)
        assert torch.equal(stems, expected.expand_as(stems)) and torch.equal(their_gains, gains.expand_as(their_gains))


def test_networks_of_several_channels_know_no_middle():
    for wave in (noise(2, 3_000), noise(1, 3_000)):
        for made, expected in zip(unmix(SPLEETER_LIKE, wave, MID), unmix(SPLEETER_LIKE, wave), strict=True):
            assert torch.equal(made, expected)


@pytest.mark.parametrize("normalisation", ["none", "patch", "song"])
def test_channels_that_cancel_each_other_are_shared_out_all_the_same(normalisation):
    model = dataclasses.replace(JANSSON_LIKE, normalisation=normalisation)
    left = noise(1, 3_000)
    stems, gains = unmix(model, torch.cat((left, -left)), MID, peak=torch.zeros(()))
    torch.testing.assert_close(stems.sum(0), torch.cat((left, -left)), rtol=0, atol=1e-6)
    torch.testing.assert_close(gains.sum(0), torch.ones_like(gains[0]))


@pytest.mark.parametrize("channels", [2, 6])
def test_masks_of_the_middle_do_not_depend_on_how_a_wave_is_cut(channels):
    wave = noise(channels, 5_000)
    whole, gains = unmix(JANSSON_LIKE, wave, MID)
    for block in (1_000, 317):
        in_blocks, gains_in_blocks = unmix(JANSSON_LIKE, wave, MID, block=block)
        assert torch.equal(in_blocks, whole) and torch.equal(gains_in_blocks, gains)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels", [2, 6])
def test_a_sample_of_the_middle_depends_on_nothing_but_its_channels(channels, threads):
    wave = noise(channels, 100_003)
    whole = middle(wave)
    torch.testing.assert_close(whole, wave.mean(0, keepdim=True), rtol=0, atol=1e-7)
    torch.set_num_threads(threads)
    parts = [middle(part) for part in wave.split(3_001, -1)]
    assert torch.equal(torch.cat(parts, -1), whole) and torch.equal(middle(wave), whole)


def test_the_middles_peak_is_the_songs():
    model = dataclasses.replace(JANSSON_LIKE, normalisation="song")
    wave = noise(3, 4_000)
    peaks = []
    for channels, config in ((wave, MID), (wave.mean(0, keepdim=True), DEFAULT)):
        meter = PeakMeter(model, config, channels.shape[0], torch.device("cpu"))
        for part in channels.split(333, -1):
            meter.push(part)
        peaks.append(meter.flush())
    torch.testing.assert_close(*peaks)


def test_what_waits_does_not_grow_with_the_song():
    networks = checkpoint().networks
    sizes = []
    with torch.inference_mode():
        unmixer = Unmixer(SPLEETER_LIKE, networks, DEFAULT, 2, ["vocals"])
        for part in noise(2, 60_000).split(1_000, -1):
            unmixer.push(part)
            waiting = (unmixer.pending, unmixer.tail, unmixer.faded)
            sizes.append(sum(x.untyped_storage().nbytes() for x in waiting if x is not None))
    assert max(sizes[30:]) <= max(sizes[:30])


def test_patch_normalisation_makes_the_masks_independent_of_level():
    wave = noise(1, 4_000)
    loud, _ = unmix(JANSSON_LIKE, wave)
    quiet, _ = unmix(JANSSON_LIKE, wave / 1024)
    torch.testing.assert_close(quiet * 1024, loud, rtol=1e-4, atol=1e-7)


def test_song_normalisation_divides_by_the_songs_largest_magnitude():
    model = dataclasses.replace(JANSSON_LIKE, normalisation="song")
    wave = noise(1, 4_000)
    meter = PeakMeter(model, EXACT, 1, torch.device("cpu"))
    for part in wave.split(333, -1):
        meter.push(part)
    peak = meter.flush()
    window = torch.hann_window(128, periodic=True)
    padded = torch.nn.functional.pad(wave, (128, 256))
    expected = torch.stft(padded, 128, 96, window=window, center=False, return_complex=True)[:, :64].abs().max()
    torch.testing.assert_close(peak, expected)
    loud, _ = unmix(model, wave, EXACT, peak=peak)
    quiet, _ = unmix(model, wave / 1024, EXACT, peak=peak / 1024)
    torch.testing.assert_close(quiet * 1024, loud, rtol=1e-4, atol=1e-7)


def test_exact_mode_of_the_paper_takes_the_masks_as_they_are():
    wave = noise(1, 3_000)
    stems, _ = unmix(JANSSON_LIKE, wave, EXACT)
    vocals, _ = unmix(JANSSON_LIKE, wave, EXACT, stems=["vocals"])  # needs no other network
    torch.testing.assert_close(vocals[0], stems[0])
    assert (stems.sum(0) - wave).abs().max() > 1e-3


def test_a_model_of_one_stem_is_weighed_against_the_rest():
    alone = dataclasses.replace(JANSSON_LIKE, stems=("vocals",))
    wave = noise(1, 3_000)
    ratio, _ = unmix(alone, wave, SeparatorConfig(overlap=0.0, grids=1, mask_extension="zeros"))
    soft, _ = unmix(alone, wave, EXACT)  # with power 1 the ratio is the network's own mask
    torch.testing.assert_close(ratio, soft, rtol=1e-4, atol=1e-6)


@FAMILIES
def test_silence_stays_silent(model):
    stems, _ = unmix(model, torch.zeros(model.unet.input_channels, 3_000))
    assert not stems.any()


def test_the_dropped_nyquist_bin_takes_its_neighbours_mask():
    wave = torch.cos(torch.pi * torch.arange(4_000.0))[None] * 0.1 + noise(1, 4_000) * 1e-3  # all energy at Nyquist
    stems, _ = unmix(JANSSON_LIKE, wave, SeparatorConfig(mask_extension="zeros"))
    torch.testing.assert_close(stems.sum(0), wave, rtol=0, atol=1e-6)


@FAMILIES
@pytest.mark.parametrize("config", [DEFAULT, EXACT], ids=["default", "exact"])
def test_the_batch_makes_no_difference_but_rounding(model, config):
    wave = noise_for(model, 20_000)
    whole, gains = unmix(model, wave, dataclasses.replace(config, batch_patches=100))
    for batch in (1, 2, 5):
        stems, their_gains = unmix(model, wave, dataclasses.replace(config, batch_patches=batch))
        torch.testing.assert_close(stems, whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(their_gains, gains, rtol=0, atol=1e-6)


class ShortOfMemory(Networks):
    """As on a GPU with room for `limit` patches at once, or for one call after the other's limits and then for all."""

    def __init__(self, model, limit):
        super().__init__(checkpoint(model).networks)
        self.limits = itertools.repeat(limit) if isinstance(limit, int) else iter(limit)

    def estimate(self, magnitude, stems, *, masked=False, out=None):
        if magnitude.shape[0] > next(self.limits, 10**9):
            out.fill_(torch.nan)  # what a call leaves that did not get to its end
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().estimate(magnitude, stems, masked=masked, out=out)


def unmix_with(engine, model, wave, config, block):
    with torch.inference_mode():
        unmixer = Unmixer(model, engine, config, wave.shape[0], model.stems)
        parts = [unmixer.push(part) for part in wave.split(block, -1)] + [unmixer.flush()]
    return torch.cat([part for part, _ in parts], -1), torch.cat([gains for _, gains in parts], -1)


@FAMILIES
@pytest.mark.parametrize("config", [DEFAULT, EXACT], ids=["default", "exact"])
@pytest.mark.parametrize("block", [700, 10**9])
def test_a_smaller_batch_where_memory_is_short(model, config, block):
    wave = noise_for(model, 60_000)
    for limit, left in ((16, 16), (8, 8), (7, 4), (3, 2), (1, 1)):
        engine = Engine(ShortOfMemory(model, limit), 16)
        stems, gains = unmix_with(engine, model, wave, config, block)
        expected, their_gains = unmix(model, wave, dataclasses.replace(config, batch_patches=left))
        assert engine.batch == left
        assert torch.equal(stems, expected) and torch.equal(gains, their_gains)


@FAMILIES
@given(limits=st.lists(st.sampled_from([0, 1, 2, 3, 5, 100]), max_size=12), block=st.sampled_from([500, 5_000, 40_000]))
@settings(max_examples=30)
def test_no_sample_is_lost_or_doubled_when_memory_runs_out_in_the_middle(model, limits, block):
    wave = noise_for(model, 12_000)
    expected, their_gains = unmix(model, wave)
    engine = Engine(ShortOfMemory(model, limits), 16)
    try:
        stems, gains = unmix_with(engine, model, wave, DEFAULT, block)
    except DeviceError:
        assert engine.batch == 1
        return
    torch.testing.assert_close(stems, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gains, their_gains, rtol=0, atol=1e-6)


def test_a_patch_that_does_not_fit_is_an_error_and_can_be_tried_again():
    wave = noise(2, 9_000)
    engine = Engine(ShortOfMemory(SPLEETER_LIKE, [0] * 3), 4)
    with torch.inference_mode():
        unmixer = Unmixer(SPLEETER_LIKE, engine, DEFAULT, 2, SPLEETER_LIKE.stems)
        with pytest.raises(DeviceError, match="cpu is out of memory, with batch_patches down to 1; device='cpu'"):
            unmixer.push(wave)
        parts = [unmixer.push(wave[:, :0]), unmixer.flush()]
    expected, _ = unmix(SPLEETER_LIKE, wave)
    torch.testing.assert_close(torch.cat([part for part, _ in parts], -1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "channels", "config"),
    [(SPLEETER_LIKE, 1, DEFAULT), (SPLEETER_LIKE, 2, DEFAULT), (JANSSON_LIKE, 1, DEFAULT), (JANSSON_LIKE, 2, MID)],
    ids=["spleeter-mono", "spleeter", "jansson2017", "jansson2017-mid"],
)
def test_without_a_stored_spectrum_the_stems_are_the_same(model, channels, config, monkeypatch):
    wave = noise(channels, 8_000)
    stems, gains = unmix(model, wave, config, block=1_000)
    monkeypatch.setattr(Segment, "stores_spectrum", False)
    recomputed, their_gains = unmix(model, wave, config, block=1_000)
    torch.testing.assert_close(recomputed, stems, rtol=0, atol=1e-6)
    torch.testing.assert_close(their_gains, gains, rtol=0, atol=1e-6)


def test_equal_segments_are_one_to_a_graph():
    estimator = Networks(checkpoint().networks)
    first, second = (
        Segment(SPLEETER_LIKE, DEFAULT, estimator, 2, ("vocals",), whole_patches(SPLEETER_LIKE, DEFAULT))
        for _ in range(2)
    )
    assert first == second and hash(first) == hash(second)
    assert first != dataclasses.replace(first, channels=1)
    assert first != dataclasses.replace(first, estimator=Networks(checkpoint().networks))


class Replayed(CudaGraphs):
    """Graphs that run their function anew, on tensors that stay where they are."""

    def __init__(self):
        super().__init__(torch.device("cuda"))
        self.captured = 0

    def _capture(self, function, tensors, flags):
        self.captured += 1
        inputs = [None if tensor is None else torch.empty(tensor.shape) for tensor in tensors]

        def replay(*tensors):
            for static, tensor in zip(inputs, tensors, strict=True):
                if static is not None:
                    static.copy_(tensor)
            outputs = function(*inputs, **flags)
            for static, tensor in zip(inputs, tensors, strict=True):
                assert static is None or torch.equal(static, tensor)  # a pure function
            return outputs

        return replay


@pytest.mark.parametrize(
    ("model", "channels", "config"),
    [(SPLEETER_LIKE, 2, DEFAULT), (JANSSON_LIKE, 1, DEFAULT), (JANSSON_LIKE, 2, MID)],
    ids=["spleeter", "jansson2017", "jansson2017-mid"],
)
def test_songs_share_the_graphs_of_their_segments(model, channels, config, monkeypatch):
    monkeypatch.setattr(Segment, "stores_spectrum", False)  # as on a GPU
    engine = Engine(Networks(checkpoint(model).networks), 2)
    engine.graphs = Replayed()
    wave = noise(channels, 40_000)
    config = dataclasses.replace(config, batch_patches=2)
    expected, their_gains = unmix(model, wave, config)
    for song in range(3):
        stems, gains = unmix_with(engine, model, wave, config, block=5_000)
        assert torch.equal(stems, expected) and torch.equal(gains, their_gains)
        # of a first, a middle and a last segment; the middle ones come again within a song
        assert engine.graphs.captured == (1, 3, 3)[song]


class Limited(Networks):
    """An estimator whose numbers end somewhere."""

    largest_magnitude = 100.0
    loudest = 0.0

    def estimate(self, magnitude, stems, *, masked=False, out=None):
        self.loudest = max(self.loudest, float(magnitude.max()))
        return super().estimate(magnitude, stems, masked=masked, out=out)


def test_patches_too_loud_for_the_estimator_are_turned_down():
    """And the stems are as loud as the song, all the same."""
    networks, wave = checkpoint().networks, noise(2, 9000)
    config = SeparatorConfig()
    plain, limited = Networks(networks), Limited(networks)
    quiet = [unmix_with(Engine(e, 2), SPLEETER_LIKE, wave, config, 4000)[0] for e in (plain, limited)]
    assert torch.equal(*quiet)
    assert limited.loudest < Limited.largest_magnitude
    loud, _ = unmix_with(Engine(limited, 2), SPLEETER_LIKE, 1e6 * wave, config, 4000)
    assert limited.loudest <= Limited.largest_magnitude * (1 + 1e-6)
    assert (loud.sum(0) - 1e6 * wave).abs().max() <= 1e6 * 1e-5


def test_a_song_is_preceded_by_its_own_beginning_where_patches_hear_a_context(monkeypatch):
    config, hop, n_fft = (
        SPLEETER_LIKE.spectrogram,
        SPLEETER_LIKE.spectrogram.hop_length,
        SPLEETER_LIKE.spectrogram.n_fft,
    )
    schedule = Schedule(context=SPLEETER_LIKE.patch_frames - 20, step=12, fade=0, ahead=8)
    unmixer = Unmixer(SPLEETER_LIKE, checkpoint().networks, DEFAULT, 2, SPLEETER_LIKE.stems, schedule=schedule)
    heard = []
    run = unmixer.engine.run
    monkeypatch.setattr(
        unmixer.engine, "run", lambda f, wave, *rest, **how: heard.append(wave) or run(f, wave, *rest, **how)
    )
    song = noise(2, config.sample_rate_hz)
    for start in range(0, song.shape[-1], 100):
        unmixer.push(song[:, start : start + 100])
    first, second = heard[:2]
    context = schedule.context * hop
    beginning = first[:, context + n_fft :]
    torch.testing.assert_close(beginning, song[:, : beginning.shape[-1]])
    assert not first[:, context : context + n_fft].any()
    torch.testing.assert_close(first[:, :context], beginning.repeat(1, 9)[:, -context:])
    torch.testing.assert_close(second[:, : -schedule.step * hop], first[:, schedule.step * hop :])
