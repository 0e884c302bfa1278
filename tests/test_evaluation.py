"""Scores against hand-computed ones and against the libraries that define them; silence; yardsticks; validation."""

import math
import warnings

import numpy as np
import pytest

from pyunetsep.evaluation import ScoringOptions, Song, estimators, metrics, validate
from pyunetsep.evaluation.aggregates import aggregates
from pyunetsep.evaluation.estimators import MixtureAsEstimate, OracleMask
from pyunetsep.evaluation.scoring import Scorer
from pyunetsep.evaluation.song import energy, piece_slices
from pyunetsep.separator import Separator
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, checkpoint

RATE_HZ = 8192


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def song(channels=1, seconds=2, rate_hz=RATE_HZ, level=1.0):
    samples = seconds * rate_hz
    accompaniment = np.cumsum(noise(channels, samples, seed=2), axis=1) * 0.02 * level
    return Song({"vocals": noise(channels, samples, seed=1) * 0.1, "accompaniment": accompaniment}, rate_hz)


def tone(frequency_hz, rate_hz, seconds=1):
    return np.sin(2 * np.pi * frequency_hz * np.arange(rate_hz * seconds) / rate_hz)[None]


def damaged(target, by=0.05):
    return {stem: wave + by * noise(*wave.shape, seed=3 + i) for i, (stem, wave) in enumerate(target.stems.items())}


def test_sdr_by_hand():
    stems = {"vocals": np.array([[1.0, -1.0], [2.0, 0.0]]), "accompaniment": np.ones((2, 2))}
    estimates = {"vocals": np.array([[1.0, -1.0], [2.0, 0.6]]), "accompaniment": np.zeros((2, 2))}
    scores = metrics.sdr(Song(stems, RATE_HZ), estimates)
    assert scores["vocals"]["sdr"] == pytest.approx(10 * math.log10((6 + 1e-7) / (0.36 + 1e-7)))
    assert scores["accompaniment"]["sdr"] == 0.0
    # the challenges' epsilon: a perfect estimate has a score
    perfect = metrics.sdr(Song(stems, RATE_HZ), stems)
    assert perfect["vocals"]["sdr"] == pytest.approx(10 * math.log10(6e7), abs=1e-4)


def test_a_silent_stem_has_no_sdr_and_does_not_touch_the_other():
    stems = {"vocals": np.zeros((1, 100)), "accompaniment": np.ones((1, 100))}
    scores = metrics.sdr(Song(stems, RATE_HZ), {"vocals": np.full((1, 100), 0.1), "accompaniment": stems["vocals"]})
    assert math.isnan(scores["vocals"]["sdr"])
    assert scores["accompaniment"]["sdr"] == 0.0


@pytest.mark.parametrize("leak", [0.0, 1e-4])
def test_what_a_codec_leaves_of_silence_is_silence(leak):
    stems = {"vocals": leak * noise(1, 8192), "accompaniment": noise(1, 8192, seed=1)}
    assert Song(stems, RATE_HZ).silent_stems == ("vocals",)
    # whatever the level of the song
    assert Song({stem: 1e-3 * wave for stem, wave in stems.items()}, RATE_HZ).silent_stems == ("vocals",)
    assert song().silent_stems == ()


def test_nsdr_is_mir_evals_and_the_improvement_over_the_mixture():
    separation = pytest.importorskip("mir_eval.separation")
    target = song()
    estimates = damaged(target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the deprecation, which is known, does not reach the user
        scores = metrics.nsdr(target, estimates)
    references = np.concatenate(list(target.stems.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = separation.bss_eval_sources(references, np.concatenate(list(estimates.values())), False)
        mixture = separation.bss_eval_sources(references, np.concatenate([target.mixture] * 2), False)
    for i, stem in enumerate(target.stems):
        assert [scores[stem][name] for name in ("sdr", "sir", "sar")] == [values[i] for values in ours[:3]]
        assert scores[stem]["nsdr"] == ours[0][i] - mixture[0][i]
        assert scores[stem]["nsdr"] > 1


def test_other_warnings_of_mir_eval_are_heard(monkeypatch):
    def bss_eval_sources(*_, **__):
        warnings.warn("something else", FutureWarning, stacklevel=1)
        return np.zeros(2), np.zeros(2), np.zeros(2), None

    monkeypatch.setattr(metrics._mir_eval_separation(), "bss_eval_sources", bss_eval_sources)
    with pytest.warns(FutureWarning, match="something else"):
        metrics.nsdr(song(), song().stems)


@pytest.mark.parametrize("silent", ["reference", "estimate"])
def test_nsdr_of_silence_is_not_defined(silent):
    target = song()
    estimates = damaged(target)
    if silent == "reference":
        target = Song({**target.stems, "vocals": 0 * target.stems["vocals"]}, RATE_HZ)
    else:
        estimates["vocals"] = 0 * estimates["vocals"]
    scores = metrics.nsdr(target, estimates)
    assert all(math.isnan(value) for stem in scores.values() for value in stem.values())


def test_a_system_without_a_solution_is_not_defined(monkeypatch):
    def bss_eval_sources(*_, **__):
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(metrics._mir_eval_separation(), "bss_eval_sources", bss_eval_sources)
    assert math.isnan(metrics.nsdr(song(), song().stems)["vocals"]["nsdr"])


@pytest.mark.skipif(hasattr(np.linalg, "linalg"), reason="with this NumPy mir_eval finds the error, and a score")
def test_a_system_without_a_solution_in_the_real_library():
    pytest.importorskip("mir_eval.separation")
    click = np.eye(1, 2 * RATE_HZ, RATE_HZ)
    target = Song({"vocals": click, "accompaniment": click}, RATE_HZ)
    scores = metrics.nsdr(target, {stem: wave + 0.1 * noise(*wave.shape) for stem, wave in target.stems.items()})
    assert math.isnan(scores["vocals"]["sdr"])


@pytest.mark.parametrize("within", [None, ValueError])
def test_a_break_in_a_library_is_an_error(monkeypatch, within):
    def bss_eval_sources(*_, **__):
        try:
            if within:
                raise within
        finally:
            np.linalg.no_such_function()

    monkeypatch.setattr(metrics._mir_eval_separation(), "bss_eval_sources", bss_eval_sources)
    with pytest.raises(AttributeError, match="no_such_function"):
        metrics.nsdr(song(), song().stems)


def test_an_error_by_numpy_1s_name_is_no_solution(monkeypatch):
    def bss_eval_sources(*_, **__):
        try:
            return np.linalg.solve(np.zeros((2, 2)), np.ones(2))
        except np.linalg.name_that_is_gone.LinAlgError:
            return None

    monkeypatch.setattr(metrics._mir_eval_separation(), "bss_eval_sources", bss_eval_sources)
    assert math.isnan(metrics.nsdr(song(), song().stems)["vocals"]["nsdr"])


def test_v4_of_silence():
    target = song(channels=2, seconds=3)
    estimates = damaged(target)
    target.stems["vocals"][:, :RATE_HZ] = 0
    scores = metrics.v4(target, estimates)
    for stem in target.stems:
        assert (scores[stem]["frames"], scores[stem]["undefined_frames"]) == (3, 1)
        assert scores[stem]["sdr"] == scores[stem]["heard_sdr"] > 0
        assert scores[stem]["heard_frames"] == 2
    target.stems["vocals"][:, :RATE_HZ] = 1e-5 * noise(2, RATE_HZ)  # what a codec makes of it
    hissing = metrics.v4(Song(target.stems, RATE_HZ), estimates)
    assert (hissing["vocals"]["undefined_frames"], hissing["vocals"]["heard_frames"]) == (0, 2)
    assert hissing["vocals"]["heard_sdr"] > hissing["vocals"]["sdr"]
    target = Song(target.stems, RATE_HZ)
    target.stems["vocals"][:] = 0  # museval itself raises an error
    scores = metrics.v4(target, estimates)
    assert math.isnan(scores["accompaniment"]["sdr"])
    assert scores["accompaniment"]["undefined_frames"] == 3


def test_bands_by_tones():
    rate_hz = 44_100
    low, high = tone(1000, rate_hz), tone(8000, rate_hz)
    stems = {"vocals": low + high, "accompaniment": 2 * tone(1700, rate_hz) + 3 * tone(9100, rate_hz)}
    # a tenth of the accompaniment's low tone is left, and half of its high one
    left = 0.2 * tone(1700, rate_hz) + 1.5 * tone(9100, rate_hz)
    estimates = {"vocals": stems["vocals"] + left, "accompaniment": stems["accompaniment"]}
    scores = metrics.band(Song(stems, rate_hz), estimates)["vocals"]
    assert scores["low"] == pytest.approx(20, abs=0.05)
    assert scores["high"] == pytest.approx(20 * math.log10(2), abs=0.05)
    assert scores["full"] == pytest.approx(10 * math.log10((4 + 9) / (0.04 + 2.25)), abs=0.05)
    assert math.isnan(metrics.band(song(), damaged(song()))["vocals"]["high"])  # 8192 Hz has nothing above 4096 Hz


def test_levels_are_made_equal_and_the_sum_is_kept():
    target = song(level=30.0)
    levelled = target.levelled()
    vocals, accompaniment = (energy(wave) for wave in levelled.stems.values())
    assert vocals == pytest.approx(accompaniment)
    assert vocals + accompaniment == pytest.approx(sum(energy(wave) for wave in target.stems.values()))


@pytest.mark.parametrize(
    ("samples", "lengths"), [(0, []), (99, []), (100, [100]), (1000, [1000]), (2050, [1000, 1000]), (1200, [1000, 200])]
)
def test_pieces(samples, lengths):
    cut = list(piece_slices(samples, 100, 10.0))
    assert [where.stop - where.start for where in cut] == lengths


@pytest.mark.parametrize("rate_hz", [8192, 44_100])
def test_the_oracle_has_no_seams_and_beats_the_mixture(monkeypatch, rate_hz):
    target = song(channels=2, seconds=1, rate_hz=rate_hz)
    whole = OracleMask().estimate(target)
    monkeypatch.setattr(estimators, "ORACLE_SEGMENT", 8192)
    pieces = OracleMask().estimate(target)
    np.testing.assert_allclose(pieces["vocals"], whole["vocals"], atol=1e-12)
    np.testing.assert_allclose(sum(whole.values()), target.mixture, atol=1e-12)
    scores = metrics.sdr(target, whole)
    before = metrics.sdr(target, MixtureAsEstimate().estimate(target))
    assert all(scores[stem]["sdr"] > before[stem]["sdr"] + 5 for stem in target.stems)


def test_the_mixture_improves_nothing():
    options = ScoringOptions(metrics=("nsdr", "band"), piece_s=1.0)
    report = Scorer(song(), options).score(MixtureAsEstimate())
    assert [piece["vocals"]["nsdr"] for piece in report["nsdr"]] == [0.0, 0.0]
    assert report["band"]["vocals"]["low"] == 0.0


@pytest.mark.parametrize("rate_hz", [8192, 16_000])
def test_equal_levels_separate_each_piece_of_its_own(rate_hz):
    heard = []

    class Listening(MixtureAsEstimate):
        yardstick = False

        def estimate(self, target):
            heard.append(target)
            return super().estimate(target)

    target = song(seconds=5, rate_hz=rate_hz, level=3.0)
    target.stems["vocals"][:, : 2 * rate_hz] = 0
    options = ScoringOptions(metrics=("nsdr",), piece_s=2.0, equal_levels=True)
    report = Scorer(target, options).score(Listening())["nsdr"]
    assert [piece["start_s"] for piece in report] == [0.0, 2.0, 4.0]
    assert [piece["duration_s"] for piece in report] == [2.0, 2.0, 1.0]
    assert [math.isnan(piece["vocals"]["nsdr"]) for piece in report] == [True, False, False]
    assert [part.samples for part in heard] == [2 * rate_hz, rate_hz]  # at the song's rate, and no silent piece
    for part in heard:
        assert energy(part.stems["vocals"]) == pytest.approx(energy(part.stems["accompaniment"]))
    heard.clear()
    Scorer(target, ScoringOptions(metrics=("nsdr",), piece_s=2.0)).score(Listening())
    assert [part.samples for part in heard] == [5 * rate_hz]


def test_what_a_song_has_in_common_is_computed_once(monkeypatch):
    scorer = Scorer(song(), ScoringOptions(metrics=("nsdr",)))
    first = scorer.score(OracleMask())
    monkeypatch.setattr(metrics, "mixture_sdr", lambda _: pytest.fail("again"))
    assert scorer.score(OracleMask()) == first


def test_aggregates_by_hand():
    def piece(seconds, value):
        scores = {"nsdr": value, "sdr": 0.0, "sir": 1.0, "sar": None}
        return {"start_s": 0.0, "duration_s": seconds, "vocals": scores, "accompaniment": scores}

    def frames(value):
        scores = {"sdr": value, "isr": 1.0, "sir": 2.0, "sar": 3.0, "heard_sdr": value}
        scores |= {"frames": 4, "undefined_frames": 1, "heard_frames": 2}
        return dict.fromkeys(("vocals", "accompaniment"), scores)

    songs = [
        {"nsdr": [piece(10.0, 3.0), piece(2.0, 9.0)], "v4": frames(1.0)},
        {"nsdr": [piece(10.0, None)], "v4": frames(5.0)},
        {"nsdr": [], "v4": frames(math.nan)},
    ]
    made = aggregates(songs, ["nsdr", "v4"])
    nsdr, v4 = made["nsdr"]["vocals"], made["v4"]["vocals"]
    assert nsdr["gnsdr"] == pytest.approx((10 * 3 + 2 * 9) / 12)
    assert (nsdr["nsdr_mean"], nsdr["nsdr_median"], nsdr["gsir"]) == (6.0, 6.0, 1.0)
    assert math.isnan(nsdr["gsar"])
    assert (nsdr["pieces"], nsdr["undefined_pieces"]) == (3, 1)
    assert (v4["sdr"], v4["songs"], v4["undefined_songs"], v4["frames"], v4["undefined_frames"]) == (3.0, 3, 1, 12, 3)
    assert (v4["heard_sdr"], v4["heard_frames"]) == (3.0, 6)
    assert math.isnan(aggregates([], ["nsdr"])["nsdr"]["vocals"]["gnsdr"])


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": ()},
        {"metrics": ("v5",)},
        {"metrics": ("sdr", "sdr")},
        {"piece_s": 0.5},
        {"piece_s": math.nan},
        {"metrics": ("sdr",), "equal_levels": True},
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(ValueError, match=r"metrics|piece_s|equal_levels"):
        ScoringOptions(**options)


@pytest.mark.parametrize("equal_levels", [True, False])
@pytest.mark.parametrize("config", [JANSSON_LIKE, SPLEETER_LIKE])
def test_validation_is_the_mean_improvement_weighted_by_length(config, equal_levels):
    separator = Separator(checkpoint(config), device="cpu")
    target = song(seconds=5, rate_hz=8000, level=2.0)
    target.stems["accompaniment"][:, :16_000] = 0
    waves = [wave.astype(np.float16) for wave in target.stems.values()]  # as the cache of training data has them
    made = validate(separator, [tuple(waves)], 8000, piece_s=2.0, equal_levels=equal_levels)

    target = Song({stem: wave.astype(np.float32) for stem, wave in zip(target.stems, waves, strict=True)}, 8000)
    whole = separator(target.mixture.T, 8000)
    sums = dict.fromkeys(target.stems, 0.0)
    for where, seconds in ((slice(16_000, 32_000), 2.0), (slice(32_000, 40_000), 1.0)):
        piece = target.part(where)
        estimates = {stem: wave.T[:, where] for stem, wave in whole.items()}
        if equal_levels:
            piece = piece.levelled()
            estimates = {stem: wave.T for stem, wave in separator(piece.mixture.T, 8000).items()}
        for stem in sums:
            error = float(np.sum(np.square(estimates[stem] - piece.stems[stem], dtype=np.float64)))
            before = float(np.sum(np.square(piece.mixture - piece.stems[stem], dtype=np.float64)))
            sums[stem] += seconds * 10 * math.log10(before / error)
    assert made == pytest.approx({stem: total / 3.0 for stem, total in sums.items()}, abs=1e-3)


def test_validation_on_nothing_but_silence():
    separator = Separator(checkpoint(JANSSON_LIKE), device="cpu")
    made = validate(separator, [(np.zeros((1, 20_000)), noise(1, 20_000))], 4000)
    assert set(made) == {"vocals", "accompaniment"}
    assert all(math.isnan(value) for value in made.values())
