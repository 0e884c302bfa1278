"""Audio file <-> wave, and resampling. A `wave` is a numpy array [channels, samples].

Reading and writing never lose samples in silence: a file that ends before its header says so is an error, and an
output appears under its name only when it is complete.
"""

from .files import SampleQueue, Wave
from .formats import AudioFormat, extension, output_format
from .reading import AudioReader, spool_stdin
from .resampling import Resampler, resampling_delay_s
from .writing import AudioWriter

__all__ = [
    "AudioFormat",
    "AudioReader",
    "AudioWriter",
    "Resampler",
    "SampleQueue",
    "Wave",
    "extension",
    "output_format",
    "resampling_delay_s",
    "spool_stdin",
]
