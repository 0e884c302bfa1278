"""Configurations are a closed schema."""

import dataclasses
import json

import pytest

from pyunetsep.config import EXACT, JANSSON2017, PRESETS, SPLEETER, ModelConfig, SeparatorConfig, from_dict, to_dict
from tests.properties import given, st


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_survives_json(preset):
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(preset)))) == preset


def _changed(path, value):
    values = to_dict(SPLEETER)
    table = values
    for key in path[:-1]:
        table = table[key]
    if value is KeyError:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), 1, "ModelConfig: unknown 'colour'"),
        (("unet", "depth"), 6, "ModelConfig.unet: unknown 'depth'"),
        (("unet", "skips"), KeyError, "ModelConfig.unet: missing skips"),
        (("patch_frames",), "512", "ModelConfig.patch_frames must be a int, got '512'"),
        (("patch_frames",), True, "patch_frames must be a int, got True"),
        (("patch_frames",), 500, "patch_frames must be a multiple of 64, got 500"),
        (("patch_frames",), 2**40, "patch_frames must lie in"),
        (("spectrogram",), [], "ModelConfig.spectrogram must be a table"),
        (("spectrogram", "bins"), 4096, "bins must lie in"),
        (("spectrogram", "n_fft"), 4095, "n_fft must be even"),
        (("unet", "channels"), [16, 10**9], "channels must be"),
        (("unet", "channels"), 16, "channels must be a list"),
        (("unet", "dropout"), float("nan"), "dropout must be a float"),
        (("unet", "head"), "softmax", "head must be one of transposed, dilated; got 'softmax'"),
        (("unet", "head"), ["dilated"], "head must be one of"),
        (("stems",), [], "stems must be"),
        (("stems",), ["vocals", "vocals"], "stems must be 1 to 16 different names"),
        (("stems",), ["../../etc/passwd"], "stems must be plain words"),
        (("mask_epsilon",), 0, "mask_epsilon must lie in"),
    ],
)
def test_what_does_not_fit_is_named(path, value, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.").replace("(", r"\(")):
        from_dict(ModelConfig, _changed(path, value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)


@given(field=st.sampled_from([*sorted(to_dict(JANSSON2017)), "other"]), value=JSON)
def test_any_json_gives_a_config_or_a_value_error(field, value):
    try:
        config = from_dict(ModelConfig, {**to_dict(JANSSON2017), field: value})
    except ValueError:
        return
    assert isinstance(config, ModelConfig)


def test_separator_config_checks_its_bounds():
    with pytest.raises(ValueError, match="overlap"):
        SeparatorConfig(overlap=0.9)
    with pytest.raises(ValueError, match="grids"):
        SeparatorConfig(grids=0)
    with pytest.raises(
        ValueError, match=r"SeparatorConfig\.mask_extension must be one of zeros, average, upper; got 'all'"
    ):
        SeparatorConfig(mask_extension="all")
    with pytest.raises(ValueError, match=r"SeparatorConfig\.stereo_masks must be one of each, mid; got 'side'"):
        SeparatorConfig(stereo_masks="side")
    assert SeparatorConfig().stereo_masks == EXACT.stereo_masks == "each"
    with pytest.raises(ValueError, match=r"precision must be one of float32, float16, bfloat16; got 'x'"):
        SeparatorConfig(precision="x")
    assert SeparatorConfig().precision is None and EXACT.precision == "float32"
    with pytest.raises(ValueError, match=r"SeparatorConfig\.grids must be a int, got 2\.0"):
        SeparatorConfig(grids=2.0)


def test_a_config_holds_its_annotated_types_however_it_is_made():
    config = dataclasses.replace(SPLEETER.unet, channels=[3, 4], dropout_blocks=1, dropout=0)
    assert config.channels == (3, 4)
    assert isinstance(config.dropout, float)
    assert hash(config)
