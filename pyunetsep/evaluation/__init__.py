"""How well models separate: scores as the field computes them, song by song, kept and resumed.

`evaluate` is what the command runs; `validate` is the quick score that training watches. Scores are in `metrics`, what
is scored in `estimators`, a song's way through both in `scoring`, the file of results in `results`, and how they are
shown in `tables` and `boxplot`. Nothing here imports torch, museval or mir_eval before it needs them.
"""

from .metrics import METRICS
from .run import evaluate
from .scoring import ScoringOptions
from .song import Song
from .tables import table
from .validation import validate

__all__ = ["METRICS", "ScoringOptions", "Song", "evaluate", "table", "validate"]
