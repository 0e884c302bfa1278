"""A song that is still coming in: blocks in, and the stems of what is complete out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .arrays import ArrayLayout
from .audio import resampling_delay_s
from .config import ModelConfig, SeparatorConfig
from .engine import Engine
from .errors import InvalidAudioError
from .schedule import Schedule, latency_of, schedule_within
from .stream import Check, StemStream
from .unmixer import grids_of


def live_schedule(
    model: ModelConfig, config: SeparatorConfig, sample_rate_hz: int, latency_s: float | None
) -> tuple[Schedule, float]:
    """How patches follow one another in a song that is still coming in, and the latency that this really means.

    Args:
        latency_s: what is allowed; None: what whole patches take.
    Raises:
        ValueError: the model wants to know the whole song first, or that is too short.
    """
    if model.normalisation == "song":
        raise ValueError(
            "this model cannot stream: it is normalised by the loudest magnitude of the whole song, which is not known "
            "before its end; separate_file reads the song twice"
        )
    model_rate_hz, grids = model.spectrogram.sample_rate_hz, grids_of(model, config)
    resampling_s = resampling_delay_s(sample_rate_hz, model_rate_hz) + resampling_delay_s(model_rate_hz, sample_rate_hz)
    schedule = schedule_within(latency_s, model, config, grids=grids, spent_s=resampling_s)
    return schedule, resampling_s + latency_of(schedule.wait, model, grids)


class SongStream:
    """Separates a song block by block, in constant memory; `Separator.stream` makes one.

    Stems are complete and in time: what `push` and `flush` return of a stem, put together, has the mixture's samples,
    none more or less. A context manager, which at its end lets go of the memory and does not flush.

    Attributes:
        stems: names of those that come back.
        sample_rate_hz, channels: of the song.
        latency_s: the longest that a sample has to wait for its stems: once the song has come in up to this long after
            it, they are out. Time for computing comes on top.
    """

    def __init__(
        self,
        model: ModelConfig,
        engine: Engine,
        config: SeparatorConfig,
        sample_rate_hz: int,
        channels: int,
        stems: Sequence[str],
        *,
        latency_s: float | None,
        sanitize: bool,
    ) -> None:
        """
        Raises:
            ValueError: the model wants to know the whole song first, or `latency_s` is too short.
        """
        schedule, self.latency_s = live_schedule(model, config, sample_rate_hz, latency_s)
        self.stems, self.sample_rate_hz, self.channels = list(stems), sample_rate_hz, channels
        self._check = Check(sample_rate_hz, sanitize=sanitize)
        self._layout: ArrayLayout | None = None  # of the blocks
        self._stream: StemStream | None = StemStream(
            model, engine, config, sample_rate_hz, channels, self.stems, schedule=schedule
        )

    def push(self, block: Any) -> dict[str, Any]:
        """Takes the song's next samples and returns the stems' next ones, which may be none.

        Args:
            block: any number of samples: a NumPy array (samples, channels) or a torch tensor (channels, samples), as in
                `pyunetsep.separate`; (samples,) will do for one channel. All blocks are of one kind. Never changed.
        Returns:
            {stem's name: an array like `block`, of any number of samples}.
        Raises:
            TypeError, ValueError: `block` is not what it should be, or the stream has ended. The stream is as before.
        """
        stream = self._open_stream()
        layout = self._like_the_first(ArrayLayout(block))
        wave = self._check(stream.transfers.staged(layout.songs[0]))
        if isinstance(block, torch.Tensor) and _same_memory(wave, block):
            wave = wave.clone()  # it waits here, while the caller may fill the block anew
        self._layout = layout
        return self._laid_out(stream.push(wave))

    def flush(self) -> dict[str, Any]:
        """Ends the song and returns the rest of the stems; nothing can be pushed after it.

        Raises:
            ValueError: nothing was ever pushed, so it is not known what the stems should be; or the stream has ended.
        """
        stream = self._open_stream()
        if self._layout is None:
            raise ValueError("flush: nothing was pushed; push at least an empty block, which tells the stems' type")
        stems = self._laid_out(stream.flush())
        self.close()
        return stems

    def close(self) -> None:
        """Lets go of the memory; further calls do nothing."""
        self._stream = None

    def __enter__(self) -> SongStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_stream(self) -> StemStream:
        if self._stream is None:
            raise ValueError("this stream has ended; Separator.stream begins another")
        return self._stream

    def _like_the_first(self, layout: ArrayLayout) -> ArrayLayout:
        """The block's layout, if it is of the stream's channels and of the kind of the blocks before it."""
        songs, channels, _ = layout.shape
        if (songs, channels) != (1, self.channels):
            raise InvalidAudioError(
                f"block must be one song of {self.channels} channels, got shape {tuple(layout.audio.shape)}"
            )
        if self._layout is not None and layout.kind != self._layout.kind:
            raise TypeError(f"block must be as the ones before it, {self._layout.kind}; got {layout.kind}")
        return layout

    def _laid_out(self, waves: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        assert self._layout is not None
        home = self._layout.home
        return {name: self._layout.restore([wave.to(home)], name) for name, wave in waves.items()}


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
