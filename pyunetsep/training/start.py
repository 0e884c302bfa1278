"""The networks that a run starts from: random ones, or what another model has learnt."""

from __future__ import annotations

import torch

from .. import models
from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..unet import UNet
from .config import TrainingConfig
from .examples import Examples
from .transfer import check_transfer, transferred

CALIBRATION_EXAMPLES = 16
OTHER = {"vocals": "accompaniment", "accompaniment": "vocals"}


def starting_model(config: TrainingConfig) -> Checkpoint | None:
    """The model to start from, if the configuration names one; checked as far as that goes without examples.

    Raises:
        CheckpointError: it does not fit. UnknownModelError, ModelUnavailableError: there is none.
    """
    if not config.init:
        return None
    start = models.load(config.init)
    if config.init_by == "complement":
        complements(config, start)
    elif config.init_by == "weights":
        started(config, start)
    else:
        _check_stems(start, config.model.stems)
        check_transfer(start.config.unet, config.model.unet)
    return start


def starting_networks(config: TrainingConfig, start: Checkpoint | None, examples: Examples) -> dict[str, UNet]:
    """Random networks, or what `starting_model` gives, on the CPU."""
    if start is None:
        return random_networks(config)
    if config.init_by == "transfer":
        return _transferred(config, start, examples)
    return complements(config, start) if config.init_by == "complement" else started(config, start)


def random_networks(config: TrainingConfig) -> dict[str, UNet]:
    """Networks that know nothing yet, from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return {stem: UNet(config.model.unet) for stem in config.model.stems}


def started(config: TrainingConfig, start: Checkpoint) -> dict[str, UNet]:
    """Copies of a model's networks, those that are trained."""
    _check_stems(start, config.model.stems)
    _check_architecture(config, start)
    return {stem: _copied(start.networks[stem], config) for stem in config.model.stems}


@torch.no_grad()
def complements(config: TrainingConfig, start: Checkpoint) -> dict[str, UNet]:
    """For each stem a copy of the other one's network whose mask is 1 less that one's.

    sigmoid(-x) = 1 - sigmoid(x), so it is the last convolution that changes its sign.
    """
    _check_stems(start, [OTHER[stem] for stem in config.model.stems])
    _check_architecture(config, start)
    networks = {stem: _copied(start.networks[OTHER[stem]], config) for stem in config.model.stems}
    for network in networks.values():
        last = network.head if network.config.head == "dilated" else network.decoder_blocks[-1].conv
        for parameter in last.parameters():
            parameter.neg_()
    return networks


def _transferred(config: TrainingConfig, start: Checkpoint, examples: Examples) -> dict[str, UNet]:
    batch = examples.batch(0, range(min(CALIBRATION_EXAMPLES, config.batch)))
    magnitude = batch.magnitude.cpu()
    return {stem: transferred(start.networks[stem], config.model, magnitude) for stem in config.model.stems}


def _check_stems(start: Checkpoint, wanted: tuple[str, ...] | list[str]) -> None:
    missing = [stem for stem in wanted if stem not in start.networks]
    if missing:
        raise CheckpointError(
            f"{start.info.name}: has no network for {', '.join(missing)}, only for {', '.join(start.networks)}"
        )


def _check_architecture(config: TrainingConfig, start: Checkpoint) -> None:
    for part in ("unet", "spectrogram", "normalisation"):
        given, wanted = getattr(start.config, part), getattr(config.model, part)
        if part == "unet":
            given, wanted = given.trained, wanted.trained
        if given != wanted:
            raise CheckpointError(
                f"{start.info.name}: is a model of another architecture than the preset {config.preset}: its {part} is "
                f"{given}, not {wanted}"
            )


def _copied(network: UNet, config: TrainingConfig) -> UNet:
    """The same weights in a network that trains as the configuration says."""
    with torch.random.fork_rng(devices=[]):
        copied = UNet(config.model.unet)
    copied.load_state_dict(network.state_dict())
    return copied
