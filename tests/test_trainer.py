"""Networks in training: dropout and norms that do not depend on who computes, losses, steps, states."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from pyunetsep.checkpoint import Checkpoint, ModelInfo
from pyunetsep.config import JANSSON2017, SPLEETER
from pyunetsep.dropout import SeededDropout, dropping_layers, hashed, seeds_of, set_seeds
from pyunetsep.errors import CheckpointError
from pyunetsep.training.config import merged
from pyunetsep.training.examples import Batch, Examples
from pyunetsep.training.losses import complex_loss, magnitude_loss
from pyunetsep.training.start import complements, started
from pyunetsep.training.trainer import Trainer, learning_rate
from pyunetsep.training.transfer import transferred
from pyunetsep.unet import UNet

from .test_cuda_graph import Counted
from .test_training_examples import recording
from .tiny import checkpoint

CPU = torch.device("cpu")
INFO = ModelInfo(name="small", licence="MIT", training_data="none", source="test", source_sha256="")
SMALL = {"channels": [3, 4], "batch": 2, "steps": 10, "warmup_steps": 2}


@pytest.fixture(scope="module")
def recordings():
    return [recording("one"), recording("two", seed=1)]


def trainer(recordings, **values):
    start = values.pop("start", None)
    config = merged(SMALL, values)
    networks = None if start is None else started(config, start)
    return Trainer(config, Examples(recordings, config, CPU), device=CPU, networks=networks)


class TestDropout:
    def dropped(self, seeds, probability=0.5):
        layer = SeededDropout(probability)
        layer.seeds = torch.tensor(seeds, dtype=torch.int32)
        return layer(torch.ones(len(seeds), 8, 16, 16))

    def test_drops_the_share_it_should_and_keeps_the_mean(self):
        for probability in (0.1, 0.5, 0.9):
            y = self.dropped(list(range(1, 41)), probability)
            assert abs(float((y == 0).float().mean()) - probability) < 0.01
            assert abs(float(y.mean()) - 1) < 0.05

    def test_a_pattern_follows_from_the_seed_alone(self):
        together = self.dropped([5, 6, 7])
        assert torch.equal(self.dropped([6])[0], together[1])
        assert not torch.equal(together[0], together[1])

    def test_patterns_of_neighbouring_seeds_and_places_are_independent(self):
        kept = (self.dropped(list(range(64))).flatten(1) > 0).double() - 0.5
        between_seeds = kept @ kept.T / kept.shape[1] * 4 - torch.eye(64)
        assert between_seeds.abs().max() < 0.15  # five standard deviations of 2048 coins are 0.11
        assert (kept[:, 1:] * kept[:, :-1]).mean().abs() < 0.005

    def test_seeds_differ_by_each_number_that_they_follow_from(self):
        seeds = {
            hashed(*numbers) for numbers in itertools.product((0, 1, 12345), (5, 2053), (0, 1, 15), (0, 1), (0, 1, 2))
        }
        assert len(seeds) == 3 * 2 * 3 * 2 * 3 and all(0 <= seed < 2**31 for seed in seeds)

    def test_each_layer_gets_other_seeds(self):
        layers = dropping_layers(UNet(JANSSON2017.unet))
        assert len(layers) == 3
        set_seeds(layers, seeds_of(len(layers), [(0, 3), (0, 4)]))
        assert len({seed for layer in layers for seed in layer.seeds.tolist()}) == 6

    def test_frozen_blocks_drop_nothing(self, recordings):
        start = trainer(recordings, channels=[3, 4, 5]).checkpoint(INFO)
        tuned = trainer(recordings, channels=[3, 4, 5], start=start, freeze_all_but=1)
        assert [layer.training for layer in tuned.layers["vocals"]] == [False, False, True]
        assert all(layer.training for layer in trainer(recordings, channels=[3, 4, 5]).layers["vocals"])

    def test_rests_in_evaluation(self):
        layer = SeededDropout(0.5).eval()
        x = torch.rand(2, 3)
        assert layer(x) is x


def test_losses_are_what_their_formulas_say():
    mixture = torch.tensor([3 + 4j, 1 + 0j]).view(1, 1, 1, 2)
    stem = torch.tensor([0 + 1j, -1 + 0j]).view(1, 1, 1, 2)
    stems = {"vocals": stem, "accompaniment": mixture - stem}
    batch = Batch(mixture.abs(), {name: spectrum.abs() for name, spectrum in stems.items()}, stems, None, [])
    mask = torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    assert magnitude_loss(mask, batch, "vocals") == pytest.approx((1.5 + 0.0) / 2)
    assert complex_loss(mask, batch, "vocals") == pytest.approx((abs(1.5 + 1j) + 2.0) / 2)


def test_learning_rate_rises_then_falls_to_a_hundredth():
    config = merged({"steps": 1000, "warmup_steps": 10, "learning_rate": 0.01})
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.001) and max(rates) == pytest.approx(0.01, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-2)
    assert all(after <= before for before, after in itertools.pairwise(rates[10:]))


def test_steps_lower_the_loss(recordings):
    training = trainer(recordings, channels=[8, 16], steps=60, learning_rate=0.01, average_decay=0.8)
    batch = training.examples.batch(0, range(4))

    def loss():
        masks = {stem: network(batch.magnitude) for stem, network in training.averages.items()}
        return torch.stack([magnitude_loss(mask, batch, stem) for stem, mask in masks.items()])

    before = loss()
    for _ in range(60):
        assert training.step().losses.shape == (2,)
    assert (loss() < 0.7 * before).all()


def test_a_run_has_the_same_bits_again(recordings):
    first, second = (trainer(recordings) for _ in range(2))
    for _ in range(3):
        assert torch.equal(first.step().losses, second.step().losses)
    assert all(torch.equal(value, second.tensors()[name]) for name, value in first.tensors().items())


def test_steps_are_of_one_kind(recordings):
    """So a GPU captures one graph. What of them would freeze in it, only a GPU shows."""
    captured, plain = trainer(recordings), trainer(recordings)
    captured.graphs = Counted(limit=1)
    for _ in range(4):
        assert torch.equal(captured.step().losses, plain.step().losses)
    assert len(captured.graphs.captured) == 1


def test_goes_on_from_its_tensors_bit_for_bit(recordings):
    undisturbed = trainer(recordings, weight_decay=0.01, clip_norm=0.01)
    for _ in range(3):
        undisturbed.step()
    kept = {name: tensor.clone() for name, tensor in undisturbed.tensors().items()}
    resumed = trainer(recordings, weight_decay=0.01, clip_norm=0.01)
    resumed.load(kept, 3)
    for _ in range(3):
        assert torch.equal(undisturbed.step().losses, resumed.step().losses)
    assert all(torch.equal(value, resumed.tensors()[name]) for name, value in undisturbed.tensors().items())


@pytest.mark.parametrize("spoil", ["missing", "shape", "more", "moment", "moment's shape"])
def test_other_tensors_are_refused(recordings, spoil):
    training = trainer(recordings)
    training.step()
    tensors = {name: tensor.clone() for name, tensor in training.tensors().items()}
    moment = "optimiser.vocals.encoder.0.conv.weight.exp_avg"
    name = moment if spoil.startswith("moment") else next(iter(tensors))
    if spoil.endswith("shape"):
        tensors[name] = torch.zeros(1)
    elif spoil == "more":
        tensors["network.vocals.another"] = torch.zeros(1)
    else:
        del tensors[name]
    with pytest.raises(CheckpointError, match=r"should be|has more|exp_avg of vocals\.encoder\.0\.conv\.weight"):
        trainer(recordings).load(tensors, 1)


def test_stems_do_not_touch_each_other(recordings):
    both, alone = trainer(recordings), trainer(recordings, stems=["vocals"])
    for _ in range(2):
        assert torch.equal(both.step().losses[0], alone.step().losses[0])


def test_the_average_follows_the_weights(recordings):
    training = trainer(recordings, average_decay=0.5)
    name = "vocals"
    expected = copy.deepcopy(training.networks[name].encoder[0].conv.weight.detach())
    for done in range(3):
        training.step()
        share = 1 - min(0.5, (done + 1) / (done + 10))
        expected.lerp_(training.networks[name].encoder[0].conv.weight.detach(), share)
    torch.testing.assert_close(training.averages[name].encoder[0].conv.weight, expected)
    model = training.checkpoint(INFO)
    assert model.config.unet.channels == (3, 4) and not model.networks[name].training


def test_bfloat16_learns_nearly_the_same(recordings):
    losses = {p: trainer(recordings, precision=p).step().losses for p in ("float32", "bfloat16")}
    torch.testing.assert_close(losses["bfloat16"], losses["float32"], rtol=0.02, atol=0)


@pytest.mark.parametrize("has", [False, True])
def test_weights_lie_as_those_read_them_who_train(recordings, has, monkeypatch):
    monkeypatch.setattr("pyunetsep.unet_training.has_matrix_products", lambda: has)
    weight = trainer(recordings, precision="bfloat16").networks["vocals"].encoder[1].conv.weight
    assert weight.is_contiguous() == has
    assert weight.is_contiguous(memory_format=torch.channels_last) == (not has)


def test_float16_is_for_gpus(recordings):
    with pytest.raises(ValueError, match="float16 trains on a GPU only"):
        trainer(recordings, precision="float16")


def test_only_the_last_blocks_learn_if_the_others_are_frozen(recordings):
    start = trainer(recordings).checkpoint(INFO)
    tuned = trainer(recordings, start=start, freeze_all_but=1)
    for _ in range(2):
        tuned.step()
    before, after = (model.networks["vocals"].state_dict() for model in (start, tuned.checkpoint(INFO)))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key]) and "num_" not in key}
    assert changed == {"decoder.1.conv.weight", "decoder.1.conv.bias"}


def test_a_start_may_drop_another_share(recordings):
    start = trainer(recordings, dropout=0.5).checkpoint(INFO)
    tuned = trainer(recordings, dropout=0.25, start=start)
    assert [layer.probability for layer in tuned.layers["vocals"]] == [0.25, 0.25]
    before, after = (
        model.networks["vocals"].encoder_blocks[0].conv.weight for model in (start, tuned.checkpoint(INFO))
    )
    assert torch.equal(before, after)


def test_a_model_of_another_architecture_is_no_start(recordings):
    with pytest.raises(CheckpointError, match="another architecture than the preset jansson2017: its unet is"):
        trainer(recordings, start=checkpoint())
    start = trainer(recordings, stems=["vocals"]).checkpoint(INFO)
    with pytest.raises(CheckpointError, match="has no network for accompaniment, only for vocals"):
        trainer(recordings, start=start)


@pytest.mark.parametrize("preset", ["jansson2017", "spleeter"])
def test_a_complement_lets_through_what_the_other_stem_does_not(preset):
    config = merged({**SMALL, "preset": preset, "stems": ["accompaniment"]})
    torch.manual_seed(0)
    network = UNet(config.model.unet).eval()
    start = Checkpoint(dataclasses.replace(config.model, stems=("vocals",)), INFO, {"vocals": network})
    magnitude = torch.rand(1, config.model.unet.input_channels, 64, 64)
    made = complements(config, start)["accompaniment"].eval()
    torch.testing.assert_close(made(magnitude) + network(magnitude), torch.ones_like(magnitude))
    with pytest.raises(CheckpointError, match="has no network for accompaniment, only for vocals"):
        complements(merged({**SMALL, "preset": preset, "stems": ["vocals"]}), start)


class TestTransfer:
    """From Spleeter's variant to the paper's."""

    def start(self, recordings, channels=(3, 4, 5)):
        config = merged({**SMALL, "channels": list(channels)})
        unet = dataclasses.replace(SPLEETER.unet, channels=channels, dropout_blocks=2)
        torch.manual_seed(2)
        source = UNet(unet)
        with torch.no_grad():
            for module in source.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 2.0)
                    module.weight.uniform_(0.5, 1.5)
        batch = Examples(recordings, config, CPU).batch(0, range(4))
        return source, config, batch

    def test_the_new_network_is_sound(self, recordings):
        source, config, batch = self.start(recordings)
        network = transferred(source.eval(), config.model, batch.magnitude)
        assert network.config == config.model.unet
        mask = network.eval()(batch.magnitude)
        assert mask.isfinite().all() and mask.std() > 1e-4

    def test_decoder_norms_pass_their_input_through(self, recordings):
        source, config, batch = self.start(recordings)
        network = transferred(source.eval(), config.model, batch.magnitude).eval()
        seen = []
        norm = network.decoder[0].norm
        norm.register_forward_hook(lambda _, arguments, output: seen.append((arguments[0], output)))
        network(batch.magnitude)
        torch.testing.assert_close(seen[0][1], seen[0][0], rtol=1e-4, atol=1e-5)

    def test_a_decoder_block_reads_what_it_read_there(self, recordings):
        """Where norms and activations commute, so for values above 0, the translation is exact but for edges."""
        source, config, batch = self.start(recordings)
        network = transferred(source.eval(), config.model, batch.magnitude).eval()
        mine, theirs = network.decoder[1].conv, source.decoder[1].conv
        norm = source.decoder[0].norm
        x = torch.rand(1, 4, 9, 9)
        read_there = torch.cat((torch.zeros_like(x), norm(x)), 1)
        inner = (..., slice(4, 12), slice(4, 12))
        for phase in ((0, 0), (0, 1), (1, 0), (1, 1)):
            rows = (*inner[:1], slice(4 + phase[0], 12, 2), slice(4 + phase[1], 12, 2))
            there = theirs.double()(read_there.double())[rows]
            # the skip's part of the new bias belongs to the skip
            here = nn.functional.conv_transpose2d(
                torch.cat((torch.zeros_like(x), x), 1).double(), mine.weight.double(), None, 2, 1, 0
            )[..., :-1, :-1][rows]
            difference = here - there
            assert (difference - difference.mean((0, 2, 3), keepdim=True)).abs().max() < 1e-5

    def test_other_sizes_and_variants_are_refused(self, recordings):
        source, config, batch = self.start(recordings)
        other = dataclasses.replace(config.model, unet=dataclasses.replace(config.model.unet, channels=(3, 4, 6)))
        with pytest.raises(CheckpointError, match="cannot transfer a network of channels"):
            transferred(source, other, batch.magnitude)
        with pytest.raises(CheckpointError, match="from Spleeter's variant"):
            transferred(UNet(config.model.unet), config.model, batch.magnitude)


def test_checkpoints_are_copies(recordings):
    training = trainer(recordings)
    model = training.checkpoint(INFO)
    assert isinstance(model, Checkpoint)
    before = model.networks["vocals"].encoder[0].conv.weight.clone()
    training.step()
    assert torch.equal(before, model.networks["vocals"].encoder[0].conv.weight)
