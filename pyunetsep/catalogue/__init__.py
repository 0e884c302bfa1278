"""Catalogues: more songs than one process separates, on one machine or a cluster, by Ray Data.

    from pyunetsep import catalogue
    results = catalogue.separate("songs.parquet", "stems")

A manifest of songs in, their stems and a manifest of what became of each out. `manifest` reads and writes the tables,
`cluster` finds or starts Ray and shares it out, `worker` is what runs there, and `run` sees to it that each song is
done once. Needs `pip install 'pyunetsep[ray]'`.
"""

from .manifest import Record
from .run import separate

__all__ = ["Record", "separate"]
