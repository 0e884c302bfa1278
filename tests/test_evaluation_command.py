"""`pyunetsep evaluate` and the file it keeps: museval's own numbers, resumption, bad data, exit codes."""

import json
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

from pyunetsep.checkpoint import tensor_digest
from pyunetsep.cli import main
from pyunetsep.errors import DataError, OutputExistsError
from pyunetsep.evaluation import ScoringOptions, evaluate, run, table
from pyunetsep.evaluation.estimators import MixtureAsEstimate
from pyunetsep.separator import Separator
from tests.tiny import JANSSON_LIKE, write_model

STEMS = ("vocals", "accompaniment")
RATE_HZ = 4000
QUICK = ScoringOptions(metrics=("sdr",))


def write_song(folder, seed=0, channels=2, seconds=3, rate_hz=RATE_HZ, **waves):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    shape = (seconds * rate_hz, channels)
    made = {
        "vocals": generator.standard_normal(shape) * 0.1,
        "accompaniment": np.cumsum(generator.standard_normal(shape), axis=0) * 0.01,
    }
    for stem, wave in {**made, **waves}.items():
        soundfile.write(folder / f"{stem}.wav", wave, rate_hz, subtype="FLOAT")


@pytest.fixture
def songs(tmp_path):
    for i, name in enumerate(("first", "second", "third")):
        write_song(tmp_path / "songs" / name, seed=i)
    return tmp_path / "songs"


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tiny.safetensors")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main(["evaluate", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def museval(monkeypatch):
    """The real one, but for musdb, which wants ffmpeg and is not needed to score."""
    pytest.importorskip("pandas")
    monkeypatch.setitem(sys.modules, "musdb", ModuleType("musdb"))
    return pytest.importorskip("museval")


def test_musevals_own_numbers(command, museval, model, tmp_path):
    names = ("first", "second")
    silence = np.random.default_rng(5).standard_normal((3 * RATE_HZ, 2)) * 0.1
    silence[:RATE_HZ] = 0  # a frame without vocals
    write_song(tmp_path / "songs" / "first", seed=1, vocals=silence)
    write_song(tmp_path / "songs" / "second", seed=2)

    store = museval.EvalStore(frames_agg="median", tracks_agg="median")
    separator = Separator.from_pretrained(model, device="cpu")
    for name in names:
        stems = {stem: soundfile.read(tmp_path / "songs" / name / f"{stem}.wav", dtype="float32")[0] for stem in STEMS}
        made = separator(stems["vocals"] + stems["accompaniment"], RATE_HZ)
        targets = {stem: SimpleNamespace(audio=wave.astype(float)) for stem, wave in stems.items()}
        track = SimpleNamespace(name=name, rate=RATE_HZ, targets=targets)
        store.add_track(museval.eval_mus_track(track, {stem: wave.astype(float) for stem, wave in made.items()}))
    by_song, overall = store.agg_frames_scores(), store.agg_frames_tracks_scores()

    code, out, err = command(
        "--data", "songs", "--model", model, "--metrics", "v4", "--json", "out/scores.json", "--device", "cpu"
    )
    assert (code, out, err) == (0, "", "")
    results = json.loads((tmp_path / "out" / "scores.json").read_text())
    ours = results["models"][str(model)]
    for stem in STEMS:
        for score in ("SDR", "ISR", "SIR", "SAR"):
            assert ours["aggregates"]["v4"][stem][score.lower()] == pytest.approx(overall[stem][score], abs=0.01)
            for name in names:
                one = ours["songs"][name]["v4"][stem][score.lower()]
                assert one == pytest.approx(by_song[name][stem][score], abs=0.01)
    assert ours["songs"]["first"]["v4"]["vocals"]["undefined_frames"] == 1
    assert ours["aggregates"]["v4"]["vocals"]["frames"] == 6
    assert ours["identity"]["tensors_sha256"] == tensor_digest(model)
    assert results["versions"]["museval"] and "licence" not in json.dumps(results)


def test_a_table_of_yardsticks_and_a_model(command, songs, model):
    code, out, err = command(
        *("--data", songs, "-m", model, "-m", "oracle", "-m", "mixture", "--metrics", "nsdr,sdr,band", "--piece", 2),
        *("--only", "first"),
    )
    assert (code, err) == (0, "")
    assert "sdr: SDR over whole songs (MDX/SDX challenges)" in out
    assert "pieces of 2 s, levels as in the songs" in out
    lines = out.splitlines()
    rows = [line for line in lines if line.startswith(("oracle", "mixture", str(model)))]
    assert len(rows) == 3 * 3 * 2
    mixture = [line.split() for line in lines if line.startswith("mixture") and line.endswith("pieces")]
    assert [row[1:3] for row in mixture] == [["vocals", "0.00"], ["accompaniment", "0.00"]]
    assert all(row[-4:] == ["2", "of", "2", "pieces"] for row in mixture)


def test_json_on_standard_output_and_a_plot(command, songs, tmp_path):
    code, out, _ = command(
        *(
            "--data",
            songs,
            "-m",
            "oracle",
            "--metrics",
            "sdr",
            "--only",
            "f*",
            "third",
            "--json",
            "-",
            "--plot",
            "a.png",
        )
    )
    results = json.loads(out)
    assert code == 0
    assert list(results["models"]["oracle"]["songs"]) == ["first", "third"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_song_that_fails_is_named_and_the_others_are_scored(command, songs, tmp_path):
    (songs / "second" / "vocals.wav").write_text("no music")
    arguments = ("--data", songs, "-m", "mixture", "-m", "oracle", "--metrics", "sdr", "--json", "scores.json")
    code, _, err = command(*arguments)
    assert code == 1
    assert err.startswith("pyunetsep: error: second: ") and "vocals.wav" in err and err.count("\n") == 1
    results = json.loads((tmp_path / "scores.json").read_text())
    assert list(results["failed"]) == ["second"]
    assert list(results["models"]["oracle"]["songs"]) == ["first", "third"]
    assert results["models"]["oracle"]["aggregates"]["sdr"]["vocals"]["songs"] == 2

    (songs / "second" / "vocals.wav").write_bytes((songs / "first" / "vocals.wav").read_bytes())
    assert command(*arguments)[0] == 0
    results = json.loads((tmp_path / "scores.json").read_text())
    assert results["failed"] == {}
    assert list(results["models"]["oracle"]["songs"]) == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "none"], 2, "none: no such file or folder"),
        (["--data", "empty"], 2, "empty: no stems found"),
        (["--data", "loose"], 2, "loose: holds 1 loose recordings, but no song with both stems"),
        (["--data", "songs", "--split", "test"], 2, "no song is in test; of 3 there are 3 in train"),
        (["--data", "songs", "--only", "nobody*"], 2, "'nobody*': matches no track and no group; there are first, "),
        (["--data", "songs", "--metrics", "v5"], 2, "got 'v5', wants of v4,sdr,nsdr,band"),
        (["--data", "songs", "--piece", "0"], 2, "got '0', wants 1 or more"),
        (["--data", "songs", "--metrics", "sdr", "--equal-levels"], 2, "--equal-levels is for the metric nsdr"),
        (["--data", "songs", "-m", "oracle", "-m", "oracle"], 2, "the same --model is given twice"),
        (["--data", "songs", "--overwrite"], 2, "--overwrite is for the file of --json"),
        (["--data", "songs", "-m", "oracle", "--plot", "a.docx"], 2, "a.docx: pictures can be "),
        (["--data", "songs", "-m", "oracle", "--plot", "no/a.png"], 1, "no/a.png: there is no folder no"),
        (["--data", "songs", "-m", "none"], 3, "'none' is neither the name of a model nor a file or folder"),
        (["--data", "songs", "-m", "oracle", "--json", "songs"], 1, "songs: is a directory"),
        (["--data", "songs", "-m", "oracle", "--json", "text.json"], 2, "text.json: is there, and holds no results"),
        (["--data", "songs", "-m", "oracle", "--json", "text.json/a"], 1, "text.json: the folder cannot be made"),
        ([], 2, "the following arguments are required: --data"),
    ],
)
def test_mistakes(command, songs, tmp_path, arguments, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loose" / "vocals").mkdir(parents=True)
    (tmp_path / "loose" / "vocals" / "a.wav").write_bytes((songs / "first" / "vocals.wav").read_bytes())
    (tmp_path / "text.json").write_text("not mine")
    done, out, err = command(*arguments)
    assert (done, out) == (code, "")
    assert message in err and "Traceback" not in err
    assert (tmp_path / "text.json").read_text() == "not mine"


@pytest.mark.parametrize(("metric", "library"), [("v4", "museval"), ("nsdr", "mir_eval")])
def test_without_the_libraries_it_says_what_to_install(command, songs, monkeypatch, metric, library):
    def version(name):
        raise ModuleNotFoundError(f"No package metadata was found for {name}")

    monkeypatch.setattr("importlib.metadata.version", version)
    code, _, err = command("--data", songs, "-m", "oracle", "--metrics", metric)
    assert code == 3
    assert f"the metric {metric} needs {library}: pip install 'pyunetsep[evaluate]'" in err
    assert command("--data", songs, "-m", "oracle", "--metrics", "sdr,band")[0] == 0


def test_help(command):
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert all(word in out for word in ("examples:", "--equal-levels", "GNSDR", "oracle", "exact"))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"rate_hz": 8000}, r"second/vocals.wav and .*accompaniment.wav: have 4000 Hz and 8000 Hz"),
        ({"channels": 1}, r"second/vocals.wav and .*accompaniment.wav: have 2 and 1 channels"),
        ({"seconds": 2}, r"second/vocals.wav and .*accompaniment.wav: last 3.00 s and 2.00 s"),
        ({"seconds": 0}, r"second/accompaniment.wav: holds no samples"),
        ({"nan": True}, r"second/accompaniment.wav: holds NaN or infinite samples"),
    ],
)
def test_stems_that_do_not_fit_together(songs, spoilt, message):
    wave = np.full((spoilt.get("seconds", 3) * spoilt.get("rate_hz", RATE_HZ), spoilt.get("channels", 2)), 0.1)
    if "nan" in spoilt:
        wave[1, 0] = np.nan
    path = songs / "second" / "accompaniment.wav"
    soundfile.write(path, wave, spoilt.get("rate_hz", RATE_HZ), subtype="FLOAT")
    said = {}
    results = evaluate([songs], ["mixture"], options=QUICK, failed=said.__setitem__)
    assert list(results["failed"]) == ["second"] and said == results["failed"]
    assert re.search(message, said["second"])


def test_a_folder_of_silence_has_no_scores_and_is_no_error(tmp_path):
    silence = np.zeros((2 * RATE_HZ, 2))
    write_song(tmp_path / "songs" / "a", vocals=silence, accompaniment=silence, seconds=2)
    write_song(tmp_path / "songs" / "b", vocals=silence, seconds=2)
    results = evaluate([tmp_path / "songs"], ["oracle", "mixture"])
    for model in results["models"].values():
        made = model["aggregates"]
        assert made["sdr"]["vocals"] == {"mean": None, "median": None, "songs": 2, "undefined_songs": 2}
        assert made["sdr"]["accompaniment"]["undefined_songs"] == 1
        assert made["v4"]["accompaniment"]["sdr"] is None
        assert made["nsdr"]["vocals"]["gnsdr"] is None and made["nsdr"]["vocals"]["undefined_pieces"] == 2
        assert made["band"]["vocals"]["low_undefined_songs"] == 2
    assert " - " in table(results)


class Counting(MixtureAsEstimate):
    """Keeps the lengths of the songs it has seen, and is stopped at one."""

    def __init__(self, stop_at=None, **identity):
        self.seen, self.stop_at, self.more = [], stop_at, identity

    def identity(self):
        return {"name": "counting", **self.more}

    def estimate(self, song):
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(song.samples)
        return super().estimate(song)


@pytest.fixture
def resumed(songs, tmp_path, monkeypatch):
    """Evaluates with an estimator of this test's, into one file."""

    def evaluated(estimator, models=("counting",), options=QUICK, **more):
        monkeypatch.setattr(run, "load_estimator", lambda *_, **__: estimator)
        return evaluate([songs], models, options=options, results=tmp_path / "scores.json", **more)

    return evaluated


def test_a_killed_run_goes_on(resumed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        resumed(Counting(stop_at=2))
    there = json.loads((tmp_path / "scores.json").read_text())
    assert list(there["models"]["counting"]["songs"]) == ["first", "second"]
    rest, again, anew = Counting(), Counting(), Counting()
    results = resumed(rest)
    assert len(rest.seen) == 1
    assert list(results["models"]["counting"]["songs"]) == ["first", "second", "third"]
    assert results == json.loads((tmp_path / "scores.json").read_text())
    assert resumed(again) == results and again.seen == []
    assert resumed(anew, overwrite=True) == results and len(anew.seen) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["songs", "scores.json"]


def test_a_song_that_changed_is_scored_anew(resumed, songs):
    resumed(Counting())
    path = songs / "second" / "vocals.wav"
    soundfile.write(path, 0.5 * soundfile.read(path)[0], RATE_HZ, subtype="FLOAT")
    again = Counting()
    resumed(again)
    assert len(again.seen) == 1


def test_models_can_be_added_later(resumed):
    resumed(Counting())
    more = Counting()
    results = resumed(more, models=("counting", "another"))
    assert len(more.seen) == 3
    assert {len(model["songs"]) for model in results["models"].values()} == {3}


def test_results_of_something_else_are_refused_and_kept(resumed, tmp_path):
    resumed(Counting())
    before = (tmp_path / "scores.json").read_bytes()
    with pytest.raises(OutputExistsError, match=r"other options: piece_s is 10\.0 there, 5\.0 now; .*--overwrite"):
        resumed(Counting(), options=ScoringOptions(metrics=("sdr",), piece_s=5.0))
    with pytest.raises(OutputExistsError, match="other options: metrics is"):
        resumed(Counting(), options=ScoringOptions(metrics=("sdr", "band")))
    with pytest.raises(OutputExistsError, match="scores of another model called counting"):
        resumed(Counting(tensors_sha256="another"))
    with pytest.raises(OutputExistsError, match="other options: only is"):
        resumed(Counting(), only=["first"])
    assert (tmp_path / "scores.json").read_bytes() == before


def damaged(document):
    """Results that were damaged, one way after the other."""
    text = json.dumps(document)
    yield from (text[:-9], "[" * 100_000, "3", text.replace('"options": {', '"options": [{"a": 1}], "metrics": {', 1))
    for models in ([], 3, None, {"m": 3}, {"m": []}, {"m": {}}, {"m": {"identity": {}}}, {"m": {"songs": {}}}):
        yield json.dumps({**document, "models": models})
    model = document["models"]["counting"]
    song = model["songs"]["first"]
    for change in ({"identity": 3}, {"songs": []}, {"songs": {"first": 3}}):
        yield json.dumps({**document, "models": {"counting": {**model, **change}}})
    for key, value in [("files", None), ("files", "?"), ("sdr", None), ("sdr", {}), ("sdr", {"vocals": {"sdr": "x"}})]:
        report = {name: part for name, part in {**song, key: value}.items() if value is not None or name != key}
        yield json.dumps({**document, "models": {"counting": {**model, "songs": {"first": report}}}})


def test_damaged_results_are_refused_and_kept(resumed, tmp_path):
    document = resumed(Counting())
    path = tmp_path / "scores.json"
    for text in damaged(document):
        path.write_text(text)
        with pytest.raises(OutputExistsError, match=r"scores\.json: .*--overwrite"):
            resumed(Counting())
        assert path.read_text() == text
    path.write_text(json.dumps(document).replace('"duration_s": 3.0', '"duration_s": 1e999'))  # infinity, to Python
    assert len(resumed(Counting())["models"]["counting"]["songs"]) == 3


def test_a_full_disk_stops_the_run(resumed, songs, monkeypatch):
    from pyunetsep.evaluation.results import Results

    saves = []

    def save(self):
        saves.append(1)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Results, "save", save)
    estimator = Counting()
    with pytest.raises(OSError, match="No space"):
        resumed(estimator)
    assert len(estimator.seen) == 1


def test_a_retrained_model_is_another_one(songs, model, tmp_path):
    results = tmp_path / "scores.json"
    evaluate([songs], [str(model)], options=QUICK, results=results, device="cpu")
    write_model(model, JANSSON_LIKE)
    with pytest.raises(OutputExistsError, match="another model"):
        evaluate([songs], [str(model)], options=QUICK, results=results, device="cpu")


def test_the_data_says_which_songs_are_for_testing(songs, tmp_path):
    rows = ["path,kind,split,singer"]
    for name, split in (("first", "train"), ("second", "test"), ("third", "test")):
        rows += [f"{name}/{stem}.wav,{stem},{split},singer-{name}" for stem in STEMS]
    (songs / "manifest.csv").write_text("\n".join(rows))
    results = evaluate([songs], ["mixture"], options=QUICK, split="test", only=["singer-t*"])
    assert list(results["models"]["mixture"]["songs"]) == ["third"]
    with pytest.raises(DataError, match="no song is in validation; of 3 there are 1 in train, 0 in validation, 2 in"):
        evaluate([songs], ["mixture"], options=QUICK, split="validation")


def test_a_name_with_brackets_is_a_name(songs):
    write_song(songs / "Song [live]")
    results = evaluate([songs], ["mixture"], options=QUICK, only=["Song [live]"])
    assert list(results["models"]["mixture"]["songs"]) == ["Song [live]"]


def test_progress_counts_to_the_end(songs):
    told = []
    evaluate([songs], ["oracle", "mixture"], options=QUICK, progress=lambda *step: told.append(step))
    done = [step[0] for step in told]
    assert done == sorted(done) and done[-1] == told[-1][1] == 3 * 2 * 2
    assert told[0] == (0, 12, "song 1 of 3, oracle: separating")
