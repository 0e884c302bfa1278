"""Training and evaluation data: folders -> tracks -> a split -> recordings in memory-mapped waves.

    tracks = find_tracks(["songs", "more.csv"])
    split = split_tracks(tracks, test=["singer*"])
    train = load_recordings(split.train, sample_rate_hz=8192, channels=1, cache="cache")
    train = without_leaks(train, shared_accompaniments(test, train))

Knows no torch and no network; `audio` decodes and resamples.
"""

from .cache import Recording, load_recordings
from .layouts import find_tracks
from .leaks import shared_accompaniments, without_leaks
from .licences import permits_commercial_use
from .splits import Split, matching_tracks, split_tracks
from .tracks import STEMS, Source, Track, permissive

__all__ = [
    "STEMS",
    "find_tracks",
    "Track",
    "Source",
    "permissive",
    "permits_commercial_use",
    "matching_tracks",
    "split_tracks",
    "Split",
    "load_recordings",
    "Recording",
    "shared_accompaniments",
    "without_leaks",
]
