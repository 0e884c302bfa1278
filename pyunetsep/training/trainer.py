"""Networks, their averages and their optimiser: one step after the other. Knows no files."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import unet_training
from ..checkpoint import COUNTER, Checkpoint, ModelInfo
from ..config import PRESETS
from ..cuda_graph import CudaGraphs
from ..data import STEMS
from ..dropout import SeededDropout, dropping_layers, seeds_of, set_seeds
from ..errors import CheckpointError
from ..ops import kernels_enabled
from ..transfers import sent
from ..unet import UNet
from .config import TrainingConfig
from .distributed import Group
from .examples import Batch, Examples
from .losses import LOSSES
from .norm import synchronise_norms
from .sampling import Draw
from .start import random_networks

FINAL_RATE = 0.01  # of the largest learning rate
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepReport:
    """What a step says of itself; tensors, so that a GPU need not be waited for."""

    losses: Tensor  # [stems], means over the batch of all processes
    gradient_norms: Tensor  # [stems]


class Trainer:
    """The stems' networks in training, side by side on the same examples."""

    def __init__(
        self,
        config: TrainingConfig,
        examples: Examples,
        *,
        device: torch.device,
        group: Group | None = None,
        networks: Mapping[str, UNet] | None = None,
    ) -> None:
        """`networks` are those to start from (see `start`), random ones by default; they are trained in place.

        Raises:
            ValueError: options that do not go together.
        """
        group = group or Group()
        check_options(config, device, group)
        self.config, self.examples, self.device, self.group = config, examples, device, group
        self.networks = dict(random_networks(config) if networks is None else networks)
        self.layout = _layout(config, device)
        self.layers: dict[str, list[SeededDropout]] = {}
        self.averages: dict[str, UNet] = {}
        self.trained: dict[str, nn.Module] = {}  # what is called: the network, perhaps compiled and distributed
        for stem, network in self.networks.items():
            network.requires_grad_(True).to(device, memory_format=self.layout)  # type: ignore[call-overload]
            if config.freeze_all_but:
                network.freeze(all_but=config.freeze_all_but)
            self.averages[stem] = copy.deepcopy(network).eval().requires_grad_(False)
            self.layers[stem] = dropping_layers(network.train())
            self.trained[stem] = self._wrapped(network)
        self.parameters = {
            f"{stem}.{name}": parameter
            for stem, network in self.networks.items()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        on_gpu = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=on_gpu,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.graphs = CudaGraphs(device, limit=int(group.size == 1 and not config.compile))
        self.done = 0  # steps

    def step(self) -> StepReport:
        """One step of the optimiser on one batch."""
        batch = self.examples.batch(self.done, self.group.share(self.config.batch))
        self._set_rate(learning_rate(self.config, self.done))
        targets = batch.magnitudes if self.config.loss == "magnitude" else batch.stems
        tensors = (batch.magnitude, *(targets[stem] for stem in STEMS), *self._seeds(batch.draws))
        losses, norms = self.graphs(self._learn, *tensors)
        assert losses is not None and norms is not None
        self.done += 1
        self._average()
        return StepReport(self.group.mean(losses), norms)

    def _seeds(self, draws: Sequence[Draw]) -> list[Tensor]:
        """Those of the dropping layers of each stem, [layers, batch]."""
        config = self.config
        seeds = []
        for stem, layers in self.layers.items():
            which = list(PRESETS[config.preset].stems).index(stem)  # the same whatever else is trained
            examples = [(config.seed, draw.step, draw.index, which) for draw in draws]
            seeds.append(sent(seeds_of(len(layers), examples), self.device))
        return seeds

    def _learn(self, magnitude: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """What happens on the device alone: the losses, and the norms of the gradients, [stems] each.

        `tensors` are what the loss compares the stems with, and then the seeds for each network. A GPU does this as a
        graph.
        """
        targets, seeds = dict(zip(STEMS, tensors, strict=False)), tensors[len(STEMS) :]
        batch = Batch(magnitude, targets, targets, loudest=None, draws=[])
        if self.scaler.is_enabled():
            self.scaler._per_optimizer_states.clear()  # of a capture that failed halfway
        self.optimiser.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        for (stem, network), of_layers in zip(self.trained.items(), seeds, strict=True):
            set_seeds(self.layers[stem], of_layers)
            loss = LOSSES[self.config.loss](self._mask(network, batch.magnitude), batch, stem)
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimiser)
        norms = [self._clipped(network) for network in self.networks.values()]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return torch.stack(losses), torch.stack(norms).detach()

    def _set_rate(self, rate: float) -> None:
        for options in self.optimiser.param_groups:
            if isinstance(options["lr"], Tensor):
                options["lr"].fill_(rate)  # a graph reads it there
            else:
                options["lr"] = rate

    def checkpoint(self, info: ModelInfo) -> Checkpoint:
        """The averaged networks as a model, on the CPU."""
        networks = {stem: copy.deepcopy(network).to("cpu") for stem, network in self.averages.items()}
        return Checkpoint(self.config.model, info, networks)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a run must remember, by name; see `load`."""
        tensors: dict[str, Tensor] = {}
        for kind, networks in (("network", self.networks), ("average", self.averages)):
            for stem, network in networks.items():
                state = network.state_dict()
                tensors |= {f"{kind}.{stem}.{key}": value for key, value in state.items() if not key.endswith(COUNTER)}
        for name, parameter in self.parameters.items():
            moments = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{name}.{moment}": value for moment, value in moments.items()}
        return tensors

    def load(
        self, tensors: Mapping[str, Tensor], step: int, loss_scale: float = 0.0, loss_scale_steps: int = 0
    ) -> None:
        """Goes on where `tensors` and `loss_scale` were taken, after so many steps.

        Raises:
            CheckpointError: they are those of other networks.
        """
        own = self.tensors()
        rest = dict(tensors)
        for name, tensor in own.items():
            if name not in rest or rest[name].shape != tensor.shape:
                raise CheckpointError(f"it does not fit the networks: {name} should be {list(tensor.shape)}")
            with torch.no_grad():
                tensor.copy_(rest.pop(name))
        for name, parameter in self.parameters.items():
            moments = {
                moment: rest.pop(f"optimiser.{name}.{moment}", None) for moment in ("step", "exp_avg", "exp_avg_sq")
            }
            for moment, value in moments.items() if step else ():
                wanted = torch.Size() if moment == "step" else parameter.shape
                if value is None or value.shape != wanted:
                    raise CheckpointError(f"it has not the optimiser's {moment} of {name}, {list(wanted)}")
            state = self.optimiser.state[parameter] if step else {}
            for moment, value in moments.items() if step else ():
                assert value is not None
                if moment not in state:  # moments lie in memory as their parameter does
                    state[moment] = torch.empty_like(parameter if value.ndim else value, device=self.device)
                state[moment].copy_(value)  # where there is one: graphs know where it lies
        if rest:
            raise CheckpointError(f"it has more than the networks: {next(iter(rest))}")
        if self.scaler.is_enabled():
            scale = {"scale": loss_scale, "_growth_tracker": loss_scale_steps}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **scale})
        self.done = step

    def loss_scale(self) -> tuple[float, int]:
        """float16's, and for how many steps it held; 0 with other types."""
        state = self.scaler.state_dict()
        return float(state.get("scale", 0.0)), int(state.get("_growth_tracker", 0))

    def _mask(self, network: nn.Module, magnitude: Tensor) -> Tensor:
        dtype = DTYPES[self.config.precision]
        context = torch.autocast(self.device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
        with context:
            mask: Tensor = network(magnitude.contiguous(memory_format=self.layout))
        return mask.float()

    def _clipped(self, network: UNet) -> Tensor:
        """The norm of a network's gradient, before it is made shorter if it is too long."""
        parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.config.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        return norm

    def _wrapped(self, network: UNet) -> nn.Module:
        wrapped: nn.Module = network
        if self.group.size > 1:
            synchronise_norms(network)
            devices = [self.device] if self.device.type == "cuda" else None
            wrapped = nn.parallel.DistributedDataParallel(wrapped, device_ids=devices, broadcast_buffers=False)
        return torch.compile(wrapped) if self.config.compile else wrapped  # type: ignore[return-value]

    @torch.no_grad()
    def _average(self) -> None:
        # the first steps' weights should not weigh on the average for long
        share = 1.0 - min(self.config.average_decay, self.done / (self.done + 9))
        for stem, average in self.averages.items():
            network = self.networks[stem]
            pairs: list[tuple[Tensor, Tensor]] = [*zip(average.parameters(), network.parameters(), strict=True)]
            pairs += [
                (mine, theirs)
                for mine, theirs in zip(average.buffers(), network.buffers(), strict=True)
                if mine.is_floating_point()
            ]
            torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], share)


def _layout(config: TrainingConfig, device: torch.device) -> torch.memory_format:
    """How weights lie in memory: as the kernels read them, or as PyTorch's convolutions are fastest."""
    plain = not config.compile and not config.freeze_all_but
    computes = unet_training.computes(device, DTYPES[config.precision])
    in_kernels = plain and computes and unet_training.suits(config.model.unet) and kernels_enabled()
    return torch.contiguous_format if in_kernels else torch.channels_last


def check_options(config: TrainingConfig, device: torch.device, group: Group) -> None:
    """A ValueError if a run cannot be made so on this device, by these processes."""
    if config.batch % group.size:
        raise ValueError(f"batch must be a multiple of the {group.size} processes, got {config.batch}")
    if config.precision == "float16" and device.type != "cuda":
        raise ValueError("precision float16 trains on a GPU only; a CPU has float32 and bfloat16")
    blocks = 2 * len(config.model.unet.channels) + (config.model.unet.head == "dilated")
    if config.freeze_all_but > blocks:
        raise ValueError(
            f"freeze_all_but must lie in 0 .. {blocks} (the network's blocks), got {config.freeze_all_but}"
        )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """A linear rise, then a cosine down to `FINAL_RATE`."""
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / config.steps)))
    return config.learning_rate * rise * (FINAL_RATE + (1.0 - FINAL_RATE) * fall)
