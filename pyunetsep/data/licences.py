"""Which licences allow commercial use: a closed table, so that nothing is allowed by a guess."""

from __future__ import annotations

_VERSIONS = ("", "-1.0", "-2.0", "-2.5", "-3.0", "-4.0")  # of Creative Commons; "" is how people write it
_GNU = (
    *("GPL-2", "GPL-2+", "GPL-2.0", "GPL-2.0+", "GPL-2.0-only", "GPL-2.0-or-later"),
    *("GPL-3", "GPL-3+", "GPL-3.0", "GPL-3.0+", "GPL-3.0-only", "GPL-3.0-or-later"),
    *("LGPL-2.1", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0", "LGPL-3.0-only", "LGPL-3.0-or-later"),
    *("AGPL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later"),
)
# SPDX's names. Share-alike and copyleft ask for the same licence again, not for no trade.
_PERMITTING = (
    *("CC0", "CC0-1.0", "CC-PDDC", "PD", "PDDL-1.0", "Unlicense", "0BSD", "MIT-0", "WTFPL"),
    *("MIT", "ISC", "Zlib", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "AFL-3.0", "Artistic-2.0", "BSL-1.0"),
    *("MPL-2.0", "OFL-1.1", "LAL-1.2", "LAL-1.3", "FSFAP", "ODbL-1.0", "ODC-By-1.0"),
    *_GNU,
    *(f"CC-BY{version}" for version in _VERSIONS),
    *(f"CC-BY-SA{version}" for version in _VERSIONS),
)
# No trade, or no derivatives, which a trained network may be.
_REFUSING = [f"CC-BY-{terms}{version}" for terms in ("NC", "NC-SA", "NC-ND", "ND") for version in _VERSIONS]

# As data sets state them in their manifests, word for word.
_STATEMENTS = {
    # several licences, one a file: yes where each of them allows it
    "CC-BY-SA-3.0 (see package copyright)": True,
    "CC-BY-SA-3.0 / CC-BY-3.0 (per language, see package copyright)": True,
    "CC-BY-SA-3.0/4.0, CC-BY-3.0, CC0, PD (per file, see package copyright)": True,
    "CC-BY-SA-3.0/CC-BY-3.0 (see package copyright)": True,
    "CC0-1.0 (repo)": True,
    "GPL-2 / CC-BY-SA (see package copyright)": True,
    "GPL-2+ (see package copyright)": True,
    "GPL-2+ / free (see package copyright)": True,
    "GPL-2+/CC-BY-SA-3.0/CC-BY-3.0 (see package copyright)": True,
    "GPL-2+/CC0/CC-BY-SA-3.0 (see package copyright)": True,
    "GPL-3+ (see package copyright)": True,
    "MIT (repo licence)": True,
    "MIT-style (per package copyright)": True,
    "own terms: free use incl. commercial, redistribution with attribution": True,
    "own terms: free use incl. commercial, redistribution with link": True,
    "CC-BY / CC-BY-NC / PD per file (see that repo's audio/*.txt)": False,
    "CC-BY-NC-SA-4.0 (GTSinger; non-commercial)": False,
    "CC-BY-NC-SA-4.0 (M4Singer; non-commercial)": False,
    "OpenSinger: research / non-commercial": False,
    "free for research use (MIR-1K terms as generally stated; the repo itself carries no data licence)": False,
    # stated elsewhere, or by hearsay
    "Choral Singing Dataset (Zenodo 1286570) terms; not restated in the repo": False,
    "TSP speech database (McGill; BSD-style terms as published, not restated in the repo)": False,
    # says nothing of commercial use
    "own terms: redistribution with credit": False,
}

_TABLE = dict.fromkeys(_PERMITTING, True) | dict.fromkeys(_REFUSING, False) | _STATEMENTS
_FOLDED = {licence.casefold(): permits for licence, permits in _TABLE.items()}  # SPDX's names have no case


def permits_commercial_use(licence: str) -> bool:
    """Whether a licence, as the data states it, is known to allow commercial use; what is not in the table does not.

    "A AND B", as SPDX writes it, allows what both allow.
    """
    return all(_FOLDED.get(part.strip().casefold(), False) for part in licence.split(" AND "))
