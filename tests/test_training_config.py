"""A run's configuration: defaults, file, flags, and what is refused."""

import argparse

import pytest

from pyunetsep.cli import parser
from pyunetsep.cli.train import configured
from pyunetsep.training.config import TrainingConfig, merged, read_toml, to_toml


def parsed(*argv: str) -> argparse.Namespace:
    return parser().parse_args(["train", *argv])


def test_a_file_holds_what_a_configuration_says(tmp_path):
    config = merged({"steps": 7, "data": [str(tmp_path)], "stems": ["vocals"], "augmentation": {"remix": 0.25}})
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config))
    assert merged(read_toml(file)) == config


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("steps = 11\nbatch = 3\n[augmentation]\nremix = 0.125\nspeed = 0.25\n")
    config = configured(
        parsed("--config", str(file), "--batch", "5", "--speed", "0.0", "--stems", "vocals", "--compile")
    )
    assert (config.steps, config.batch, config.stems, config.compile) == (11, 5, ("vocals",), True)
    assert (config.augmentation.remix, config.augmentation.speed) == (0.125, 0.0)
    assert config.augmentation.gain_db == TrainingConfig().augmentation.gain_db


def test_data_folders_of_a_file_lie_beside_it(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = ["songs", "/elsewhere"]\n')
    assert read_toml(file)["data"] == [str(tmp_path / "songs"), "/elsewhere"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stepps = 3", "unknown 'stepps'"),
        ("[augmentation]\nremx = 0.5", "unknown 'remx'"),
        ("augmentation = 3", "augmentation must be a table"),
        ("steps = 'many'", "steps must be a int"),
        ("steps = 0", r"steps must lie in 1 \.\. 1e\+09"),
        ("learning_rate = 0.0", "learning_rate must lie in"),
        ("learning_rate = nan", "learning_rate must be a float"),
        ("loss = 'fun'", "loss must be one of magnitude, complex"),
        ("preset = 'other'", "preset must be one of jansson2017, spleeter"),
        ("stems = ['drums']", "stems must be of vocals, accompaniment"),
        ("channels = [0]", "channels must be"),
        ("init_by = 'transfer'", "init_by 'transfer' needs a model to start from"),
        ("[augmentation]\nsilence_share = 0.6", "silence_share must lie in"),
        ("steps = ", "Invalid value"),
        ("data = " + "[" * 5000, "nested too deep|Invalid value|Unclosed array|recursion"),
    ],
)
def test_mistakes_in_a_file_are_errors_that_name_it(tmp_path, text, problem):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=problem) as caught:
        read_toml(file)
    assert str(caught.value).startswith(str(file))


def test_every_field_has_a_flag_and_a_word_of_help(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = capsys.readouterr().out
    for flag in (
        "--learning-rate",
        "--freeze-all-but",
        "--silence-share",
        "--no-compile",
        "--licence {any,permissive}",
    ):
        assert flag in text
