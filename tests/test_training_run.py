"""Whole runs: from folders to a model, killed and continued, alone and in company."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pyunetsep
from pyunetsep.cli import main
from pyunetsep.errors import CheckpointError, DataError, OutputExistsError, TrainingError
from pyunetsep.training import run
from pyunetsep.training.config import merged
from pyunetsep.training.losses import LOSSES
from pyunetsep.training.state import load_state

from .synthesis import RATE_HZ, write_songs

CPU = torch.device("cpu")
SMALL = {"channels": [3, 4], "batch": 2, "steps": 4, "warmup_steps": 1, "validate_every": 2, "save_every": 2}
FLAGS = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items() if key != "channels"]
FLAGS += ["--channels", "3", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return write_songs(tmp_path_factory.mktemp("songs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def train(songs, cache, output, *, resume=False, **values):
    """Trains on all songs but song3, unless told otherwise."""
    said = []
    held_out = {} if (songs / "vocals.wav").exists() or values.get("test") else {"validation": ["song3"]}
    config = merged(SMALL, held_out, {"data": [str(songs)], **values})
    result = run.train(config, output, device=CPU, cache=cache, resume=resume, notify=said.append)
    return result, said


def command(songs, cache, output, *extra):
    return ["-m", "pyunetsep", "train", "--data", str(songs), "--cache", str(cache), "-o", str(output), *FLAGS, *extra]


def events(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_model_a_log_curves_and_something_to_hear(songs, cache, tmp_path):
    result, said = train(songs, cache, tmp_path)
    assert "recordings to train on: 3 (1 min), songs to validate on: 1, held out: 0" in said[-1]
    assert result.steps == 4 and result.best_step in (2, 4)
    separator = pyunetsep.Separator.from_pretrained(result.model, device="cpu")
    assert separator.model.stems == ("vocals", "accompaniment")
    assert "preset jansson2017, step" in separator.info.source
    assert [event["step"] for event in events(tmp_path) if "nsdr_db" in event] == [2, 4]
    assert all(set(event["loss"]) == {"vocals", "accompaniment"} for event in events(tmp_path) if "loss" in event)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    heard = {path.stem: soundfile.read(path)[0] for path in (tmp_path / "examples" / "step-0000004").iterdir()}
    np.testing.assert_allclose(heard["vocals"] + heard["accompaniment"], heard["mixture"], atol=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_without_validation_the_last_weights_are_the_model(songs, cache, tmp_path):
    result, _ = train(songs / "song0", cache, tmp_path)
    assert result.best_step == -1
    separator = pyunetsep.Separator.from_pretrained(result.model, device="cpu")
    average = load_state(tmp_path / run.CHECKPOINT).tensors["average.vocals.encoder.0.conv.weight"]
    torch.testing.assert_close(separator.networks["vocals"].encoder[0].conv.weight, average.half().float())


STEPS = 90
LONGER = (f"--steps={STEPS}", "--save-every=3", "--validate-every=30")


@pytest.fixture(scope="module")
def undisturbed(songs, cache, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([sys.executable, *command(songs, cache, output, *LONGER)], check=True, capture_output=True)
    return output


@pytest.mark.parametrize("moment_s", [0.0, 0.2, 0.5])
def test_a_killed_run_goes_on_to_the_same_bits(songs, cache, tmp_path, undisturbed, moment_s):
    process = subprocess.Popen([sys.executable, *command(songs, cache, tmp_path, *LONGER)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / run.CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(moment_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # it was at work
    assert 3 <= load_state(tmp_path / run.CHECKPOINT).position.step < STEPS  # whole, whatever was going on
    resuming = command(songs, cache, tmp_path, *LONGER, "--resume")
    subprocess.run([sys.executable, *resuming], check=True, capture_output=True)
    whole, resumed = (load_state(folder / run.CHECKPOINT) for folder in (undisturbed, tmp_path))
    assert whole.position.step == resumed.position.step == STEPS
    assert whole.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in whole.tensors.items())
    scores = [[(e["step"], e["nsdr_db"]) for e in events(f) if "nsdr_db" in e] for f in (undisturbed, tmp_path)]
    assert scores[0] == scores[1] and [step for step, _ in scores[1]] == [30, 60, 90]
    assert whole.position.best_score_db == resumed.position.best_score_db


def test_two_processes_train_what_one_does(songs, cache, tmp_path):
    more = ("--steps=3", "--batch=4", "--learning-rate=1e-4")
    subprocess.run([sys.executable, *command(songs, cache, tmp_path / "one", *more)], check=True, capture_output=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, *command(songs, cache, tmp_path / "two", *more)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("model.safetensors") == 1  # one of them reports
    one, two = (load_state(tmp_path / name / run.CHECKPOINT).tensors for name in ("one", "two"))
    moments = {name: tensor for name, tensor in one.items() if name.endswith(".exp_avg")}
    sizes = {name: float(tensor.abs().max()) for name, tensor in moments.items()}
    # of gradients, and the weights follow from them; that of a bias in front of a norm is rounding alone
    telling = [name for name, size in sizes.items() if size > 1e-3 * max(sizes.values())]
    assert len(telling) > 15
    for name in telling:
        assert (two[name] - one[name]).abs().max() < 2e-3 * sizes[name], name
    for name, tensor in one.items():
        if name.endswith("running_var"):  # means move with those biases
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
    losses = [[e["loss"]["vocals"] for e in events(tmp_path / name) if "loss" in e] for name in ("one", "two")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_batch_that_processes_cannot_share_is_an_error(songs, cache, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, *command(songs, cache, tmp_path, "--batch=3")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "batch must be a multiple of the 2 processes, got 3" in done.stderr


def test_a_run_is_not_overwritten_nor_mixed_with_another(songs, cache, tmp_path):
    train(songs, cache, tmp_path)
    kept = (tmp_path / run.CHECKPOINT).read_bytes()
    with pytest.raises(OutputExistsError, match="has a run already; --resume goes on with it"):
        train(songs, cache, tmp_path)
    with pytest.raises(CheckpointError, match="another configuration: batch was 2, is 3"):
        train(songs, cache, tmp_path, resume=True, batch=3)
    write_songs(tmp_path / "more", songs=5)
    with pytest.raises(CheckpointError, match="another configuration: data was"):
        train(tmp_path / "more", cache, tmp_path, resume=True)
    result, _ = train(songs, cache, tmp_path, resume=True)  # which has nothing left to do
    assert result.steps == 4
    assert (tmp_path / run.CHECKPOINT).read_bytes() == kept


def test_resuming_needs_no_other_flag_than_the_folder(songs, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(songs.parent)
    assert main(command(songs.name, cache, tmp_path)[2:]) == 0  # a relative path
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "-o", str(tmp_path), "--cache", str(cache)]) == 0
    assert main(["train", "--resume", "-o", str(tmp_path), "--cache", str(cache), "--batch", "3"]) == 3
    again = ["train", "--config", str(tmp_path / "config.toml"), "-o", str(tmp_path / "again"), "--cache", str(cache)]
    assert main(again) == 0
    states = [load_state(folder / run.CHECKPOINT).tensors for folder in (tmp_path, tmp_path / "again")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_configuration_of_somebody_else_is_not_overwritten(songs, cache, tmp_path):
    (tmp_path / "config.toml").write_text("steps = 3  # mine\n")
    with pytest.raises(OutputExistsError, match=r"config\.toml: is not that of a run"):
        train(songs, cache, tmp_path)
    assert (tmp_path / "config.toml").read_text() == "steps = 3  # mine\n"


def test_two_runs_do_not_share_a_folder(songs, cache, tmp_path):
    with run._locked(tmp_path), pytest.raises(OutputExistsError, match="another process trains there right now"):
        train(songs, cache, tmp_path)
    train(songs, cache, tmp_path)


def test_what_a_killed_run_left_is_removed(songs, cache, tmp_path):
    (tmp_path / f".{run.CHECKPOINT}.abcd").write_bytes(b"half")
    train(songs, cache, tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_songs_without_a_score_keep_the_latest_weights(cache, tmp_path):
    songs = write_songs(tmp_path / "songs")
    pause = np.zeros(RATE_HZ * 16)
    pause[:800] = 0.1  # no piece of 10 s that is cut from the middle
    soundfile.write(songs / "song3" / "vocals.wav", pause, RATE_HZ, subtype="FLOAT")
    result, _ = train(songs, cache, tmp_path / "run", augmentation={"silence_share": 0.0})
    assert result.model.exists() and np.isfinite(result.best_score_db)
    assert train(songs, cache, tmp_path / "run", augmentation={"silence_share": 0.0}, resume=True)[0].steps == 4


def test_names_that_a_header_cannot_have_do_not_stop_a_run(cache, tmp_path):
    songs = write_songs(tmp_path / "a\u00a0b\u200d")
    result, _ = train(songs, cache, tmp_path / "run\u00ad")
    assert pyunetsep.Separator.from_pretrained(result.model, device="cpu").info.name == "run?"


def test_a_model_says_what_it_began_with(songs, cache, tmp_path):
    first = train(songs, cache, tmp_path / "first", stems=["vocals"])[0].model
    second = train(songs, cache, tmp_path / "second", stems=["accompaniment"], init=str(first), init_by="complement")[0]
    info = pyunetsep.Separator.from_pretrained(second.model, device="cpu").info
    assert "began with first (complement), trained with pyunetsep" in info.source
    assert info.training_data.count("3 recordings: song0, song1, song2") == 2
    assert "began with a model of licence" in info.licence


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"precision": "float16"}, "float16 trains on a GPU only"),
        ({"freeze_all_but": 5}, r"freeze_all_but must lie in 0 \.\. 4"),
        ({"init": "no-such-model"}, "no-such-model"),
    ],
)
def test_mistakes_are_found_before_the_data_is_read(tmp_path, values, problem):
    with pytest.raises(ValueError, match=problem):
        train(tmp_path / "nowhere", tmp_path, tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()


def test_a_run_on_recordings_that_changed_is_another_run(cache, tmp_path):
    songs = write_songs(tmp_path / "songs")
    train(songs, cache, tmp_path / "run")
    write_songs(songs / "more", songs=1)
    with pytest.raises(CheckpointError, match="that run was on other recordings"):
        train(songs, cache, tmp_path / "run", resume=True)


def test_resuming_what_never_began_begins(songs, cache, tmp_path):
    assert train(songs, cache, tmp_path, resume=True)[0].steps == 4


@pytest.mark.parametrize("content", [b"", b"garbage" * 10, None])
def test_a_damaged_checkpoint_is_an_error_that_names_it(songs, cache, tmp_path, content):
    if content is None:  # a model, not a run's state
        content = train(songs, cache, tmp_path / "other")[0].model.read_bytes()
    (tmp_path / run.CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{tmp_path / run.CHECKPOINT}: "):
        train(songs, cache, tmp_path, resume=True)


def test_a_loss_that_is_no_number_stops_the_run_with_a_report(songs, cache, tmp_path, monkeypatch):
    calls = []

    def spoilt(mask, batch, stem):
        calls.append(stem)
        return LOSSES["complex"](mask, batch, stem) * (float("nan") if len(calls) > 5 else 1.0)

    monkeypatch.setitem(LOSSES, "magnitude", spoilt)
    with pytest.raises(TrainingError, match=r"the loss of step 2 is not a number; .*not-a-number-2-0\.json"):
        train(songs, cache, tmp_path)
    report = json.loads((tmp_path / "not-a-number-2-0.json").read_text())
    assert report["step"] == 2 and report["losses"][1] == "nan" and len(report["gradient_norms"]) == 2
    assert len(report["examples"]) == 2 and "vocals of song" in report["examples"][0]["sources"]
    state = load_state(tmp_path / run.CHECKPOINT)
    assert state.position.step == 2  # from before
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


def test_an_average_of_a_model_is_where_another_run_starts(songs, cache, tmp_path):
    model = train(songs, cache, tmp_path / "first")[0].model
    tuned = train(songs, cache, tmp_path / "second", init=str(model), freeze_all_but=1, stems=["vocals"])[0].model
    first, second = (
        pyunetsep.Separator.from_pretrained(path, device="cpu").networks["vocals"] for path in (model, tuned)
    )
    assert torch.equal(first.encoder[0].conv.weight, second.encoder[0].conv.weight)
    assert not torch.equal(first.decoder[-1].conv.weight, second.decoder[-1].conv.weight)


def test_what_is_held_out_is_not_learnt(songs, cache, tmp_path):
    result, said = train(songs, cache, tmp_path, validation=["song3"], test=["song[12]"])
    assert "recordings to train on: 1 (" in said[-1] and "held out: 2" in said[-1]
    info = pyunetsep.Separator.from_pretrained(result.model, device="cpu").info
    assert info.training_data == "1 recordings: song0"


def test_karaoke_on_both_sides_is_learnt_without_its_accompaniment(cache, tmp_path):
    songs = write_songs(tmp_path / "songs", songs=3)
    cover = soundfile.read(songs / "song0" / "accompaniment.wav")[0]
    soundfile.write(songs / "song2" / "accompaniment.wav", 0.7 * cover, RATE_HZ, subtype="FLOAT")
    _, said = train(songs, cache, tmp_path / "run", validation=["song2"])
    assert any(text.startswith("song0 shares its accompaniment with song2 (1.00)") for text in said)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: None, "no stems"),
        (
            lambda folder: soundfile.write(folder / "vocals.wav", np.zeros(9), 8000),
            "none can be used",
        ),
    ],
)
def test_folders_without_anything_to_learn_are_errors(cache, tmp_path, make, problem):
    folder = tmp_path / "songs"
    folder.mkdir()
    make(folder)
    with pytest.raises(DataError, match=problem):
        train(folder, cache, tmp_path / "run")
    assert not (tmp_path / "run" / run.CHECKPOINT).exists()


def test_permissive_runs_refuse_data_that_states_no_licence(songs, cache, tmp_path):
    with pytest.raises(DataError, match="no recording states a licence that is known to allow commercial use"):
        train(songs, cache, tmp_path, licence="permissive")


def test_everything_held_out_leaves_nothing(songs, cache, tmp_path):
    with pytest.raises(DataError, match="nothing is left to train on"):
        train(songs, cache, tmp_path, test=["song*"])


class TestCommandLine:
    def run(self, songs, cache, output, *extra):
        return main(command(songs, cache, output, *extra)[2:])

    def test_reports_for_people_and_machines(self, songs, cache, tmp_path, capsys):
        assert self.run(songs, cache, tmp_path, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert Path(report["model"]) == tmp_path / "model.safetensors" and report["steps"] == 4
        assert self.run(songs, cache, tmp_path, "--resume") == 0
        assert "dB on the validation songs at step" in capsys.readouterr().out

    def test_a_run_that_exists_is_usage_and_an_unknown_key_too(self, songs, cache, tmp_path, capsys):
        assert self.run(songs, cache, tmp_path) == 0
        assert self.run(songs, cache, tmp_path) == 2
        (tmp_path / "bad.toml").write_text("stepz = 1")
        assert self.run(songs, cache, tmp_path, "--config", str(tmp_path / "bad.toml")) == 2
        assert "unknown 'stepz'" in capsys.readouterr().err

    def test_a_model_of_another_architecture_is_exit_code_3(self, songs, cache, tmp_path, capsys):
        from pyunetsep.checkpoint import save_checkpoint

        from .tiny import checkpoint

        other = checkpoint()
        states = {stem: network.state_dict() for stem, network in other.networks.items()}
        save_checkpoint(tmp_path / "other.safetensors", other.config, states, other.info)
        assert self.run(songs, cache, tmp_path / "run", "--init", str(tmp_path / "other.safetensors")) == 3
        assert "another architecture" in capsys.readouterr().err

    def test_an_unwritable_output_is_exit_code_1(self, songs, cache, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert self.run(songs, cache, tmp_path / "file" / "run") == 1
        assert str(tmp_path / "file") in capsys.readouterr().err


def test_smoke(songs, cache, tmp_path):
    """200 steps on synthesised songs must lower the loss, and separate better than leaving the mixture as it is."""
    values = {"channels": [8, 16, 32, 64], "steps": 200, "learning_rate": 0.003, "average_decay": 0.95}
    result, _ = train(songs, cache, tmp_path, **values, validate_every=200, save_every=200)
    losses = [event["loss"] for event in events(tmp_path) if "loss" in event]
    for stem in ("vocals", "accompaniment"):
        assert losses[-1][stem] < 0.6 * losses[0][stem]
    assert result.best_score_db > 5.0


def test_the_preset_of_44_1_khz_trains_by_the_same_command(songs, cache, tmp_path):
    result, _ = train(songs, cache, tmp_path, preset="spleeter", batch=1, steps=2)
    separator = pyunetsep.Separator.from_pretrained(result.model, device="cpu")
    assert separator.model.spectrogram.sample_rate_hz == 44_100
    assert separator.model.unet.channels == (3, 4) and separator.model.masks == "ratio"


def test_tensorboard_is_an_extra(songs, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'pyunetsep\[tensorboard\]'"):
        run.train(merged(SMALL, {"data": [str(songs)]}), tmp_path, device=CPU, cache=cache, tensorboard=True)
    scalars = []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            scalars.append((name, step))

        def close(self):
            scalars.append("closed")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run.train(merged(SMALL, {"data": [str(songs)]}), tmp_path, device=CPU, cache=cache, tensorboard=True)
    assert {("loss/vocals", 2), ("nsdr_db/accompaniment", 4), ("learning_rate/all", 4)} <= set(scalars)
    assert scalars[-1] == "closed"
