"""Networks as ONNX files, for programs without PyTorch: a magnitude spectrogram in, a soft mask out.

A file holds one stem's network, and in its metadata what surrounds it: the spectrogram, how magnitudes are normalised,
and how masks are made of the networks' outputs. `examples/onnx_separate.py` is a separator made of these alone.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import __version__, models
from .atomic import replacing
from .checkpoint import Checkpoint, blaming
from .config import ModelConfig, to_dict
from .cuda_plan import LARGEST_MAGNITUDE
from .errors import OutputExistsError
from .spectrogram import Spectrogram
from .unet import DecoderBlock, EncoderBlock, UNet

if TYPE_CHECKING:
    import onnx

StrPath = str | os.PathLike[str]

SUFFIX = ".onnx"
OPSET = 18  # the oldest that PyTorch's exporter writes: every runtime since 2023 reads it
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
MOST_ERROR_DB = {"float32": -80.0, "float16": -40.0}  # of the published models: -127 and -57 at most
MAX_BYTES = 2**31 - 2**20  # of one protobuf message, less room for all but the weights


@dataclass(frozen=True)
class Agreement:
    """How close ONNX Runtime's masks, on a CPU, are to those of PyTorch in float32."""

    runtime: str  # its name and version
    largest_difference: float  # between masks, which are in 0 .. 1
    error_db: float | None  # of mask times mixture, against the mixture; None: there is none


@dataclass(frozen=True)
class ExportedNetwork:
    """One file that was written."""

    path: Path
    stem: str
    precision: str
    opset: int
    agreement: Agreement | None  # None: ONNX Runtime is not installed


def export_onnx(
    model: StrPath | Checkpoint,
    output: StrPath,
    *,
    stem: str | Sequence[str] | None = None,
    precision: str = "float32",
    opset: int = OPSET,
    overwrite: bool = False,
    offline: bool = False,
) -> list[ExportedNetwork]:
    """Writes a model's networks as ONNX, each in a file of its own.

    The input `magnitude` and the output `mask` are float32 [batch, input_channels, bins, frames] in either precision;
    batch is free, frames is a multiple of the network's stride. What is written is checked before it gets its name:
    by ONNX's checker, and if ONNX Runtime is installed by running it next to PyTorch, on a synthetic song.

    Args:
        model: as for `Separator.from_pretrained`, or a loaded one.
        output: a file that ends in .onnx, for one stem, or a folder, for <stem>.onnx.
        stem: one name or several; None gives all.
        precision: "float32", or "float16": weights of half the size, and arithmetic that is fast on a GPU. Magnitudes
            above the metadata's `largest_magnitude` must be turned down for it.
        opset: version of ONNX's operators, 18 or later.
        overwrite: replace files that exist.
        offline: never download the model.
    Raises:
        ValueError: no such stem, precision or opset; weights that float16 or one file cannot hold. ImportError: onnx or
        onnxscript are missing. OutputExistsError: a file is there already. OSError: one cannot be written.
        CheckpointError: ONNX Runtime computes other masks. Else those of `Separator.from_pretrained`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    if not os.fspath(output):
        raise ValueError("output must name a file or a folder, got an empty name")
    _check_opset(opset)
    checkpoint = model if isinstance(model, Checkpoint) else models.load(model, offline=offline)
    targets = _targets(Path(output).expanduser(), checkpoint.config.chosen_stems(stem), overwrite=overwrite)
    made, contents = [], {}
    for name, target in targets.items():
        network = copy.deepcopy(checkpoint.networks[name]).cpu().float().eval()
        graph = _graph(network, checkpoint.config, PRECISIONS[precision], opset)
        _describe(graph, checkpoint, name, precision)
        contents[target] = graph.SerializeToString(deterministic=True)
        with blaming(target):
            agreement = _agreement(contents[target], network, checkpoint.config, MOST_ERROR_DB[precision])
        made.append(ExportedNetwork(target, name, precision, opset, agreement))
    _write(contents)
    return made


def _check_opset(opset: int) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401, what PyTorch's exporter is made of
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs onnx and onnxscript ({error}): pip install 'pyunetsep[onnx]'"
        ) from None
    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not OPSET <= opset <= newest:
        raise ValueError(f"opset must be a whole number from {OPSET} to {newest}, the installed onnx's, got {opset!r}")


def _targets(output: Path, stems: list[str], *, overwrite: bool) -> dict[str, Path]:
    """stem -> the file that it goes to."""
    if output.is_dir() or output.suffix != SUFFIX:
        targets = {stem: output / f"{stem}{SUFFIX}" for stem in stems}
        if output.exists() and not output.is_dir():
            raise ValueError(f"output must end in {SUFFIX} or be a folder, got the file {str(output)!r}")
    elif len(stems) > 1:
        raise ValueError(
            f"output must be a folder for several stems, got {str(output)!r}; stem (--stem) chooses one of "
            f"{', '.join(stems)}"
        )
    else:
        targets = {stems[0]: output}
    for target in targets.values():
        if target.exists() and not overwrite:
            raise OutputExistsError(f"{target}: exists; --overwrite (overwrite=True) replaces it")
        there = next(parent for parent in target.absolute().parents if parent.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"{target}: cannot be written: {there} is not a folder")
    return targets


def _write(contents: dict[Path, bytes]) -> None:
    """All files or none, but for what happens between their renaming."""
    with ExitStack() as stack:
        for target, content in contents.items():
            stack.enter_context(_naming(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(replacing(target)).write(content)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Errors of the system that leave the context name the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{target}: cannot be written: {error.strerror or error}") from error


class _Float32Network(nn.Module):
    """A network of any precision with float32 around it."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, magnitude: Tensor) -> Tensor:
        return self.network(magnitude.to(self.network.dtype)).float()


def _graph(network: UNet, config: ModelConfig, dtype: torch.dtype, opset: int) -> onnx.ModelProto:
    """The network as ONNX: batch and frames are free, and nothing tells of the machine it was made on."""
    import onnx

    rounded = folded(network).to(dtype)
    _check_weights(rounded)
    stride = config.unet.stride
    example = torch.zeros(2, config.unet.input_channels, config.spectrogram.bins, 2 * stride)
    free = {0: torch.export.Dim("batch", min=1), 3: stride * torch.export.Dim("strides", min=1)}
    with _quiet():
        program = torch.onnx.export(
            _Float32Network(rounded).eval(),
            (example,),
            dynamo=True,
            input_names=["magnitude"],
            output_names=["mask"],
            dynamic_shapes=(free,),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    written = {imported.domain: imported.version for imported in model.opset_import}
    if written.get("") != opset:  # what cannot be converted stays as it was, without an error
        raise ValueError(f"opset must be one that onnxscript can write: for {opset} it gave {written.get('')}")
    _strip(model.graph)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)  # old runtimes ask for no more
    onnx.checker.check_model(model, full_check=True)
    return model


@torch.no_grad()
def folded(network: UNet) -> UNet:
    """A copy in float64 without the statistics of batch norms, whose variances may be beyond float16.

    A norm that alone reads a convolution's output becomes part of it; of the others mean, scale and shift are left.
    """
    network = copy.deepcopy(network).double().eval()
    for encoder_block in network.encoder_blocks:
        _fold_norm(encoder_block, into_conv=not encoder_block.raw_skip)
    for decoder_block in network.decoder_blocks:
        _fold_norm(decoder_block, into_conv=decoder_block.norm_first)
    return network


def _fold_norm(block: EncoderBlock | DecoderBlock, *, into_conv: bool) -> None:
    norm = block.norm
    if norm is None:
        return
    if into_conv:
        transposed = isinstance(block.conv, nn.ConvTranspose2d)
        block.conv = fuse_conv_bn_eval(block.conv, norm, transposed)
        block.norm = nn.Identity()  # type: ignore[assignment]  # None would take the activation along
    else:
        assert norm.running_var is not None
        norm.weight.div_(torch.sqrt(norm.running_var + norm.eps))
        norm.running_var.fill_(1.0)
        norm.eps = 0.0


def _check_weights(network: UNet) -> None:
    """Against what the precision and what one file can hold."""
    size = 0
    for name, tensor in network.state_dict().items():
        size += tensor.nbytes
        if not tensor.isfinite().all():
            raise ValueError(f"precision must be float32 for this model: {name} is beyond float16, which ends at 65504")
    if size > MAX_BYTES:
        raise ValueError(f"an ONNX file cannot hold {size / 2**30:.1f} GiB of weights, 2 GiB at most")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns of its own deprecated calls, and of packages that it would not use here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(graph: onnx.GraphProto) -> None:
    """Removes what the exporter notes of the source code, paths included, and its names for sizes."""
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:]
    for value in (*graph.input, *graph.output):
        batch, _, _, frames = value.type.tensor_type.shape.dim
        batch.dim_param, frames.dim_param = "batch", "frames"


def _describe(graph: onnx.ModelProto, checkpoint: Checkpoint, stem: str, precision: str) -> None:
    """Puts into the metadata what the model is and what surrounds the network; numbers and lists are JSON."""
    import onnx

    config, info = checkpoint.config, to_dict(checkpoint.info)
    pipeline: dict[str, Any] = {
        **{key: value for key, value in to_dict(config).items() if key not in ("spectrogram", "unet")},
        **to_dict(config.spectrogram),
        "window": "periodic Hann",
        "input_channels": config.unet.input_channels,
        "frames_multiple": config.unet.stride,
    }
    if precision == "float16":
        pipeline["largest_magnitude"] = LARGEST_MAGNITUDE
    values = {**info, "stem": stem, "precision": precision, **pipeline}
    onnx.helper.set_model_props(
        graph, {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    )
    graph.producer_name, graph.producer_version = "pyunetsep", __version__
    graph.graph.name = stem
    graph.doc_string = (
        f"{checkpoint.info.name}: the network for the {stem}. Magnitude spectrogram in, soft mask in 0 .. 1 out, "
        "[batch, input_channels, bins, frames]; frames must be a multiple of frames_multiple."
    )


def _agreement(model: bytes, network: UNet, config: ModelConfig, most_error_db: float) -> Agreement | None:
    """Runs both, on a batch of patches and on the smallest input there is; the worse of the two counts.

    Raises:
        ValueError: ONNX Runtime cannot run the model, or is farther from PyTorch than the precision explains.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    patches = _song_patches(config)
    differences, errors_db = [], []
    for magnitude in (patches, patches[:1, ..., : config.unet.stride]):
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            (mask,) = session.run(["mask"], {"magnitude": magnitude.numpy()})
        except Exception as problem:  # what it raises has no other base
            raise ValueError(f"{runtime} cannot run it: {problem}") from problem
        errors = torch.from_numpy(mask) - network.estimate(magnitude)
        differences.append(errors.abs().max())
        errors_db.append(20 * torch.log10((errors * magnitude).norm() / magnitude.norm()))
    difference, error_db = float(torch.stack(differences).max()), float(torch.stack(errors_db).max())  # NaN prevails
    if not error_db <= most_error_db:  # NaN is not either
        raise ValueError(
            f"{runtime} computes other masks than PyTorch: they differ by up to {difference:.2g}, which makes an error "
            f"of {error_db:.0f} dB in the stem, where {most_error_db:g} dB are the most to expect"
        )
    return Agreement(runtime, difference, error_db if difference else None)


def _song_patches(config: ModelConfig, patches: int = 2) -> Tensor:
    """Magnitudes of a chord that swells over noise, normalised: [patches, input_channels, bins, patch_frames]."""
    spectrogram = Spectrogram(config.spectrogram, device=torch.device("cpu"))
    samples = spectrogram.span(patches * config.patch_frames)
    time_s = torch.arange(samples) / config.spectrogram.sample_rate_hz
    generator = torch.Generator().manual_seed(0)
    channels = []
    for _ in range(config.unet.input_channels):
        noise = torch.randn(samples, generator=generator)
        tones = torch.stack([torch.sin(2 * math.pi * 110.0 * k * time_s) / k for k in range(1, 17)]).sum(0)
        channels.append(0.2 * tones * torch.sin(time_s) ** 2 + 0.02 * noise)
    magnitude = spectrogram.magnitudes(torch.stack(channels)).mT  # [input_channels, bins, frames]
    magnitude = magnitude.unflatten(-1, (patches, -1)).movedim(-2, 0).contiguous()
    if config.normalisation != "none":
        magnitude = magnitude / magnitude.amax((1, 2, 3), keepdim=True)
    return magnitude
