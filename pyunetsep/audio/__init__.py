"""Audio file <-> wave, and resampling. A `wave` is a numpy array [channels, samples].

Reading and writing never lose samples in silence: a file that ends before its header says so is an error, and an
output appears under its name only when it is complete.
"""

from .files import SampleQueue, Wave
from .formats import AUDIO_EXTENSIONS, AudioFormat, extension, output_format
from .pipes import PipeReader, PipeWriter, open_pipe, spooled
from .reading import AudioReader
from .resampling import Resampler, resampling_delay_s
from .writing import AudioWriter

__all__ = [
    "AUDIO_EXTENSIONS",
    "AudioFormat",
    "AudioReader",
    "AudioWriter",
    "PipeReader",
    "PipeWriter",
    "Resampler",
    "SampleQueue",
    "Wave",
    "extension",
    "open_pipe",
    "output_format",
    "resampling_delay_s",
    "spooled",
]
