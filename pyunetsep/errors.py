"""Every exception and warning that pyunetsep raises on purpose.

A user's mistake is a `TypeError` or a `ValueError`, trouble with a file an `OSError`; each of the classes below
is one of these as well as a `PyunetsepError`, so both habits of catching work.
"""


class PyunetsepError(Exception):
    """Base of all errors below."""


class InvalidAudioError(PyunetsepError, ValueError):
    """Samples that cannot be separated: NaN, infinity, wrong rank, too many channels."""


class AudioFileError(PyunetsepError, OSError):
    """An audio file that cannot be opened, decoded or written; the message starts with its path."""


class TruncatedAudioError(AudioFileError):
    """An audio file that ends before its header says it does."""


class AudioFormatError(PyunetsepError, ValueError):
    """An output format that cannot hold what was asked of it (rate, channels, sample type)."""


class OutputExistsError(AudioFileError):
    """An output file that is there already, or that two inputs of one call would both write."""


class CheckpointError(PyunetsepError, OSError):
    """A model that is damaged, hostile or not the one meant; the message starts with its path or name."""


class UnknownModelError(PyunetsepError, ValueError):
    """A model name that is neither in the registry nor a path."""


class ModelUnavailableError(PyunetsepError, OSError):
    """A registered model that is not in the cache and could not, or must not, be fetched."""


class DataError(PyunetsepError, ValueError):
    """Training or evaluation data that cannot be used; the message names the file or folder."""


class TrainingError(PyunetsepError, RuntimeError):
    """Training that cannot go on; the message says what was found and what may help."""


class DeviceError(PyunetsepError, RuntimeError):
    """A device that was asked for and cannot be used; the message says why."""


class Cancelled(PyunetsepError):
    """The caller asked to stop; no output was left behind."""


class ClippingWarning(UserWarning):
    """A stem was louder than its sample type can hold, and was clipped."""


__all__ = [name for name, value in list(globals().items()) if isinstance(value, type)]
