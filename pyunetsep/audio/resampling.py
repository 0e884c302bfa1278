"""Change of the sample rate, block by block."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

# soxr's best: 28 bits, where HQ has 20. It costs little: both run at 500 to 700 times real time.
_QUALITY = "VHQ"


class Resampler:
    """Streaming resampler, band-limited and without delay.

    n samples in all become exactly ceil(n * to_hz / from_hz), so that there and back never loses a sample. How the
    wave is cut into blocks makes no difference, not in the last bit. Equal rates pass the wave on.

    Args:
        from_hz: rate of what is pushed.
        to_hz: rate of what comes back.
        channels: of the wave.
        dtype: float32 or float64, of what comes back; what is pushed is converted.
    Raises:
        ValueError: a rate or `channels` is below 1.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int, dtype: Any = np.float32) -> None:
        for name, value in (("from_hz", from_hz), ("to_hz", to_hz), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, want at least 1")
        self.from_hz, self.to_hz, self.channels, self.dtype = from_hz, to_hz, channels, np.dtype(dtype)
        self._pushed = self._returned = 0
        self._stream = None
        if from_hz != to_hz:
            import soxr  # here, so that songs of the model's rate do without it

            self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype=self.dtype.name, quality=_QUALITY)

    def push(self, wave: np.ndarray) -> np.ndarray:
        """Take a block [channels, samples]; return what is ready by now, [channels, any number of samples]."""
        if wave.ndim != 2 or wave.shape[0] != self.channels:
            raise ValueError(f"wave: got shape {wave.shape}, want ({self.channels}, samples)")
        wave = wave.astype(self.dtype, copy=False)
        self._pushed += wave.shape[1]
        if self._stream is None:
            return wave
        return self._resampled(wave)

    def flush(self) -> np.ndarray:
        """The end of the wave, [channels, samples]; the resampler is then as new."""
        if self._stream is None:
            return np.empty((self.channels, 0), self.dtype)
        # soxr alone rounds the length to the nearest: give it silence beyond the end, then trim.
        missing = -(-self._pushed * self.to_hz // self.from_hz) - self._returned
        silence = np.zeros((self.channels, -(-2 * self.from_hz // self.to_hz) + 1), self.dtype)
        wave = self._resampled(silence, last=True)[:, :missing]
        self._stream.clear()
        self._pushed = self._returned = 0
        return np.ascontiguousarray(wave)

    def _resampled(self, wave: np.ndarray, last: bool = False) -> np.ndarray:
        assert self._stream is not None
        output = self._stream.resample_chunk(np.ascontiguousarray(wave.T), last=last)
        self._returned += len(output)
        return np.ascontiguousarray(output.T)


@lru_cache(maxsize=64)
def resampling_delay_s(from_hz: int, to_hz: int) -> float:
    """The longest that a `Resampler` holds a sample back, in seconds: found by trying, for soxr does not say."""
    if from_hz == to_hz:
        return 0.0
    longest = 0.0
    for block in (max(1, from_hz // 700), max(1, from_hz // 10)):
        resampler = Resampler(from_hz, to_hz, channels=1)
        silence = np.zeros((1, block), np.float32)
        pushed = returned = 0
        while pushed < from_hz:
            pushed += block
            returned += resampler.push(silence).shape[1]
            longest = max(longest, pushed / from_hz - returned / to_hz)
    return longest
